"""Directions against closed forms."""

import warnings
from inspect import unwrap

import pytest
import torch

from thalweg import NetworkLandscape
from thalweg import instruments as ti
from thalweg.errors import (
    CheckpointError,
    DirectionWarning,
    InputError,
    StructureError,
)
from thalweg.landscapes import Block, Layout, Quadratic


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def layered():
    """A quadratic whose point reads as a small convolutional network."""
    shapes = [
        ("conv", (4, 3, 2, 2), 0, 1),
        ("bias", (4,), None, 1),
        ("up", (4, 3, 2, 2), 1, 2),
        ("table", (3, 5), None, 1),
        ("gain", (), None, 1),
    ]
    blocks, offset = [], 0
    for name, shape, axis, groups in shapes:
        blocks.append(Block(name, shape, offset, filter_axis=axis, groups=groups))
        offset += blocks[-1].size
    layout = Layout(tuple(blocks))
    return Quadratic(
        torch.eye(layout.dim, dtype=torch.float64),
        origin=draw(layout.dim),
        layout=layout,
    )


def loop_norms(block):
    """Filter norms by an explicit loop, the grouped axis by hand."""
    return torch.stack([f.norm() for f in block.unbind(0)])


@pytest.mark.parametrize("k", [1, 3])
def test_filter_norms_have_ratio_one(k):
    land = layered()
    ds = ti.random_directions(land, k)
    assert ds.normalize == "filter" and ds.origin is None
    weights = land.layout.split(land.origin)
    for j in range(k):
        d = land.layout.split(ds.basis[:, j])
        torch.testing.assert_close(loop_norms(d["conv"]), loop_norms(weights["conv"]))
        for half in (slice(0, 2), slice(2, 4)):
            for channel in range(3):
                torch.testing.assert_close(
                    d["up"][half, channel].norm(), weights["up"][half, channel].norm()
                )
        torch.testing.assert_close(d["table"].norm(), weights["table"].norm())
        assert not d["bias"].any() and d["gain"] == 0


def test_filters_of_a_transposed_convolution_are_scaled_by_one_factor_each():
    land = layered()
    raw = ti.random_directions(land, 1, normalize="none")
    scaled = ti.normalize(raw, land, "filter")
    a, b = (land.layout.split(ds.basis[:, 0])["up"] for ds in (raw, scaled))
    ratio = b / a
    for half in (slice(0, 2), slice(2, 4)):
        spread = ratio[half].amax((0, 2, 3)) - ratio[half].amin((0, 2, 3))
        assert spread.max() < 1e-12
    assert (ratio[0, 0] - ratio[2, 0]).abs().min() > 1e-6


def test_other_schemes_scale_their_own_groups():
    land = layered()
    raw = ti.random_directions(land, 2, "none")
    theta = land.origin
    layer = ti.normalize(raw, land, "layer", ignore=None)
    weights, d = land.layout.split(theta), land.layout.split(layer.basis[:, 1])
    for name in land.layout.names:
        torch.testing.assert_close(d[name].norm(), weights[name].norm())
    model = ti.normalize(raw, land, "model")
    torch.testing.assert_close(model.basis.norm(dim=0), theta.norm().expand(2))
    unit = ti.normalize(raw, land, "unit")
    torch.testing.assert_close(unit.basis.norm(dim=0), torch.ones(2).double())
    weight = ti.normalize(raw, land, "weight", ignore=None)
    torch.testing.assert_close(weight.basis, raw.basis * theta[:, None])
    assert torch.equal(ti.normalize(raw, land, "none").basis, raw.basis)


def test_dead_filters_do_not_move_and_empty_directions_stay():
    land = layered()
    theta = land.origin.clone()
    land.layout.split(theta)["conv"][1] = 0
    raw = ti.random_directions(land, 1, "none")
    land.layout.split(raw.basis[:, 0])["conv"][2] = 0
    d = land.layout.split(ti.normalize(raw, land, at=theta).basis[:, 0])["conv"]
    assert not d[1].any() and not d[2].any() and d[0].any()
    assert torch.isfinite(d).all()


