"""A survey from landscape to directory: figures, resume, repeated plans, refusals."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional

from thalweg import NetworkLandscape, Quadratic, survey
from thalweg import instruments as ti
from thalweg.errors import (
    ConvergenceWarning,
    InputError,
    NonFiniteLossError,
    StoreError,
    StructureError,
)
from thalweg.instruments import merge_tree
from thalweg.landscapes import Landscape
from thalweg.models import mlp
from thalweg.surveying import Plan, rebuild_report
from thalweg.surveying import steps as survey_steps
from thalweg.surveying.budget import Costs, choose

EIGENVALUES = torch.tensor([9.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.125], dtype=torch.float64)
SMALL = {
    "eigen_products": 30,
    "trace_products": 20,
    "probes": 2,
    "lanczos_steps": 7,
    "surface_points": 5,
    "sharpness_method": "pgd",
    "sharpness_steps": 20,
    "sharpness_samples": 8,
    "layer_products": 20,
    "layer_probes": 8,
}


def quadratic(eigenvalues=EIGENVALUES):
    draws = torch.randn(7, 7, generator=torch.Generator().manual_seed(0)).double()
    rotation = torch.linalg.qr(draws).Q
    matrix = rotation @ torch.diag(eigenvalues) @ rotation.T
    return Quadratic((matrix + matrix.T) / 2, offset=0.5)


def network(seed=0):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 5, generator=generator)
    y = torch.randint(0, 3, (40,), generator=generator)
    model = mlp((5, 4, 3), seed=seed)
    return NetworkLandscape(model, functional.cross_entropy, (x, y))


def plan_of(land, **changes):
    """Return a small plan for a landscape, made without timing."""
    rows = land.rows if isinstance(land, NetworkLandscape) else 0
    base = survey(land, only="point", budget=30).plan
    steps = changes.pop("steps", survey_steps_of(land))
    changed = {**SMALL, "steps": steps, "examples": rows, **changes}
    return dataclasses.replace(base, **changed)


def survey_steps_of(land):
    """Return the steps that need no checkpoints and are never silent."""
    others = ("paths", "plane", "sign_locks", "aligned")
    return tuple(s for s in survey_steps.RUN if s not in others)


def same(a, b):
    """Whether two datasets agree to the bit but for their cost."""
    attrs = [{k: v for k, v in ds.attrs.items() if k != "cost"} for ds in (a, b)]
    return a.drop_attrs().identical(b.drop_attrs()) and attrs[0] == attrs[1]


def test_every_figure_of_a_quadratic_is_the_closed_form(tmp_path):
    land = quadratic()
    found = survey(land, out=tmp_path / "q", plan=plan_of(land))
    figures = found.summary["figures"]
    top = [entry["value"] for entry in figures["top_eigenvalues"]]
    np.testing.assert_allclose(top, EIGENVALUES[:5], rtol=1e-6)
    assert figures["smallest_eigenvalue"]["value"] == pytest.approx(0.125, rel=1e-6)
    assert figures["curvature"] == pytest.approx(0.125, rel=1e-6)
    assert figures["trace"]["value"] == pytest.approx(16.875, rel=1e-10)
    assert figures["loss"] == 0.5 and figures["gradient_norm"] == 0
    rho = found.plan.rho
    zeroth = figures["sharpness"]["zeroth"]["value"]
    assert zeroth == pytest.approx(rho**2 * 9 / 2, rel=1e-6)
    assert figures["sharpness"]["first"]["value"] == pytest.approx(rho**2 * 9, rel=1e-6)
    assert found.summary["verdict"]["kind"] == "no negative curvature found"
    # The surface along the top eigenvectors is 0.5 + (9 a² + 4 b²) / 2.
    surface = found.datasets["hessian_surface"]
    a, b = surface["x0"], surface["x1"]
    expected = 0.5 + (9 * a**2 + 4 * b**2) / 2
    np.testing.assert_allclose(surface["loss"], expected, rtol=1e-8)
    # Its half-width is where the second direction has risen by one.
    assert float(a[-1]) == pytest.approx((2 / 4) ** 0.5, rel=1e-6)
    # One basin, its minimum in the middle.
    assert found.datasets["topology"].sizes["pair"] == 2
    # The spectral density of seven steps in seven dimensions is exact.
    nodes = found.datasets["spectrum"]["nodes"].values
    np.testing.assert_allclose(
        np.sort(nodes, axis=1)[:, ::-1], np.tile(EIGENVALUES, (2, 1)), rtol=1e-8
    )


def test_a_saddle_is_called_one_and_its_direction_kept(tmp_path):
    eigenvalues = EIGENVALUES.clone()
    eigenvalues[-1] = -0.5
    land = quadratic(eigenvalues)
    plan = plan_of(land, steps=("point", "eigenvalues"))
    found = survey(land, out=tmp_path / "s", plan=plan)
    assert found.summary["verdict"]["kind"] == "saddle"
    assert any("saddle, not a minimum" in text for text in found.summary["warnings"])
    from safetensors.torch import load_file

    v = load_file(tmp_path / "s" / "directions" / "descent.safetensors")["basis"][:, 0]
    assert float(v @ land.matrix @ v) == pytest.approx(-0.5, rel=1e-6)


def test_a_network_survey_leaves_model_and_generators_as_they_were(tmp_path):
    land = network()
    land.model.train()
    before = {k: v.clone() for k, v in land.model.state_dict().items()}
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = survey(land, out=tmp_path / "n", plan=plan_of(land))
    assert torch.equal(torch.get_rng_state(), state)
    assert land.model.training and all(p.grad is None for p in land.model.parameters())
    for name, tensor in land.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    for name in ("report.html", "summary.json", "survey.nc", "plan.json"):
        assert (tmp_path / "n" / name).stat().st_size > 0
    assert not (tmp_path / "n" / "chunks").exists()
    # An untrained network on forty examples: chance in the data explains the gradient,
    # and the curvature is negative somewhere.
    rows = land.example_gradients().double()
    error = float((rows.var(0).sum() / len(rows)).sqrt())
    assert found.summary["figures"]["gradient_stderr"] == pytest.approx(error, rel=1e-5)
    assert found.summary["figures"]["gradient_norm"] < 2 * error
    assert found.summary["verdict"]["kind"] == "saddle"
    stored = json.loads((tmp_path / "n" / "summary.json").read_text())
    assert stored["figures"]["loss"] == found.summary["figures"]["loss"]
    assert set(found.datasets["layers"]["layer"].values) == set(land.layout.names)


def test_an_interrupted_survey_goes_on_to_the_same_figures(tmp_path, monkeypatch):
    land = network()
    plan = plan_of(land, steps=("point", "eigenvalues", "trace", "surface"))
    whole = survey(land, out=tmp_path / "whole", plan=plan)

    def interrupted(context):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(survey_steps.RUN, "trace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            survey(land, out=tmp_path / "cut", plan=plan)

    def forbidden(context):
        raise AssertionError("a finished step ran again")

    with monkeypatch.context() as patch:
        patch.setitem(survey_steps.RUN, "eigenvalues", forbidden)
        resumed = survey(land, out=tmp_path / "cut", resume=True)
    for step in plan.steps:
        assert same(whole.datasets[step], resumed.datasets[step]), step


def test_a_plan_repeats_a_survey_to_the_bit(tmp_path):
    land = network()
    plan = plan_of(land, steps=("point", "trace", "spectrum", "sharpness"))
    first = survey(land, out=tmp_path / "a", plan=plan)
    second = survey(network(), plan=tmp_path / "a")
    for step in plan.steps:
        assert same(first.datasets[step], second.datasets[step]), step


def test_another_survey_in_the_directory_is_refused(tmp_path):
    plan = plan_of(network(), steps=("point",))
    survey(network(), out=tmp_path / "a", plan=plan)
    with pytest.raises(StoreError, match="--resume, or choose another"):
        survey(network(), out=tmp_path / "a", plan=plan)
    with pytest.raises(StoreError, match="another landscape"):
        survey(network(seed=1), out=tmp_path / "a", resume=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match="holds no survey"):
        survey(network(), out=tmp_path / "b", plan=plan)
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["thesis.tex"]


def test_a_report_is_rebuilt_from_what_is_stored(tmp_path):
    plan = plan_of(network(), steps=("point", "surface"))
    survey(network(), out=tmp_path / "a", plan=plan, name="My <net>")
    html = (tmp_path / "a" / "report.html").read_text()
    (tmp_path / "a" / "report.html").unlink()
    path = rebuild_report(tmp_path / "a")
    assert path == tmp_path / "a" / "report.html"
    assert path.read_text() == html
    assert "My &lt;net&gt;" in html
    with pytest.raises(StoreError, match="no survey at"):
        rebuild_report(tmp_path)
    (tmp_path / "a" / "survey.nc").write_bytes(b"cut off")
    with pytest.raises(StoreError, match="cannot be read"):
        rebuild_report(tmp_path / "a")


def test_checkpoints_draw_lines_barriers_and_a_plane(tmp_path):
    land = network()
    states = {name: mlp((5, 4, 3), seed=i).state_dict() for i, name in enumerate("abc")}
    plan = plan_of(land, steps=("point", "paths", "plane"))
    found = survey(land, plan=plan, checkpoints=states, out=tmp_path / "p")
    paths = found.datasets["paths"]
    assert list(paths["pair"].values) == ["a – b", "a – c"]
    for i, end in enumerate("bc"):
        line = paths["loss"].values[i]
        for t, name in ((0, "a"), (-1, end)):
            expected = float(land.loss(land.flatten(states[name])))
            assert line[t] == pytest.approx(expected, rel=1e-6)
    assert found.datasets["plane"].sizes == {"x0": 5, "x1": 5}
    assert len(found.summary["figures"]["barriers"]) == 2
    twins = states | {"d": states["b"]}
    with pytest.raises(InputError, match="'b' and 'd' have the same weights"):
        survey(land, plan=plan, checkpoints=twins)


def test_curves_are_trained_between_checkpoints(tmp_path):
    land = network()
    states = {name: mlp((5, 4, 3), seed=i).state_dict() for i, name in enumerate("abc")}
    plan = plan_of(land, steps=("point", "paths"), path_steps=60, path_points=7)
    found = survey(land, plan=plan, checkpoints=states, out=tmp_path / "p")
    paths = found.datasets["paths"]
    pairs = ["a – b", "a – b, curve", "a – c", "a – c, curve"]
    assert list(paths["pair"].values) == pairs
    for line, curve in ((0, 1), (2, 3)):
        assert float(paths["peak"][curve]) <= float(paths["peak"][line])
        assert float(paths["length"][curve]) > float(paths["length"][line])
        ends = paths["loss"].values[[line, curve]][:, [0, -1]]
        np.testing.assert_allclose(ends[0], ends[1], rtol=1e-6)
    assert set(found.summary["figures"]["barriers"]) == set(pairs)
    html = (tmp_path / "p" / "report.html").read_text()
    assert "Bézier curve of one bend" in html
    again = survey(land, plan=plan, checkpoints=states)
    assert same(again.datasets["paths"], paths)


def test_a_curve_that_cannot_be_trained_is_said(monkeypatch):
    def refuse(*_, **__):
        raise NonFiniteLossError("the loss is nan at t = 0.5")

    monkeypatch.setattr(survey_steps.ti, "connect", refuse)
    land = network()
    states = {name: mlp((5, 4, 3), seed=i).state_dict() for i, name in enumerate("ab")}
    plan = plan_of(land, steps=("point", "paths"), path_steps=60)
    found = survey(land, plan=plan, checkpoints=states)
    assert list(found.datasets["paths"]["pair"].values) == ["a – b"]
    assert any("no curve was trained" in text for text in found.summary["warnings"])


def test_aligned_checkpoints_are_drawn_beside_the_others(tmp_path):
    land = network()
    states = {name: mlp((5, 4, 3), seed=i).state_dict() for i, name in enumerate("ab")}
    order = torch.tensor([2, 0, 3, 1])
    states["c"] = states["a"] | {
        "1.weight": states["a"]["1.weight"][order],
        "1.bias": states["a"]["1.bias"][order],
        "3.weight": states["a"]["3.weight"][:, order],
    }
    plan = plan_of(land, steps=("point", "paths", "aligned"))
    found = survey(land, plan=plan, checkpoints=states, out=tmp_path / "p")
    aligned = found.datasets["aligned"]
    assert list(aligned["pair"].values) == ["a – b", "a – c"]
    wanted = ti.align(mlp((5, 4, 3), seed=0), states["b"], land.data)
    barrier = ti.barrier(land, states["a"], wanted.state)
    assert float(aligned["barrier"][0]) == pytest.approx(barrier.value, rel=1e-9)
    assert float(aligned["barrier"][1]) == 0
    assert np.ptp(aligned["loss"].values[1]) == 0
    assert list(aligned["moved"].values)[1] == 1.0
    assert found.summary["figures"]["aligned_barriers"]["a – c"] == 0
    assert "aligned barrier a – c" in found.describe()
    assert "Between aligned checkpoints" in found.report.read_text()
    del states["b"]  # nothing is left between the others
    found = survey(land, plan=plan, checkpoints=states, out=tmp_path / "q")
    assert found.datasets["aligned"]["loss"].shape == (1, plan.path_points)


def test_what_cannot_be_aligned_is_refused_at_the_door():
    land = quadratic()
    states = {name: {"x": torch.zeros(7)} for name in "ab"}
    with pytest.raises(InputError, match="align needs the landscape of a network"):
        survey(land, only="point", checkpoints=states, align=True)

    class Branching(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x if x.max() > 0 else -x)

    data = torch.randn(9, 5), torch.randint(0, 3, (9,))
    land = NetworkLandscape(Branching(5, 3), functional.cross_entropy, data)
    states = {name: Branching(5, 3).state_dict() for name in "ab"}
    with pytest.raises(StructureError, match="cannot be traced: at test_survey.py"):
        survey(land, only="point", checkpoints=states, align=True)


def test_a_loss_that_is_nan_everywhere_is_said(tmp_path):
    class Broken(Quadratic):
        def loss(self, points):
            return super().loss(points) * float("nan")

    land = Broken(torch.eye(3, dtype=torch.float64))
    plan = plan_of(quadratic(), steps=("point", "surface"), layers="*")
    found = survey(land, plan=plan, out=tmp_path / "nan")
    assert not found.finite
    assert found.summary["verdict"] is None
    assert any("not finite at 25 of 25" in text for text in found.summary["warnings"])


def test_a_point_where_the_loss_is_nan_is_reported_with_its_surroundings(tmp_path):
    class Pierced(Quadratic):
        """A quadratic without a value at its center."""

        def loss(self, points):
            values = super().loss(points)
            return torch.where(values > 0.5, values, float("nan"))

        def value_and_gradient(self, points):
            return self.loss(points), super().value_and_gradient(points)[1]

    whole = quadratic()
    land = Pierced(whole.matrix, offset=0.5)
    found = survey(land, plan=plan_of(whole), out=tmp_path / "o")
    assert list(found.datasets) == ["point", "surface", "topology"]
    assert found.finite and found.report.is_file()
    assert found.summary["verdict"] is None
    messages = found.summary["warnings"]
    assert any("not finite at the point" in text for text in messages)
    assert any("surface: the loss is not finite at 1 of 25" in m for m in messages)
    assert rebuild_report(tmp_path / "o") == found.report


def test_a_network_of_one_output_has_a_row_for_its_one_bias():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 5, generator=generator).double()
    model = mlp((5, 3, 1), seed=0).double()
    land = NetworkLandscape(model, functional.mse_loss, (x, x[:, :1].sin()))
    table = survey(land, plan=plan_of(land, steps=("point", "layers"))).datasets[
        "layers"
    ]
    dense = land.hessian(land.origin).dense()
    for block, value in zip(land.layout.blocks, table["top_eigenvalue"], strict=True):
        part = dense[block.slice, block.slice]
        top = float(torch.linalg.eigvalsh(part)[-1])
        assert float(value) == pytest.approx(top, rel=1e-10)
    assert block.size == 1 and (table["converged"] == 1).all()


def kinds_of_landscapes():
    land = network()
    basis = torch.randn(land.dim, 3, generator=torch.Generator().manual_seed(0))
    states = [mlp((5, 4, 3), seed=i).state_dict() for i in range(3)]
    model = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Dropout(0.3))
    x, y = torch.ones(6, 5), torch.arange(6) % 3
    data = x * torch.linspace(-1, 1, 6)[:, None], y
    yield "restricted", land.restrict(land.origin, basis)
    yield "between", land.between(*states)
    yield "sum", land + 0.5 * land
    options = {"mode": "train", "stochastic": "fix"}
    yield "dropout", NetworkLandscape(model, functional.cross_entropy, data, **options)


@pytest.mark.parametrize("name", ["restricted", "between", "sum", "dropout"])
def test_every_kind_of_landscape_is_surveyed(name):
    land = dict(kinds_of_landscapes())[name]
    plan = plan_of(land, sharpness_steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = survey(land, plan=plan)
    assert set(found.datasets) == set(survey_steps_of(land))
    assert found.finite and found.summary["verdict"] is not None


def test_a_network_of_zeros_is_a_saddle(tmp_path):
    land = network()
    land = land.at(torch.zeros_like(land.origin))
    found = survey(land, plan=plan_of(land), notes=["said first"])
    assert found.summary["verdict"]["kind"] == "saddle"
    assert "adaptive" not in " ".join(found.summary["figures"]["sharpness"])
    assert found.datasets["surface"].attrs["directions"].count('"unit"')
    assert "note: said first" in found.describe()


def test_a_point_that_is_not_finite_is_refused(tmp_path):
    land = quadratic()
    broken = land.at(torch.full((7,), float("nan"), dtype=torch.float64))
    with pytest.raises(InputError, match="7 of 7 entries that are NaN"):
        survey(broken, out=tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_a_budget_too_small_for_all_examples_says_so():
    land = network()
    costs = Costs(loss=0.1, gradient=0.3, product=0.5, vector=100)
    options = {"steps": ("point", "eigenvalues", "surface"), "memory": 10**9}
    options |= {"threads": 1, "layers": "*", "seed": 0}
    rich = choose(land, costs, budget=3600.0, **options)
    assert rich.examples == rich.total == 40 and not rich.notes
    assert rich.surface_points == 41
    poor = choose(land, costs, budget=10.0, **options)
    assert poor.surface_points == 11
    assert any("11 points an axis" in note for note in poor.notes)


def test_a_budget_chooses_the_training_of_curves():
    options = {"steps": ("point", "paths"), "memory": 10**9}
    options |= {"threads": 1, "layers": "*", "seed": 0, "paths": 2}
    costs = Costs(loss=0.01, gradient=0.02, product=0.04, vector=200)
    assert choose(network(), costs, budget=3600.0, **options).path_steps == 600
    # 70 % of 30 s, 10 parts of 14 for the paths, half of it for 2 curves' steps.
    some = choose(network(), costs, budget=30.0, **options).path_steps
    assert some == int(30 * 0.7 * 10 / 14 / (2 * 0.02) / 2)
    poor = choose(network(), costs, budget=5.0, **options)
    assert poor.path_steps == 0 and any("straight lines" in n for n in poor.notes)


def test_surfaces_are_refined_where_asked(tmp_path):
    class Wells(Landscape):
        """Two wells beside a region without values."""

        def loss(self, points):
            x, y = points[..., 0], points[..., 1]
            values = (4 * x**2 - 1) ** 2 + y**2 + x / 10
            return torch.where(y > 0.8 - x / 4, float("nan"), values)

    land = Wells(2, origin=torch.zeros(2, dtype=torch.float64))
    steps = ("point", "surface", "topology")
    plan = plan_of(land, steps=steps, refine=300, surface_points=9)
    found = survey(land, out=tmp_path / "w", plan=plan)
    surface = found.datasets["surface"]
    assert 290 < surface.sizes["point"] <= 300 and surface.sizes["x0"] == 65
    table = found.datasets["topology"]
    tree = merge_tree(surface)
    np.testing.assert_array_equal(table["birth_index"], tree.pairs.birth_index)
    np.testing.assert_array_equal(table["parent"], tree.parents)
    broken = int((surface["point_status"] > 0).sum())
    (warning,) = [w for w in found.summary["warnings"] if w.startswith("surface")]
    assert f"not finite at {broken} of {surface.sizes['point']} points" in warning
    page = (tmp_path / "w" / "report.html").read_text()
    assert "evaluated at" in page and "minima as circles" in page
    assert "which basin joins which" in page
    again = survey(land, out=tmp_path / "again", plan=tmp_path / "w")
    assert same(again.datasets["surface"], surface)


def test_refinement_fits_the_budget_or_says_so():
    land, options = network(), {"memory": 10**9, "threads": 1, "layers": "*", "seed": 0}
    costs = Costs(loss=0.1, gradient=0.3, product=0.5, vector=100)
    steps = ("surface", "topology")
    rich = choose(land, costs, steps=steps, budget=3600.0, refine=800, **options)
    assert (rich.refine, rich.surface_points) == (800, 11) and not rich.notes
    poor = choose(land, costs, steps=steps, budget=40.0, refine=800, **options)
    assert poor.refine == 280
    assert poor.notes == (
        "Surfaces have up to 280 points each, not 800: more do not fit the budget of "
        "40 s.",
    )
    plain = choose(land, costs, steps=steps, budget=3600.0, **options)
    assert (plain.refine, plain.surface_points) == (0, 41)


def test_bad_options_are_refused():
    with pytest.raises(InputError, match="refine must be at least 150 points, got 100"):
        survey(quadratic(), refine=100)
    with pytest.raises(InputError, match="budget"):
        survey(quadratic(), budget="soon")
    with pytest.raises(InputError, match="memory"):
        survey(quadratic(), memory="lots")
    with pytest.raises(InputError, match="no name matches"):
        survey(quadratic(), layers="fc.*")
    with pytest.raises(InputError, match="two dimensions at least"):
        survey(Quadratic(torch.eye(1)))
    with pytest.raises(InputError, match="no step"):
        survey(quadratic(), only="everything")


def test_the_plan_is_stored_and_read(tmp_path):
    plan = plan_of(network(), steps=("point",))
    survey(network(), out=tmp_path / "a", plan=plan)
    assert Plan.read(tmp_path / "a") == plan
