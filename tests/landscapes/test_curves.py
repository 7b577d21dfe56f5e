"""Curves against Bernstein's polynomials, de Casteljau and lengths in closed form."""

import numpy as np
import pytest
import torch

from thalweg.errors import InputError, StructureError
from thalweg.landscapes import Curve, CurveLandscape, Quadratic


def pivots(n, dim=4, dtype=torch.float64):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(n), dtype=dtype)


def casteljau(points, t):
    while len(points) > 1:
        points = (1 - t) * points[:-1] + t * points[1:]
    return points[0]


@pytest.mark.parametrize("shape", ["bezier", "polyline"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_both_ends_are_met_to_the_bit(shape, n, dtype):
    curve = Curve(shape, pivots(n, dtype=dtype))
    assert torch.equal(curve(0.0), curve.pivots[0])
    assert torch.equal(curve(1.0), curve.pivots[-1])
    both = curve(torch.tensor([0.0, 1.0], dtype=dtype))
    assert torch.equal(both, curve.pivots[[0, -1]])


@pytest.mark.parametrize("n", [2, 3, 6])
def test_a_bezier_curve_is_that_of_de_casteljau(n):
    curve, t = Curve("bezier", pivots(n)), torch.linspace(0, 1, 11).double()
    expected = torch.stack([casteljau(curve.pivots, s) for s in t])
    torch.testing.assert_close(curve(t), expected, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(curve.coefficients(t).sum(1), torch.ones(11).double())


@pytest.mark.parametrize("n", [2, 3, 6])
def test_the_derivative_of_a_bezier_curve(n):
    curve, t = Curve("bezier", pivots(n)), torch.linspace(0, 1, 11).double()
    steps = (n - 1) * curve.pivots.diff(dim=0)  # the hodograph is a curve itself
    expected = torch.stack([casteljau(steps, s) for s in t])
    torch.testing.assert_close(curve.derivative(t), expected, rtol=1e-13, atol=1e-13)
    for end, step in ((0.0, steps[0]), (1.0, steps[-1])):
        torch.testing.assert_close(curve.derivative(end), step, rtol=0, atol=1e-14)
    jacobian = torch.func.vmap(torch.func.jacfwd(curve))(t)
    torch.testing.assert_close(jacobian, expected, rtol=1e-12, atol=1e-13)


def test_a_polyline_goes_straight_between_its_knots():
    knots = torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=torch.float64)
    curve = Curve("polyline", pivots(4), knots)
    torch.testing.assert_close(curve(knots), curve.pivots, rtol=0, atol=1e-15)
    torch.testing.assert_close(
        curve(0.45), (curve.pivots[1] + curve.pivots[2]) / 2, rtol=1e-14, atol=1e-15
    )
    slope = (curve.pivots[2] - curve.pivots[1]) / 0.5
    torch.testing.assert_close(curve.derivative(0.3), slope)
    sides = curve.pivots.diff(dim=0).norm(dim=1)
    assert curve.length == pytest.approx(float(sides.sum()), rel=1e-14)
    found = curve.lengths(np.array([0.0, 0.2, 0.45, 1.0]))
    expected = [0, sides[0], sides[0] + sides[1] / 2, sides.sum()]
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_the_length_of_a_parabola():
    # (0, 0), (1, 1), (2, 0) is x = 2t, y = 2t(1 - t): arc length of a parabola.
    corners = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]], dtype=torch.float64)
    curve = Curve("bezier", corners)
    exact = 2**0.5 + np.arcsinh(1.0)
    assert curve.length == pytest.approx(exact, rel=1e-13)
    np.testing.assert_allclose(curve.lengths(np.array([0.5])), exact / 2, rtol=1e-13)
    t = torch.linspace(0, 1, 7).double()
    speed = (4 + (2 - 4 * t) ** 2).sqrt()
    torch.testing.assert_close(curve.speed(t), speed, rtol=1e-13, atol=0)
    torch.testing.assert_close(
        curve.relative_speed(t), speed / exact, rtol=1e-13, atol=0
    )


def test_the_relative_speed_is_differentiable_in_the_pivots():
    start = pivots(3)
    for shape in ("bezier", "polyline"):

        def speed(p, shape=shape):
            return Curve(shape, p).relative_speed(torch.tensor(0.3).double())

        assert torch.autograd.gradcheck(speed, start.clone().requires_grad_())


def test_the_landscape_along_a_curve():
    full = Quadratic(torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0])).double())
    land = CurveLandscape(full, Curve("bezier", pivots(4)))
    assert land.dim == 1 and land.origin.tolist() == [0.0]
    t = torch.linspace(0, 1, 5).double()[:, None]
    values, slopes = land.value_and_gradient(t)
    torch.testing.assert_close(values, full.loss(land.curve(t[:, 0])))
    torch.testing.assert_close(land.loss(t), values)
    h = 1e-6
    central = (land.loss(t + h) - land.loss(t - h)) / (2 * h)
    torch.testing.assert_close(slopes[:, 0], central, rtol=1e-7, atol=1e-7)
    point = t[1]
    second = float(land.hessian(point) @ torch.ones(1).double())
    bend = (land.gradient(point + h) - land.gradient(point - h)) / (2 * h)
    assert second == pytest.approx(float(bend), rel=1e-7)
    assert "curve" in land.describe()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("spline", pivots(3)), InputError, "'bezier' or 'polyline', got 'spline'"),
        (("bezier", pivots(3)[:1]), StructureError, r"two or more, dim.*\(1, 4\)"),
        (("bezier", pivots(3) * torch.nan), InputError, "pivots must be finite"),
        (("bezier", pivots(2), torch.tensor([0.0, 1])), InputError, "has none"),
        (
            ("polyline", pivots(3), torch.tensor([0.0, 0.6, 0.5])),
            InputError,
            "increase from 0 to 1",
        ),
        (("polyline", pivots(3), torch.tensor([0.0, 1])), InputError, "one a pivot"),
    ],
)
def test_what_is_no_curve_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Curve(*arguments)


def test_a_curve_of_another_dimension_is_refused():
    with pytest.raises(StructureError, match="4 dimensions does not fit .* 2"):
        CurveLandscape(Quadratic(torch.eye(2).double()), Curve("bezier", pivots(3)))