def test_random_draws_extend_and_do_not_depend_on_dtype():
    land = layered()
    three = ti.random_directions(land, 3, "none", seed=4)
    one = ti.random_directions(land, 1, "none", seed=4)
    assert torch.equal(three.basis[:, :1], one.basis)
    low = Quadratic(torch.eye(land.dim), origin=land.origin.float(), layout=land.layout)
    assert torch.equal(
        ti.random_directions(low, 1, "none", seed=4).basis.double(), one.basis
    )
    other = ti.random_directions(land, 1, "none", seed=5)
    assert not torch.equal(other.basis, one.basis)
    state = torch.random.get_rng_state()
    ti.random_directions(land, 2)
    assert torch.equal(state, torch.random.get_rng_state())


def test_auto_is_unit_without_filters():
    land = Quadratic(torch.eye(4, dtype=torch.float64), origin=draw(4))
    ds = ti.random_directions(land, 2)
    assert ds.normalize == "unit" and ds.k == 2
    with pytest.raises(InputError, match="every direction to zero"):
        ti.normalize(ds, land, "filter")


def test_scaled_directions_warn_once_at_another_point():
    land = layered()
    filtered, unit = (
        ti.random_directions(land, 2),
        ti.random_directions(land, 2, "unit"),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(ti.resolve_point(land, filtered), land.origin)
        ti.resolve_point(land, unit, land.origin + 1)
    with pytest.warns(DirectionWarning, match="another point") as caught:
        ti.resolve_point(land, filtered, land.origin + 1)
    assert len(caught) == 1


def test_the_point_is_at_then_the_planes_origin_then_the_lands():
    land = Quadratic(torch.eye(3, dtype=torch.float64))
    a, b, at = draw(3), draw(3, seed=1), draw(3, seed=2)
    line = ti.between(land, a, b)
    assert torch.equal(ti.resolve_point(land, line, at), at)
    assert torch.equal(ti.resolve_point(land, line), a)
    assert torch.equal(ti.resolve_point(land, torch.eye(3)), land.origin)


def test_gradient_direction():
    land = Quadratic(torch.diag(torch.tensor([3.0, 4.0]).double()))
    ds = ti.gradient_direction(land, at=torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(ds.basis[:, 0], torch.tensor([0.6, 0.8]).double())
    assert ds.values.tolist() == [5.0]
    with pytest.raises(InputError, match="norm 0.0"):
        ti.gradient_direction(land)


@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
@pytest.mark.parametrize("k", [2, 5])
def test_hessian_directions_are_eigenvectors_of_fixed_sign(which, k):
    root = torch.linalg.qr(draw(5, 5)).Q
    spectrum = torch.tensor([-5.0, -1.0, 0.5, 2.0, 4.0]).double()
    A = (root * spectrum) @ root.T
    land = Quadratic((A + A.T) / 2)
    ds = ti.hessian_directions(land, k, which)
    key = {"LA": -spectrum, "SA": spectrum, "LM": -spectrum.abs()}[which]
    torch.testing.assert_close(ds.values, spectrum[key.argsort()[:k]])
    torch.testing.assert_close(A @ ds.basis, ds.basis * ds.values, atol=1e-5, rtol=1e-5)
    assert (ds.basis.gather(0, ds.basis.abs().argmax(0, keepdim=True)) > 0).all()
    with pytest.raises(InputError, match="between 1 and the dimension 5, got 6"):
        ti.hessian_directions(land, 6)


def test_plane_passes_through_its_three_points():
    land = Quadratic(torch.eye(6, dtype=torch.float64))
    corners = [draw(6, seed=s) for s in range(3)]
    plane = ti.plane_through(land, *corners)
    assert abs(plane.gram[0, 1]) < 1e-12
    for name, corner in zip("abc", corners, strict=True):
        reached = plane.origin + plane.basis @ plane.anchors[name]
        torch.testing.assert_close(reached, corner, rtol=1e-12, atol=1e-12)
        found, residual = plane.project(corner)
        torch.testing.assert_close(found, plane.anchors[name], rtol=1e-10, atol=1e-12)
        assert residual < 1e-12
    affine = plane.affine(torch.stack(list(plane.anchors.values())))
    torch.testing.assert_close(affine, torch.eye(3).double())
    weights = draw(4, 2)
    mixed = plane.affine(weights) @ torch.stack(corners)
    torch.testing.assert_close(mixed, plane.origin + weights @ plane.basis.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [1.0, 1e-3])
@pytest.mark.parametrize("s", [0.3, 0.5, 3.0, -7.0])
def test_points_collinear_but_for_their_rounding_are_refused(dtype, gap, s):
    land = Quadratic(torch.eye(1000, dtype=dtype))
    a, step, aside = (draw(1000, seed=i).to(dtype) for i in range(3))
    b = a + gap * step
    with pytest.raises(InputError, match="are collinear: c lies at"):
        ti.plane_through(land, a, b, torch.lerp(a, b, s))
    plane = ti.plane_through(land, a, b, a + gap * aside)
    assert plane.k == 2


def test_collinear_and_equal_points_are_refused():
    land = Quadratic(torch.eye(3, dtype=torch.float64))
    a, b = draw(3), draw(3, seed=1)
    with pytest.raises(InputError, match="collinear: c lies at 3"):
        ti.plane_through(land, a, b, a + 3 * (b - a))
    with pytest.raises(InputError, match="same point"):
        ti.plane_through(land, a, a, b)
    with pytest.raises(InputError, match="same point"):
        ti.between(land, a, a)


def test_checkpoints_are_read_as_points_and_state_dicts():
    land = layered()
    state = land.layout.split(land.origin + 1)
    line = ti.between(land, land.origin, state)
    torch.testing.assert_close(line.basis, torch.ones(land.dim, 1).double())
    with pytest.raises(CheckpointError, match="b has 1 entries"):
        bad = land.origin.clone()
        bad[3] = float("nan")
        ti.between(land, land.origin, bad)
    with pytest.raises(InputError, match="got str"):
        unwrap(ti.read_point)(land, "file")
    with pytest.raises(StructureError, match="b: .*'gain' is missing"):
        ti.between(land, land.origin, {n: state[n] for n in land.layout.names[:-1]})


def test_projection_solves_the_gram_system():
    land = Quadratic(torch.eye(7, dtype=torch.float64))
    D = draw(7, 3)
    D[:, 2] = 1e4 * (D[:, 0] + 0.01 * D[:, 2])
    ds = ti.as_directions(D, land)
    points = draw(5, 2, 7, seed=1)
    coordinates, residual = ds.project(points, origin=land.origin)
    expected = torch.linalg.lstsq(D, points.reshape(-1, 7).T).solution.T
    torch.testing.assert_close(coordinates.reshape(-1, 3), expected)
    left = points - coordinates @ D.T
    torch.testing.assert_close(residual, left.norm(dim=-1) / points.norm(dim=-1))
    assert float(ds.project(land.origin, land.origin).residual) == 0
    with pytest.raises(InputError, match="give `origin="):
        ds.project(points)
    with pytest.raises(InputError, match="dependent"):
        ti.as_directions(D[:, [0, 0]]).project(points, land.origin)
    with pytest.raises(StructureError, match="dimension 3"):
        unwrap(ti.Directions.project)(ds, torch.zeros(3), land.origin)


@pytest.mark.parametrize("metric", [None, "diagonal", "operator"])
def test_orthogonalize_keeps_lengths_and_the_span(metric):
    D = draw(8, 3)
    M = torch.eye(8).double()
    given = None
    if metric == "diagonal":
        given = draw(8, seed=3).abs() + 0.1
        M = torch.diag(given)
    elif metric == "operator":
        root = draw(8, 8, seed=3)
        M = root @ root.T
        M = (M + M.T) / 2
        given = Quadratic(M).hessian(torch.zeros(8).double())
    Q = ti.orthogonalize(ti.as_directions(D), given).basis
    gram, before = Q.T @ M @ Q, D.T @ M @ D
    torch.testing.assert_close(gram, torch.diag(before.diagonal()), atol=1e-9, rtol=0)
    assert torch.linalg.matrix_rank(torch.cat([D, Q], 1)) == 3
    torch.testing.assert_close(Q[:, 0], D[:, 0])
    with pytest.raises(InputError, match="direction 1 depends"):
        ti.orthogonalize(ti.as_directions(D[:, [0, 0]]))


@pytest.mark.parametrize("center", ["final", "mean", "first"])
def test_principal_directions_match_a_dense_svd(center, monkeypatch):
    monkeypatch.setattr("thalweg.instruments.principal.BLOCK", 30)
    states = draw(6, 40) * torch.logspace(0, -2, 40).double()
    ds = ti.pca_directions(states, 3, center=center)
    origin = {"final": states[-1], "mean": states.mean(0), "first": states[0]}[center]
    torch.testing.assert_close(ds.origin, origin)
    _, s, Vt = torch.linalg.svd(states - origin, full_matrices=False)
    for j in range(3):
        v = Vt[j] * Vt[j][Vt[j].abs().argmax()].sign()
        torch.testing.assert_close(ds.basis[:, j], v, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(ds.values, (s**2 / (s**2).sum())[:3])
    listed = ti.pca_directions(list(states), 3, center=center)
    assert torch.equal(listed.basis, ds.basis)
    with pytest.raises(InputError, match="rank 5"):
        ti.pca_directions(states, 6, center=center)


def test_bad_input_is_refused():
    land = layered()
    ds = ti.random_directions(land, 1)
    pca = ti.pca_directions(draw(4, land.dim), 2)
    with pytest.raises(InputError, match="would bend"):
        ti.normalize(pca, land, "filter")
    with pytest.raises(InputError, match="scheme must be .* got 'filters'"):
        unwrap(ti.normalize)(ds.basis, land, "filters")
    with pytest.raises(InputError, match="k must be at least 1, got 0"):
        ti.random_directions(land, 0)
    with pytest.raises(StructureError, match="dimension 3 do not fit"):
        ti.normalize(torch.ones(3, 1), land)
    with pytest.raises(InputError, match="must be finite"):
        ti.as_directions(torch.full((land.dim, 1), float("nan")), land)
    with pytest.raises(InputError, match="1 entries that are NaN"):
        bad = land.origin.clone()
        bad[0] = float("nan")
        ti.normalize(ds, land, at=bad)
    with pytest.raises(InputError, match="center must be"):
        unwrap(ti.pca_directions)(draw(3, 4), 1, center="last")
    with pytest.raises(InputError, match="NaN or infinite"):
        ti.pca_directions(torch.full((3, 4), float("inf")), 1)


def convolutional(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3),
            torch.nn.BatchNorm2d(4),
            torch.nn.ConvTranspose2d(4, 6, 3, groups=2),
            torch.nn.Flatten(),
            torch.nn.LazyLinear(3),
        )


def on_network(seed=0):
    model = convolutional(seed)
    x = draw(5, 1, 6, 6).float()
    model.train()(x)
    data = x, torch.tensor([0, 1, 2, 0, 1])
    return NetworkLandscape(model.eval(), torch.nn.CrossEntropyLoss(), data)


def test_filters_of_a_network():
    land = on_network()
    ds = ti.random_directions(land, 1, seed=3)
    assert ds.normalize == "filter"
    d, weights = (land.layout.split(v) for v in (ds.basis[:, 0], land.origin))
    for name, module in land.model.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            got, want = d[f"{name}.weight"], weights[f"{name}.weight"]
            torch.testing.assert_close(loop_norms(got), loop_norms(want))
        if isinstance(module, torch.nn.ConvTranspose2d):
            got, want = d[f"{name}.weight"], weights[f"{name}.weight"]
            for half in (slice(0, 2), slice(2, 4)):
                for channel in range(3):
                    torch.testing.assert_close(
                        got[half, channel].norm(), want[half, channel].norm()
                    )
        if hasattr(module, "bias"):
            assert not d[f"{name}.bias"].any()
    assert not d["1.weight"].any()
    # Functional check: an output channel's filter is what its output depends on.
    up = land.model[2]
    x = draw(1, 4, 4, 4).float()
    before = up(x)
    with torch.no_grad():
        up.weight[2:4, 1] += 1
    changed = ((up(x) - before).abs().sum((0, 2, 3)) > 0).nonzero()
    assert changed.flatten().tolist() == [4]


def test_modules_keep_their_buffers_in_planes():
    land = on_network()
    others = [convolutional(seed) for seed in (1, 2)]
    for i, other in enumerate(others):
        other.train()(draw(5, 1, 6, 6, seed=9 + i).float())
    plane = ti.plane_through(land, land.model, others[0], others[1].state_dict())
    assert len(plane.buffers) == 3
    assert set(plane.buffers[0]) == {"1.running_mean", "1.running_var"}
    for kept, model in zip(plane.buffers, (land.model, *others), strict=True):
        assert torch.equal(kept["1.running_mean"], model[1].running_mean)
    line = ti.between(land, land.model, others[1])
    torch.testing.assert_close(line.origin + line.basis[:, 0], land.flatten(others[1]))
    assert ti.between(land, land.origin, land.origin + 1).buffers is None
    with pytest.raises(InputError, match="some of the checkpoints only"):
        ti.between(land, land.origin, others[0])
    with pytest.raises(StructureError, match="does not fit"):
        ti.between(land, land.model, torch.nn.Linear(2, 2))
