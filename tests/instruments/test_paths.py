"""Paths around a ring, against quadrature; and between networks of digits."""

from inspect import unwrap

import numpy as np
import pytest
import torch
from scipy.integrate import quad, trapezoid
from scipy.optimize import minimize_scalar
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from instruments.muller_brown import MINIMA, SADDLES, MullerBrown
from thalweg import NetworkLandscape
from thalweg import instruments as ti
from thalweg.data import digits
from thalweg.errors import (
    CheckpointError,
    InputError,
    NonFiniteLossError,
    StoreError,
    StructureError,
)
from thalweg.landscapes import Curve, Landscape, NetworkCurve
from thalweg.models import mlp
from thalweg.reporting import line_figure
from thalweg.training import fit


class Ring(Landscape):
    """(|x|^2 - 1)^2: a valley along the unit circle around a hill of height 1."""

    def __init__(self):
        super().__init__(2)

    def loss(self, points):
        return (points.square().sum(-1) - 1) ** 2


WEST, EAST = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)


def best_height(weighted):
    """Return h of the pivot (0, h) of least mean loss, by quadrature alone."""

    def loss(t, h):
        x, y = 2 * t - 1, 2 * t * (1 - t) * h
        return (x * x + y * y - 1) ** 2

    def speed(t, h):
        return np.hypot(2.0, 2 * (1 - 2 * t) * h) if weighted else 1.0

    def mean(h):
        above = quad(lambda t: loss(t, h) * speed(t, h), 0, 1, epsabs=1e-13)[0]
        return above / quad(lambda t: speed(t, h), 0, 1, epsabs=1e-13)[0]

    found = minimize_scalar(mean, bounds=(0.5, 4), options={"xatol": 1e-10})
    return found.x, found.fun


@pytest.mark.parametrize("weighted", [False, True])
def test_a_bezier_curve_of_one_bend_has_the_best_height(weighted):
    height, mean = best_height(weighted)
    path = ti.connect(
        Ring(),
        WEST,
        EAST,
        jitter=0.3,
        steps=450,
        length_weighted=weighted,
        points=201,
    )
    x, y = path.pivots[1].tolist()
    assert abs(x) < 5e-3 and abs(y) == pytest.approx(height, abs=5e-3)
    found = path.mean_by_length if weighted else path.mean
    assert found == pytest.approx(mean, rel=1e-3)


def test_curves_go_around_the_hill_that_the_line_crosses():
    straight = ti.barrier(Ring(), WEST, EAST)
    assert straight.value == pytest.approx(1.0, abs=1e-7)
    for kind, highest in (("bezier", 0.02), ("polyline", 0.15)):
        path = ti.connect(
            Ring(),
            WEST,
            EAST,
            kind,
            bends=3,
            jitter=0.3,
            steps=250,
            length_weighted=True,
        )
        assert path.max < highest
        assert 0.97 * np.pi < path.length < 1.3 * np.pi
        assert path.barrier.value == pytest.approx(path.max, abs=1e-12)
        assert torch.equal(path.curve(0.0), WEST)
        assert torch.equal(path.curve(1.0), EAST)
        assert len(path.losses) == 250


def test_the_dataset_of_a_path():
    path = ti.connect(Ring(), WEST, EAST, bends=2, jitter=0.3, points=9, steps=50)
    line, curve = path.line, path.curve
    assert line["loss"].dims == ("t",) and line.sizes["t"] == 9
    t = torch.tensor(line["t"].values)
    np.testing.assert_allclose(line["loss"], Ring().loss(curve(t)), rtol=1e-14)
    np.testing.assert_allclose(line["length"], curve.lengths(line["t"].values))
    assert float(line["length"][-1]) == path.length
    distance = (curve(t) - WEST).norm(dim=1)
    np.testing.assert_allclose(line["displacement"], distance, rtol=1e-14)
    assert path.mean == pytest.approx(trapezoid(line["loss"], line["t"]))
    assert line.attrs["kind"] == "bezier" and line.attrs["seed"] == "0"
    assert '"gradients": 50' in line.attrs["cost"]
    assert path.max >= float(line["loss"].max())
    drawn = line_figure(line)
    np.testing.assert_array_equal(drawn.data[0].y, line["loss"])


