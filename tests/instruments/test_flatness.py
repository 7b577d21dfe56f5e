"""Every measure of sharpness against its closed form."""

import math
from inspect import unwrap

import pytest
import torch
from scipy.optimize import brentq

from thalweg import NetworkLandscape
from thalweg import instruments as ti
from thalweg.errors import InputError
from thalweg.instruments.trust_region import quadratic_maximizers, solve_diagonal
from thalweg.landscapes import Block, Landscape, Layout, Quadratic

RHO = 0.3


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def quadratic(dim=12, definite=False, seed=0):
    root = draw(dim, dim, seed=seed)
    A = root @ root.T / dim if definite else (root + root.T) / 2
    return Quadratic((A + A.T) / 2, draw(dim, seed=seed + 1), offset=0.7)


def trust_region(A, g, rho):
    """max ½dAd + gd over |d| <= rho from the dense spectrum and a scalar root."""
    values, Q = torch.linalg.eigh(A)
    c = Q.T @ g
    if values[-1] < 0 and (c / values).norm() <= rho:
        d = -c / values
    else:
        low = max(float(values[-1]), 0) + 1e-13
        mu = brentq(
            lambda mu: float((c / (mu - values)).norm()) - rho,
            low,
            float(values[-1]) + float(c.norm()) / rho + 1,
            xtol=1e-14,
        )
        d = c / (mu - values)
    return float((values * d**2).sum() / 2 + (c * d).sum())


class Net(Landscape):
    """Logistic loss of a bias-free two-layer ReLU net on fixed data."""

    def __init__(self, origin=None):
        blocks = (
            Block("first", (6, 4), 0, filter_axis=0),
            Block("second", (1, 6), 24, filter_axis=0),
        )
        self.x, self.y = draw(20, 4, seed=7), draw(20, seed=8).sign()
        start = draw(30, seed=9) if origin is None else origin
        super().__init__(30, origin=start, layout=Layout(blocks))

    def loss(self, points):
        W, v = self.layout.split(points).values()
        hidden = (self.x @ W.mT).relu()
        output = (hidden @ v.mT)[..., 0]
        return torch.nn.functional.softplus(-self.y * output).mean(-1)

    def batches(self, m):
        pieces = []
        for start in range(0, 20, m):
            piece = Net(self.origin)
            piece.x, piece.y = self.x[start : start + m], self.y[start : start + m]
            pieces.append(piece)
        return pieces

    def rescaled(self, c):
        parts = self.layout.split(self.origin)
        return self.at(
            self.layout.join(
                {"first": c * parts["first"], "second": parts["second"] / c}
            )
        )


@pytest.mark.parametrize("dim", [1, 2, 12, 90])
def test_maxima_at_the_minimum_of_a_quadratic(dim):
    land = quadratic(dim, definite=True)
    top = float(torch.linalg.eigvalsh(land.matrix)[-1])
    zeroth = ti.sharpness(land, "zeroth", RHO)
    first = ti.sharpness(land, "first", RHO)
    assert zeroth.value == pytest.approx(RHO**2 * top / 2, rel=1e-6)
    assert first.value == pytest.approx(RHO**2 * top, rel=1e-6)
    assert zeroth.radius == first.radius == RHO
    assert zeroth.settings["loss"] == pytest.approx(0.7)


@pytest.mark.parametrize("dim", [2, 12, 90])
def test_zeroth_is_positive_part_and_first_is_the_spectral_norm(dim):
    A = -quadratic(dim, definite=True).matrix
    land = Quadratic(A)
    assert ti.sharpness(land, "zeroth", RHO).value == pytest.approx(0, abs=1e-12)
    worst = float(torch.linalg.eigvalsh(A)[0])
    first = ti.sharpness(land, "first", RHO).value
    assert first == pytest.approx(-(RHO**2) * worst, rel=1e-6)


@pytest.mark.parametrize("kind", ["zeroth", "first"])
@pytest.mark.parametrize("definite", [True, False])
@pytest.mark.parametrize("dim", [3, 12, 90])
@pytest.mark.parametrize("distance", [1e-3, 0.3, 10.0])
def test_away_from_the_minimum_they_solve_the_trust_region_problem(
    kind, definite, dim, distance
):
    land = quadratic(dim, definite)
    at = land.center + distance * draw(dim, seed=5) / dim**0.5
    A, g = land.matrix, land.gradient(at)
    if kind == "zeroth":
        expected = trust_region(A, g, RHO)
    else:
        squared = trust_region(A @ A, A @ g, RHO)
        expected = RHO * math.sqrt(2 * squared + float(g @ g))
    found = ti.sharpness(land, kind, RHO, at=at)
    assert found.value == pytest.approx(expected, rel=1e-6)
    one = ti.sharpness(land, kind, RHO, at=at, method="one_step")
    assert 0 <= one.value <= found.value * (1 + 1e-12)
    assert found.evaluations > one.evaluations > 0


