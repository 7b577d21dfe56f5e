"""Projections on balls cut by boxes, against a general convex solver."""

from inspect import unwrap

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from thalweg import instruments as ti
from thalweg.errors import InputError
from thalweg.instruments.projections import steepest, uniform_in_ball

NORMS = ["Linf", "L2", "L1"]
ORDER = {"Linf": float("inf"), "L2": 2, "L1": 1}


def cases(n=6, size=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    center = torch.rand(n, size, generator=generator, dtype=torch.float64)
    center[0, :2] = torch.tensor([0.0, 1.0])
    x = center + torch.randn(n, size, generator=generator, dtype=torch.float64)
    return x, center


def solve(x, c, norm, radius, box):
    """The nearest point by SLSQP on split variables x = c + p - q."""
    size = len(x)
    low, high = (-np.inf, np.inf) if box is None else box
    bounds = [(0, high - ci) for ci in c] + [(0, ci - low) for ci in c]

    def gap(z):
        d = z[:size] - z[size:]
        if norm == "L2":
            return radius**2 - (d**2).sum()
        return radius - (z.sum() if norm == "L1" else 0)

    if norm == "Linf":
        bounds = [(a, min(b, radius)) for a, b in bounds]
    result = minimize(
        lambda z: ((c + z[:size] - z[size:] - x) ** 2).sum(),
        np.full(2 * size, 1e-3),
        bounds=bounds,
        constraints=[{"type": "ineq", "fun": gap}],
        options={"ftol": 1e-15, "maxiter": 500},
    )
    return c + result.x[:size] - result.x[size:]


@pytest.mark.parametrize("box", [None, (0.0, 1.0)])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("radius", [0.1, 0.6, 1.5])
def test_projection_is_the_nearest_point(norm, box, radius):
    x, center = cases()
    found = ti.project_ball(x, center, norm.lower(), radius, box)
    for row, xi, ci in zip(found, x, center, strict=True):
        expected = solve(xi.numpy(), ci.numpy(), norm, radius, box)
        np.testing.assert_allclose(row.numpy(), expected, atol=2e-5)
        best = ((row - xi) ** 2).sum()
        assert best <= ((expected - xi.numpy()) ** 2).sum() + 1e-9
    norms = torch.linalg.vector_norm(found - center, ORDER[norm], dim=1)
    assert (norms <= radius * (1 + 1e-12)).all()
    if box:
        assert (found >= 0).all() and (found <= 1).all()


@pytest.mark.parametrize("box", [None, (0.0, 1.0)])
@pytest.mark.parametrize("norm", NORMS)
def test_projection_is_idempotent_and_keeps_what_is_inside(norm, box):
    x, center = cases(n=40, size=30, seed=3)
    radii = torch.linspace(0, 4, 40).double()
    once = ti.project_ball(x, center, norm, radii, box)
    twice = ti.project_ball(once, center, norm, radii, box)
    torch.testing.assert_close(once, twice, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(once[0], center[0])
    inside = center + 1e-3 * (x - center).clamp(-0.1, 0.1)
    inside = inside.clamp(0, 1)
    kept = ti.project_ball(inside, center, norm, 10.0, box)
    torch.testing.assert_close(kept, inside, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("norm", NORMS)
def test_rows_keep_their_shape_and_dtype(norm):
    x = 10 * torch.randn(3, 2, 4, 4)
    found = ti.project_ball(x, torch.zeros_like(x), norm, torch.tensor([0.5, 1, 2.0]))
    assert found.shape == x.shape and found.dtype == torch.float32
    norms = torch.linalg.vector_norm(found.flatten(1), ORDER[norm], dim=1)
    torch.testing.assert_close(norms, torch.tensor([0.5, 1, 2.0]))


def test_box_bounds_may_be_tensors_and_infinite():
    x = torch.tensor([[3.0, -3.0]]).double()
    low = torch.tensor([-1.0, -float("inf")])
    high = torch.tensor([float("inf"), 2.0])
    for norm, expected in [("L2", [2.0, -2.0]), ("L1", [8**0.5 / 2] * 2)]:
        found = ti.project_ball(x, torch.zeros_like(x), norm, 8**0.5, (low, high))
        torch.testing.assert_close(found.abs(), torch.tensor([expected]).double().abs())


@pytest.mark.parametrize("norm", NORMS)
def test_steepest_directions_attain_the_dual_norm(norm):
    g = torch.randn(4, 3, 5, dtype=torch.float64)
    d = steepest(g, norm)
    dual = {"Linf": 1, "L2": 2, "L1": float("inf")}[norm]
    attained = (g * d).flatten(1).sum(1)
    torch.testing.assert_close(
        attained, torch.linalg.vector_norm(g.flatten(1), dual, dim=1)
    )
    assert not steepest(torch.zeros(2, 3), norm).any()


@pytest.mark.parametrize("norm", NORMS)
def test_draws_are_uniform_in_the_ball(norm):
    n, size, radius = 20_000, 3, 2.0
    like = torch.zeros(n, size, dtype=torch.float64)
    drawn = uniform_in_ball(like, norm, torch.full((n,), radius).double(), 0, "test")
    norms = torch.linalg.vector_norm(drawn, ORDER[norm], dim=1) / radius
    assert norms.max() <= 1
    # The share within a fraction r of the radius is r^3: mean 3/4, variance 3/80.
    assert abs(norms.mean() - 0.75) < 4 * (3 / 80 / n) ** 0.5
    assert drawn.mean(0).abs().max() < 4 * radius / n**0.5


def test_bad_input_is_refused():
    x = torch.zeros(2, 3)
    with pytest.raises(InputError, match="norm must be .* got 'L3'"):
        ti.project_ball(x, x, "L3", 1.0)
    with pytest.raises(InputError, match="at least 0, got -1"):
        ti.project_ball(x, x, "L2", -1.0)
    with pytest.raises(InputError, match=r"shape \(2,\), got shape \(3,\)"):
        unwrap(ti.project_ball)(x, x, "L2", torch.ones(3))
    with pytest.raises(InputError, match="6 entries of the center"):
        ti.project_ball(x, x, "L2", 1.0, (0.5, 1.0))
    with pytest.raises(InputError, match="one shape"):
        unwrap(ti.project_ball)(x, x[:, :2], "L2", 1.0)
