"""Critical points: the Müller-Brown surface, index and kind, networks, bad input."""

import inspect

import numpy as np
import pytest
import torch
from scipy.optimize import root
from torch import nn

from instruments.muller_brown import MINIMA, SADDLES, MullerBrown
from thalweg import Landscape, NetworkLandscape, Quadratic
from thalweg import instruments as ti
from thalweg.data import digits
from thalweg.errors import InputError, StructureError
from thalweg.models import mlp

METHODS = ["newton", "gradient_norm"]


class Tilted(Landscape):
    """x³/3 + x per coordinate: g = x² + 1 never vanishes, |g| is stationary at 0."""

    def loss(self, points):
        return (points**3 / 3 + points).sum(-1)


def points(rows):
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
def test_muller_brown_to_eight_digits(method):
    truth = points(MINIMA + SADDLES)
    starts = truth + 0.03 * points([(1, -1), (-1, 1), (1, 1), (-1, -1), (1, 0)])
    found = ti.find_critical_points(MullerBrown(), starts, 1e-11, method=method)
    for one, exact in zip(found, truth, strict=True):
        assert one.status == "critical"
        torch.testing.assert_close(one.point, exact, rtol=0, atol=1e-8)
    assert [one.index for one in found] == [0, 0, 0, 1, 1]
    assert [one.kind for one in found] == ["minimum"] * 3 + ["saddle"] * 2
    assert sorted(one.cluster for one in found) == [0, 1, 2, 3, 4]


def test_muller_brown_as_scipy_finds_it():
    land = MullerBrown()

    def gradient(x):
        return land.gradient(torch.from_numpy(x)).numpy()

    for exact in MINIMA + SADDLES:
        solution = root(gradient, np.array(exact) + 0.01, tol=1e-14)
        (one,) = ti.find_critical_points(land, points(exact) - 0.01, 1e-12)
        np.testing.assert_allclose(one.point.numpy(), solution.x, atol=1e-9)


def grid():
    side = torch.linspace(0, 1, 5, dtype=torch.float64)
    return torch.cartesian_prod(-1.1 + 1.9 * side, 1.6 * side)


@pytest.mark.parametrize(
    ("index", "truth", "least"), [(0, MINIMA, 25), (1, SADDLES, 19)]
)
def test_following_reaches_the_index_asked_for_from_anywhere(index, truth, least):
    """Six of the starts climb out of the valleys, and say so."""
    found = ti.find_critical_points(
        MullerBrown(), grid(), 1e-12, method="follow", index=index, radius=0.1
    )
    ends = [one for one in found if one.status == "critical"]
    assert len(ends) >= least
    assert {one.index for one in ends} == {index}
    near = torch.stack([one.point for one in ends])
    gaps = torch.cdist(near, points(truth))
    assert gaps.min(dim=0).values.max() < 1e-8
    groups = torch.tensor([one.cluster for one in ends])
    for group in range(len(truth)):
        assert len(set(gaps[groups == group].argmin(dim=1).tolist())) == 1
    assert sorted(set(groups.tolist())) == list(range(len(truth)))


@pytest.mark.parametrize("method", METHODS)
def test_muller_brown_has_gradient_flat_places_that_are_not_critical(method):
    """Most of the starts end in one of three, where the gradient is in H's kernel."""
    found = ti.find_critical_points(MullerBrown(), grid(), 1e-10, method=method)
    flat = [one for one in found if one.status == "gradient_flat"]
    assert len(flat) >= 10
    for one in flat:
        assert one.gradient_norm > 10
        assert abs(one.eigenvalues).min() < 1e-3 * abs(one.eigenvalues).max()
    exact = points(MINIMA + SADDLES)
    for one in found:
        if one.status == "critical":
            assert torch.cdist(one.point[None], exact).min() < 1e-8


@pytest.mark.parametrize("settings", [{}, {"method": "follow", "index": 0}])
def test_starts_that_go_together_end_where_each_ends_alone(settings):
    together = ti.find_critical_points(MullerBrown(), grid()[:4], 1e-10, **settings)
    for one, start in zip(together, grid()[:4], strict=True):
        (alone,) = ti.find_critical_points(MullerBrown(), start, 1e-10, **settings)
        assert (one.steps, one.status) == (alone.steps, alone.status)
        torch.testing.assert_close(one.point, alone.point)


@pytest.mark.parametrize("method", METHODS)
def test_a_stationary_gradient_norm_is_no_critical_point(method):
    (one,) = ti.find_critical_points(Tilted(1), points([0.7]), method=method)
    assert one.status == one.kind == "gradient_flat"
    assert one.cluster == -1
    assert one.gradient_norm == pytest.approx(1.0, abs=1e-4)


def test_too_few_steps_are_not_convergence():
    (one,) = ti.find_critical_points(MullerBrown(), points([0.3, 1.0]), max_steps=1)
    assert (one.status, one.steps, one.cluster) == ("not_converged", 1, -1)