def test_interior_maximum_and_hard_case():
    A = torch.diag(torch.tensor([-3.0, -2.0, -1.0]).double())
    b = torch.tensor([0.3, 0.2, 0.05]).double()
    H = Quadratic(A).hessian(torch.zeros(3).double())
    best = quadratic_maximizers(H, b, 1.0)[0]
    torch.testing.assert_close(best, -b / A.diagonal(), rtol=1e-9, atol=1e-12)
    values = torch.tensor([-1.0, 0.5, 2.0]).double()
    y = solve_diagonal(values, torch.tensor([0.3, 0.6, 0.0]).double(), 2.0)
    torch.testing.assert_close(y[:2], torch.tensor([0.1, 0.4]).double())
    torch.testing.assert_close(y.norm(), torch.tensor(2.0).double())


def test_small_radius_gives_the_gradient_norm():
    land = Net()
    norm = float(land.gradient(land.origin).norm())
    for kind in ("zeroth", "first"):
        for method in ("pgd", "one_step"):
            found = ti.sharpness(land, kind, 1e-6, method=method)
            assert found.value / 1e-6 == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("adaptive", [False, True, "filter", "layer"])
def test_promises_hold_on_a_network(norm, adaptive):
    land = Net()
    options = {"norm": norm, "adaptive": adaptive, "rho": 0.5}
    pgd = ti.sharpness(land, "zeroth", **options)
    one = ti.sharpness(land, "zeroth", **options, method="one_step")
    assert pgd.value >= one.value >= 0
    first = ti.sharpness(land, "first", **options)
    tiny = ti.sharpness(land, "zeroth", **options | {"rho": 1e-7}).value / 1e-7
    assert first.value >= 0.5 * tiny * (1 - 1e-5)
    assert (
        first.value >= ti.sharpness(land, "first", **options, method="one_step").value
    )


def test_maxima_over_cubes_are_those_of_the_corners():
    land = quadratic(6, definite=True)
    at = land.center + 0.1 * draw(6, seed=3)
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 6)
    base = float(land.loss(at))
    expected = float(land.loss(at + RHO * corners).max()) - base
    found = ti.sharpness(land, "zeroth", RHO, at=at, norm="linf", restarts=4)
    assert found.value == pytest.approx(expected, rel=1e-6)
    scale = at.abs() + 1
    expected = float(land.loss(at + RHO * corners * scale).max()) - base
    keskar = ti.sharpness(land, "keskar", RHO, at=at, restarts=4)
    assert keskar.value == pytest.approx(100 * expected / (1 + base), rel=1e-6)


@pytest.mark.parametrize("kind", ["zeroth", "first", "trace", "lambda_max", "average"])
@pytest.mark.parametrize("adaptive", [True, "layer"])
def test_adaptive_measures_do_not_change_under_rescaling(kind, adaptive):
    land = Net()
    options = {"adaptive": adaptive, "rho": 0.1, "method": "pgd"}
    before = ti.sharpness(land, kind, **options).value
    after = ti.sharpness(land.rescaled(3.0), kind, **options).value
    assert after == pytest.approx(before, rel=1e-6)
    plain = {"rho": 0.1}
    moved = ti.sharpness(land.rescaled(3.0), kind, **plain).value
    assert moved != pytest.approx(ti.sharpness(land, kind, **plain).value, rel=1e-2)


def test_relative_flatness_is_invariant_and_equals_its_definition():
    land = Net()
    found = ti.sharpness(land, "relative")
    assert found.note == "exact"
    H = land.hessian(land.origin).dense()
    for block in land.layout.blocks:
        W = land.layout.split(land.origin)[block.name]
        part = H[block.slice, block.slice].reshape(*W.shape, *W.shape)
        expected = sum(
            float(W[s] @ W[t]) * float(part[s, :, t, :].trace())
            for s in range(len(W))
            for t in range(len(W))
        )
        assert found.per_layer[block.name] == pytest.approx(expected, rel=1e-9)
    assert found.value == pytest.approx(sum(found.per_layer.values()))
    after = ti.sharpness(land.rescaled(5.0), "relative").value
    assert after == pytest.approx(found.value, rel=1e-9)
    one = ti.sharpness(land, "relative", layers="first")
    assert list(one.per_layer) == ["first"]


def test_relative_flatness_by_probes():
    land = Net()
    exact = ti.sharpness(land, "relative")
    found = ti.sharpness(land, "relative", samples=300, exact=5)
    assert found.note == "Hutchinson" and found.stderr > 0
    assert abs(found.value - exact.value) < 4 * found.stderr
    assert list(found.per_layer) == list(exact.per_layer)