def test_a_path_is_a_function_of_its_seed():
    def run(seed):
        return ti.connect(Ring(), WEST, EAST, jitter=0.3, steps=40, seed=seed)

    first, again, other = run(3), run(3), run(4)
    assert torch.equal(first.pivots, again.pivots)
    assert first.line.equals(again.line)
    assert not torch.equal(first.pivots, other.pivots)


class Fragile(Ring):
    """Is interrupted once, at the gradient of that number."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def value_and_gradient(self, points):
        self.calls -= 1
        if self.calls == 0:
            raise KeyboardInterrupt
        return super().value_and_gradient(points)


@pytest.mark.parametrize(("kind", "steps"), [("bezier", 220), ("neb", 110)])
def test_an_interrupted_path_goes_on_to_the_same_bits(kind, steps, tmp_path):
    options = {"kind": kind, "steps": steps, "jitter": 0.3, "rounds": 2, "seed": 2}
    whole = ti.connect(Ring(), WEST, EAST, **options)
    land = Fragile(calls=160)
    with pytest.raises(KeyboardInterrupt):
        ti.connect(land, WEST, EAST, **options, store=tmp_path / "path")
    resumed = ti.connect(land, WEST, EAST, **options, store=tmp_path / "path")
    assert torch.equal(whole.pivots, resumed.pivots)
    assert whole.line.equals(resumed.line)
    np.testing.assert_array_equal(whole.losses, resumed.losses)
    finer = ti.connect(land, WEST, EAST, **options, store=tmp_path / "path", points=49)
    assert torch.equal(whole.pivots, finer.pivots)
    assert finer.line.sizes["t"] == 49
    with pytest.raises(StoreError, match="jitter"):
        options["jitter"] = 0.4
        ti.connect(land, WEST, EAST, **options, store=tmp_path / "path")


def test_progress_counts_steps(capsys):
    ti.connect(Ring(), WEST, EAST, jitter=0.3, steps=30, progress="plain")
    assert "30/30" in capsys.readouterr().err


def test_another_optimizer():
    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.2, momentum=0.9)

    path = ti.connect(Ring(), WEST, EAST, bends=3, jitter=0.3, optimizer=sgd, steps=300)
    assert path.max < 0.02


class Holed(Ring):
    def loss(self, points):
        near = points.square().sum(-1) < 0.01
        return torch.where(near, float("inf"), super().loss(points))


def test_a_loss_that_is_not_finite_on_the_way():
    with pytest.raises(NonFiniteLossError, match=r"inf at t = 0\.\d+ of the path.*jit"):
        ti.connect(Holed(), WEST, EAST)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "spline"}, "kind must be one of .*'spline'"),
        ({"bends": 0}, "bends must be at least 1, got 0"),
        ({"rounds": 0, "kind": "neb"}, "rounds must be at least 1, got 0"),
        ({"length_weighted": True, "kind": "neb"}, "length_weighted belongs to"),
        ({"climb": True}, "climb belongs to kind='neb', got kind='bezier'"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"points": 1}, "points must be at least 2, got 1"),
        ({"jitter": -1.0}, "jitter must not be negative, got -1.0"),
        ({"jitter": float("nan")}, "jitter must not be negative, got nan"),
        ({"batch_size": 10}, "this Ring has no rows"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        unwrap(ti.connect)(Ring(), WEST, EAST, **options)


def test_ends_that_are_refused():
    for kind in ("bezier", "polyline", "neb"):
        with pytest.raises(InputError, match="a and b are the same point"):
            ti.connect(Ring(), WEST, WEST.clone(), kind)
    with pytest.raises(CheckpointError, match="b has 1 entries that are NaN"):
        ti.connect(Ring(), WEST, torch.tensor([1.0, float("nan")]).double())
    with pytest.raises(StructureError, match=r"b: a point .* shape \(2,\), got \(3,\)"):
        ti.connect(Ring(), WEST, torch.zeros(3).double())


# Elastic bands --------------------------------------------------------------------


def test_a_band_passes_both_saddles_of_muller_and_brown():
    land = MullerBrown()
    a, b = torch.tensor(MINIMA[:2], dtype=torch.float64)
    high, low = torch.tensor(SADDLES, dtype=torch.float64)
    assert land.loss(high).item() == pytest.approx(-40.66484, abs=1e-5)  # as published
    straight = ti.barrier(land, a, b)
    path = ti.connect(land, a, b, "neb", steps=100, points=201)
    assert straight.peak > 10
    assert path.max == pytest.approx(land.loss(high).item(), abs=5e-3)
    assert (path.curve(path.barrier.t_peak) - high).norm() < 5e-3
    between = path.curve(torch.linspace(0, 1, 1001).double())
    assert (between - low).norm(dim=1).min() < 0.02
    assert len(path.pivots) > 7  # some were inserted
    assert path.curve.shape == "polyline"
    assert len(path.losses) == 4 * 100


def test_the_climbing_pivot_ends_on_the_saddle():
    land = MullerBrown()
    a, b = torch.tensor(MINIMA[:2], dtype=torch.float64)
    high = torch.tensor(SADDLES[0], dtype=torch.float64)

    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=2e-4, momentum=0.5)

    path = ti.connect(land, a, b, "neb", steps=150, climb=True, optimizer=sgd)
    nearest = (path.pivots - high).norm(dim=1).min()
    assert nearest < 1e-8
    assert path.max == pytest.approx(land.loss(high).item(), abs=1e-4)
    sides = path.pivots.diff(dim=0).norm(dim=1)
    shares = sides.cumsum(0) / sides.sum()
    torch.testing.assert_close(path.curve.knots[1:], shares, rtol=1e-12, atol=0)


def test_a_band_around_the_hill():
    path = ti.connect(
        Ring(), WEST, EAST, "neb", jitter=0.3, bends=7, rounds=1, steps=200
    )
    inner = path.pivots[1:-1].norm(dim=1)
    torch.testing.assert_close(inner, torch.ones_like(inner), rtol=0, atol=1e-4)
    assert path.length == pytest.approx(np.pi, rel=0.02)
    with pytest.raises(NonFiniteLossError, match="infinite at 1 of 1 pivots after 0"):
        ti.connect(Holed(), WEST, EAST, "neb", bends=1)


# Networks -------------------------------------------------------------------------


def cross_entropy(model, batch, state):
    inputs, targets = batch
    return F.cross_entropy(model(inputs), targets)


@pytest.fixture(scope="module")
def trained():
    data = digits()
    models = [mlp((64, 32, 10), seed=seed) for seed in (1, 2)]
    for seed, model in enumerate(models):
        adam = torch.optim.Adam(model.parameters(), lr=3e-3)
        fit(model, cross_entropy, data, adam, epochs=12, seed=seed)
    return NetworkLandscape(models[0], F.cross_entropy, data), models


def test_two_networks_of_digits_are_connected_below_the_line(trained):
    land, models = trained
    before = [p.clone() for p in models[0].parameters()]
    straight = ti.barrier(land, *models)
    path = ti.connect(land, *models)
    assert straight.value > 0.15
    assert path.max < straight.peak - 0.15
    assert path.barrier.value < 0.1 * straight.value
    assert "accuracy" in path.line
    for end, model in zip((0, -1), models, strict=True):
        expected = float(land.loss(land.flatten(model)))
        assert float(path.line["loss"][end]) == expected
    for kept, now in zip(before, models[0].parameters(), strict=True):
        assert torch.equal(kept, now) and now.grad is None


def test_a_band_between_networks(trained):
    land, models = trained
    straight = ti.barrier(land, *models)
    path = ti.connect(land, *models, "neb", bends=3, steps=50, rounds=2)
    assert path.max < straight.peak - 0.1
    assert "accuracy" in path.line


def test_batches_of_rows(trained):
    land, models = trained
    a, b = (land.flatten(model) for model in models)
    with pytest.raises(InputError, match="at least 1, None or 'auto', got 0"):
        ti.connect(land, a, b, batch_size=0)
    whole = ti.connect(land, a, b, batch_size=None, steps=3)
    one = ti.connect(land, a, b, batch_size=2000, steps=3)
    assert torch.equal(whole.pivots, one.pivots)
    summed = NetworkLandscape(
        models[0], F.cross_entropy, land.data, reduction="sum", weight_decay=0.1
    )
    with pytest.raises(InputError, match="do not add up"):
        ti.connect(summed, a, b, batch_size=64)
    assert ti.connect(summed, a, b, steps=2).max > 0  # takes all


def normed(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)
    )
    x = torch.randn(64, 4) * (1 + seed) + seed
    model(x)  # moves the running statistics
    return model.eval()


@pytest.fixture
def normalized():
    with torch.random.fork_rng():
        models = [normed(seed) for seed in (0, 1)]
        data = torch.randn(60, 4), torch.randint(3, (60,))
    return models, data


@pytest.mark.parametrize("kind", ["bezier", "neb"])
def test_buffers_of_the_checkpoints_move_along(kind, normalized):
    models, data = normalized
    land = NetworkLandscape(models[0], F.cross_entropy, data)
    path = ti.connect(land, *models, kind, steps=20, batch_size=16, rounds=1)
    own = [F.cross_entropy(m(data[0]), data[1]).item() for m in models]
    np.testing.assert_allclose(path.line["loss"][[0, -1]], own, rtol=1e-6)
    bare = ti.connect(land, *[land.flatten(m) for m in models], steps=20)
    assert float(bare.line["loss"][-1]) != pytest.approx(own[1], rel=1e-3)
    with pytest.raises(InputError, match="some of the checkpoints only"):
        ti.connect(land, models[0], land.flatten(models[1]))


def test_derivatives_along_a_curve_hold_the_buffers_that_belong_to_t(normalized):
    models, (x, y) = normalized
    models = [model.double() for model in models]
    land = NetworkLandscape(models[0], F.cross_entropy, (x.double(), y))
    a, b = (land.flatten(model) for model in models)
    curve = Curve("bezier", torch.stack([a, (a + b).cos(), b]))
    along = NetworkCurve(land.between(*models), curve)
    first, second = (dict(model.named_buffers()) for model in models)

    def loss(s, t):
        p, start = (1 - s) ** 2 * a + 2 * s * (1 - s) * (a + b).cos() + s**2 * b, 0
        state = {}
        for name, value in models[0].named_parameters():
            state[name] = p[start : start + value.numel()].view(value.shape)
            start += value.numel()
        state |= {
            n: torch.lerp(first[n].double(), second[n].double(), t) for n in first
        }
        return F.cross_entropy(functional_call(models[0], state, (x.double(),)), y)

    t = torch.tensor([[0.0], [0.3], [1.0]], dtype=torch.float64)
    values, slopes = along.value_and_gradient(t)
    for (s,), value, slope in zip(t, values, slopes, strict=True):
        exact, gradient = torch.func.grad_and_value(loss)(s, s.item())[::-1]
        torch.testing.assert_close(value, exact, rtol=1e-10, atol=0)
        torch.testing.assert_close(slope[0], gradient, rtol=1e-10, atol=0)
    torch.testing.assert_close(along.loss(t), values, rtol=1e-12, atol=0)
    curvature = float(along.hessian(t[1]) @ torch.ones(1).double())
    exact = torch.func.grad(torch.func.grad(loss))(t[1, 0], 0.3)
    assert curvature == pytest.approx(float(exact), rel=1e-10)


def test_batch_norm_is_recalibrated_along_a_path(normalized):
    models, data = normalized
    land = NetworkLandscape(models[0], F.cross_entropy, data, buffers="recalibrate")
    path = ti.connect(land, *models, steps=20, batch_size=16, points=5)
    for t, found in zip(path.line["t"].values, path.line["loss"].values, strict=True):
        assert float(land.loss(path.curve(float(t)))) == pytest.approx(found, rel=1e-5)