@pytest.mark.parametrize(
    ("diagonal", "kind", "index", "nullity"),
    [
        ([1.0, 2.0, 3.0], "minimum", 0, 0),
        ([-1.0, 2.0, 3.0], "saddle", 1, 0),
        ([-1.0, -2.0, 0.0], "saddle", 2, 1),
        ([-1.0, -2.0, -3.0], "maximum", 3, 0),
    ],
)
def test_index_nullity_and_kind_of_a_quadratic(diagonal, kind, index, nullity):
    land = Quadratic(torch.diag(points(diagonal)))
    (one,) = ti.find_critical_points(land, points([1.0, 1.0, 1.0]))
    assert (one.kind, one.index, one.nullity) == (kind, index, nullity)


@pytest.mark.parametrize("settings", [{}, {"method": "follow", "index": 2}])
def test_above_the_dense_limit_the_frame_is_a_krylov_space(settings):
    diagonal = torch.linspace(1, 3, 600, dtype=torch.float64)
    diagonal[:2] = points([-2.0, -1.0])
    land = Quadratic(torch.diag(diagonal))
    start = torch.ones(600, dtype=torch.float64)
    (one,) = ti.find_critical_points(land, start, 1e-8, radius=100.0, **settings)
    assert (one.status, one.index, one.nullity) == ("critical", 2, None)
    assert one.point.norm() < 1e-6
    torch.testing.assert_close(one.eigenvalues[:2], points([-2.0, -1.0]))
    assert one.counted


@pytest.mark.parametrize(("copies", "counted"), [(5, True), (140, False)])
def test_above_the_dense_limit_copies_of_an_eigenvalue_are_counted(copies, counted):
    diagonal = torch.linspace(1, 3, 600, dtype=torch.float64)
    diagonal[:copies] = -1.0
    land = Quadratic(torch.diag(diagonal))
    (one,) = ti.find_critical_points(land, torch.zeros(600, dtype=torch.float64))
    assert one.counted == counted
    assert one.index == copies if counted else 128 <= one.index <= copies


def test_above_the_dense_limit_a_curved_landscape():
    """Coordinates x⁴/4 - x²/2: every choice of -1, 0, 1 is critical."""

    class DoubleWells(Landscape):
        def loss(self, points):
            return (points**4 / 4 - points**2 / 2).sum(-1)

    signs = torch.ones(520, dtype=torch.float64)
    signs[::7] = -1.0
    signs[:3] = 0.0  # maxima along three coordinates
    start = signs + 0.1 * torch.cos(torch.arange(520.0, dtype=torch.float64))
    for settings in ({}, {"method": "gradient_norm"}):
        (one,) = ti.find_critical_points(DoubleWells(520), start, 1e-9, **settings)
        assert (one.kind, one.index) == ("saddle", 3)
        torch.testing.assert_close(one.point, signs, rtol=0, atol=1e-7)


@pytest.mark.parametrize("hidden", [1, 8])  # 85 and 610 parameters
def test_a_network_is_trained_to_a_critical_point_and_left_as_it_was(hidden):
    data = digits().subset(range(200))
    model = mlp((64, hidden, 10), seed=0).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs, targets = data.tensors
    land = NetworkLandscape(
        model, nn.CrossEntropyLoss(), (inputs.double(), targets), weight_decay=0.01
    )
    (one,) = ti.find_critical_points(
        land, land.origin, method="follow", index=0, radius=2.0
    )
    assert (one.kind, one.index) == ("minimum", 0)
    assert land.gradient(one.point).norm() <= 1e-6 * land.gradient(land.origin).norm()
    assert one.value < float(land.loss(land.origin))
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert model.training and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("starts", "settings", "error", "message"),
    [
        ([0.0, 0.0, 0.0], {}, StructureError, r"starts must have shape \(2,\)"),
        ([float("nan"), 0.0], {}, InputError, "not finite"),
        ([0.0, 0.0], {"method": "follow"}, InputError, "needs an index"),
        ([0.0, 0.0], {"index": 1}, InputError, "the others take none"),
        ([0.0, 0.0], {"method": "follow", "index": 3}, InputError, "from 0 to 2"),
        ([0.0, 0.0], {"tol": 0.0}, InputError, "tol must be positive"),
        ([0.0, 0.0], {"max_steps": 0}, InputError, "max_steps must be positive"),
        ([0.0, 0.0], {"method": "secant"}, InputError, "method must be one of"),
        ([1e9, 0.0], {}, InputError, "the gradient at one of starts is not finite"),
    ],
)
def test_bad_input_is_refused(starts, settings, error, message):
    with pytest.raises(error, match=message):
        inspect.unwrap(ti.find_critical_points)(
            MullerBrown(), points(starts), **settings
        )