@pytest.mark.parametrize("adaptive", [False, True])
def test_averages_on_a_quadratic(adaptive):
    land = quadratic(30)
    at = land.center + draw(30, seed=4)
    A = land.matrix
    if adaptive:
        A = at.abs()[:, None] * A * at.abs()
    sigma = 0.2
    options = {"sigma": sigma, "samples": 400, "at": at, "adaptive": adaptive}
    found = ti.sharpness(land, "average", **options)
    exact = sigma**2 * float(A.trace()) / 2
    assert abs(found.value - exact) < 4 * found.stderr
    # The variance of half of zAz is half of the squared Frobenius norm.
    spread = sigma**2 * float(A.norm()) / math.sqrt(2 * 400)
    assert found.stderr == pytest.approx(spread, rel=0.2)
    mean = ti.sharpness(land, "lpf", **options)
    assert mean.value == pytest.approx(found.value + float(land.loss(at)))
    z = sigma * draw(4000, 30).norm(dim=1)
    assert found.radius == pytest.approx(float(z.mean()), rel=0.01)
    default = ti.sharpness(land, "average", RHO)
    assert default.settings["sigma"] == pytest.approx(RHO / math.sqrt(30))


def test_curvature_kinds_are_exact():
    land = quadratic(20)
    spectrum = torch.linalg.eigvalsh(land.matrix)
    assert ti.sharpness(land, "trace").value == pytest.approx(
        float(land.matrix.trace()), rel=1e-10
    )
    top = ti.sharpness(land, "lambda_max")
    assert top.value == pytest.approx(float(spectrum[-1]), rel=1e-10)
    assert top.radius is None and top.stderr == 0
    negative = Quadratic(-quadratic(5, definite=True).matrix)
    assert ti.sharpness(negative, "lambda_max").value < 0


def test_pac_bayes_on_quadratics():
    land = Quadratic(4 * torch.eye(400, dtype=torch.float64))
    found = ti.sharpness(land, "pac_bayes", rise=0.1, samples=50)
    assert abs(found.value - 4 * 400 / 0.2) < 4 * found.stderr
    assert found.stderr / found.value < 0.02
    point = draw(400)
    scaled = ti.sharpness(land, "pac_bayes", at=point, adaptive="magnitude", samples=50)
    exact = 4 * float((point**2 + 1e-6).sum()) / 0.2
    assert abs(scaled.value - exact) < 4 * scaled.stderr
    flat = ti.sharpness(Quadratic(torch.zeros(3, 3).double()), "pac_bayes")
    assert flat.value == 0 and "does not rise" in flat.note


def test_m_sharpness_is_the_mean_over_batches():
    land = Net()
    found = ti.sharpness(land, "zeroth", 0.1, m=6)
    each = [ti.sharpness(piece, "zeroth", 0.1).value for piece in land.batches(6)]
    assert found.per_batch.tolist() == each
    assert found.value == pytest.approx(sum(each) / 4)
    assert found.value >= ti.sharpness(land, "zeroth", 0.1).value * 0.9
    with pytest.raises(InputError, match="with batches"):
        ti.sharpness(quadratic(), m=3)


def test_a_last_batch_of_fewer_examples_counts_by_them():
    land = relu_network()  # 22 examples: 8, 8 and 6
    found = ti.sharpness(land, "trace", m=8)
    shares = torch.tensor([8.0, 8.0, 6.0]).double() / 22
    mean = float(shares @ found.per_batch)
    assert found.value == pytest.approx(mean, rel=1e-12)
    # The Hessian is the mean over examples, so its trace is that of the whole.
    assert mean == pytest.approx(ti.sharpness(land, "trace").value, rel=1e-10)
    loss = float(land.loss(land.origin))
    assert found.settings["loss"] == pytest.approx(loss, rel=1e-12)
    spread = (shares * (found.per_batch - mean)).square().sum() * 3 / 2
    assert found.stderr == pytest.approx(float(spread.sqrt()), rel=1e-12)


class Walled(Quadratic):
    """A quadratic that has no value beyond a distance of ½."""

    def loss(self, points):
        values = super().loss(points)
        return torch.where(points.norm(dim=-1) > 0.5, float("nan"), values)

    def value_and_gradient(self, points):
        return self.loss(points), super().value_and_gradient(points)[1]


@pytest.mark.parametrize("kind", ["zeroth", "keskar", "average", "pac_bayes"])
def test_a_loss_that_is_nan_in_the_ball_is_said(kind):
    land = Walled(torch.eye(3).double())
    found = ti.sharpness(land, kind, 1.0, rise=0.4)
    assert "the loss is NaN at" in found.note
    within = ti.sharpness(land, kind, 0.01, sigma=1e-3, rise=1e-6)
    assert "NaN" not in within.note and math.isfinite(within.value)


def test_stationary_points_are_said():
    land = quadratic(5, definite=True)
    found = ti.sharpness(land, "zeroth", method="one_step")
    assert "random start" in found.note and found.value > 0
    uphill = Quadratic(-land.matrix, land.center)
    assert "0 is reported" in ti.sharpness(uphill, method="one_step").note


def test_results_repeat_and_leave_global_randomness_alone():
    land = Net()
    state = torch.random.get_rng_state()
    a, b = (ti.sharpness(land, "zeroth", 0.3, seed=4) for _ in range(2))
    assert a.value == b.value
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_table_has_a_radius_in_every_row_that_has_one():
    rows = ti.sharpness_table(Net(), rho=0.1)
    assert [row.kind for row in rows] == [
        "zeroth",
        "first",
        "average",
        "trace",
        "lambda_max",
    ]
    assert [row.radius is None for row in rows] == [False] * 3 + [True] * 2


def test_bad_input_is_refused():
    land = quadratic(4)
    raw = unwrap(ti.sharpness)
    for options, message in [
        ({"rho": 0.0}, "rho must be positive and finite, got 0.0"),
        ({"rho": -1.0}, "rho must be positive"),
        ({"sigma": 0.0}, "sigma must be positive"),
        ({"kind": "flat"}, "kind must be one of"),
        ({"method": "newton"}, "method must be"),
        ({"norm": "L7"}, "norm must be"),
        ({"adaptive": "rows"}, "adaptive must be"),
        ({"eta": -1.0, "adaptive": True}, "eta must be at least 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"kind": "fisher_rao"}, "needs a landscape with a Fisher"),
        ({"kind": "relative"}, "needs weight matrices"),
        ({"at": torch.full((4,), float("nan")).double()}, "NaN or infinite"),
    ]:
        with pytest.raises(InputError, match=message):
            raw(land, **options)
    with pytest.raises(InputError, match="all zero"):
        ti.sharpness(Quadratic(torch.eye(2).double()), adaptive=True)


def relu_network(dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(4, 6, bias=False),
            torch.nn.ReLU(),
            torch.nn.Linear(6, 5, bias=False),
            torch.nn.ReLU(),
            torch.nn.Linear(5, 3, bias=False),
        ).to(dtype)
    x, y = draw(22, 4, seed=7).to(dtype), torch.arange(22) % 3
    return NetworkLandscape(model, torch.nn.functional.cross_entropy, (x, y))


def test_fisher_rao_of_a_homogeneous_network():
    land = relu_network()
    x, y = draw(22, 4, seed=7), torch.arange(22) % 3
    f = land.model(x).detach()
    slope = f.softmax(1) - torch.nn.functional.one_hot(y, 3)
    inner = (slope * f).sum(1)
    found = ti.sharpness(land, "fisher_rao", fisher="empirical")
    assert found.value == pytest.approx(float(9 * inner.square().mean()), rel=1e-10)
    true = ti.sharpness(land, "fisher_rao")
    p = f.softmax(1)
    spread = (p * f**2).sum(1) - (p * f).sum(1) ** 2
    assert true.value == pytest.approx(float(9 * spread.mean()), rel=1e-10)
    assert true.note == "true Fisher" and true.evaluations >= 1


@pytest.mark.parametrize("kind", ["zeroth", "first"])
def test_a_network_is_measured_by_batches_and_left_alone(kind):
    land = relu_network()
    before = {k: v.clone() for k, v in land.model.state_dict().items()}
    rows = ti.sharpness(land, kind, 0.1, m=11, steps=5)
    each = [ti.sharpness(p, kind, 0.1, steps=5).value for p in land.batches(11)]
    assert rows.per_batch.tolist() == pytest.approx(each, rel=1e-12)
    assert rows.value == pytest.approx(sum(each) / 2)
    for name, value in land.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None for p in land.model.parameters())
    one = ti.sharpness(land, kind, 0.1, method="one_step")
    slope = float(land.gradient(land.origin).norm())
    assert one.evaluations <= 6
    if kind == "first":
        assert one.value >= 0.1 * slope


@pytest.mark.parametrize("kind", ["zeroth", "first", "average", "relative"])
def test_float32_agrees_with_float64(kind):
    low, high = relu_network(torch.float32), relu_network()
    high = high.at(low.origin.double())
    options = {"rho": 0.2, "steps": 10, "adaptive": True}
    a, b = (ti.sharpness(land, kind, **options) for land in (low, high))
    assert a.value == pytest.approx(b.value, rel=2e-3, abs=4 * b.stderr)
