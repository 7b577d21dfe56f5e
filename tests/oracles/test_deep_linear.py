"""The instruments on a deep linear network, whose curvature is known."""

import numpy as np
import pytest
import torch

from thalweg import instruments as ti
from thalweg.solvable import DeepLinear
from thalweg.solvable.deep_linear import (
    critical_point,
    minimum_curvature,
    negative_eigenvalues,
)

S = [2.0, 1.3, 0.6]
M = torch.diag(torch.tensor(S, dtype=torch.float64))


def test_largest_eigenvalue_at_the_minimum():
    for widths in ((3, 3, 3), (3, 4, 4, 3)):
        land = DeepLinear(M, widths)
        point = land.flatten(critical_point(S, range(3), widths))
        pairs = ti.top_eigenpairs(land.hessian(point), 1)
        expected = minimum_curvature(S, len(widths) - 1)
        assert abs(float(pairs.values[0]) - expected) < 1e-8


def test_negative_eigenvalues_at_saddles():
    for widths, subset in (((3, 2, 3), (0,)), ((3, 3, 3, 3), (2,))):
        land = DeepLinear(M, widths)
        point = land.flatten(critical_point(S, subset, widths))
        expected = negative_eigenvalues(S, subset, widths)
        pairs = ti.top_eigenpairs(land.hessian(point), len(expected), which="SA")
        np.testing.assert_allclose(np.sort(pairs.values), expected, atol=1e-6)


def test_surface_around_the_origin_is_the_loss_of_the_product():
    land = DeepLinear(M, (3, 3, 3))
    first, second = (
        land.flatten(critical_point(S, subset, (3, 3, 3))) for subset in ((0,), (1,))
    )
    basis = torch.stack([first, second], dim=1)
    at = torch.zeros(land.dim, dtype=torch.float64)
    data = ti.surface(land, basis, [np.linspace(-1, 1, 5)] * 2, at=at)
    x, y = np.meshgrid(data.x0, data.x1, indexing="ij")
    expected = np.zeros_like(x)
    # The two modes use the same hidden unit: their product has cross terms too.
    for i in range(5):
        for j in range(5):
            a, b = x[i, j] * np.sqrt(S[0]), y[i, j] * np.sqrt(S[1])
            W = np.zeros((3, 3))
            W[:2, :2] = np.outer([a, b], [a, b])
            expected[i, j] = 0.5 * ((W - M.numpy()) ** 2).sum()
    np.testing.assert_allclose(data.loss, expected, rtol=1e-12)


def spectrum_at_the_minimum(L):
    """Nonzero eigenvalues, descending: Σ_l S_i^(2(L-l)/L) S_j^(2(l-1)/L) over all i, j.

    Every layer of width 3, as the teacher's rank; the others are zero.
    """
    left, right = np.meshgrid(S, S, indexing="ij")
    terms = [
        left ** (2 * (L - k) / L) * right ** (2 * (k - 1) / L) for k in range(1, L + 1)
    ]
    return np.sort(np.sum(terms, axis=0).ravel())[::-1]


@pytest.mark.parametrize("L", [2, 3])
def test_spectrum_and_trace_at_the_minimum(L):
    land = DeepLinear(M, (3,) * (L + 1))
    H = land.hessian(land.aligned(S))
    exact = spectrum_at_the_minimum(L)
    pairs = ti.top_eigenpairs(H, 9, block=2)
    np.testing.assert_allclose(pairs.values, exact, rtol=1e-7)
    estimate = ti.trace(H, rtol=0.01, seed=0)
    assert abs(estimate.value - exact.sum()) <= 4 * estimate.stderr + 1e-9
    density = ti.spectral_density(H, probes=60, steps=land.dim)
    nodes, weights = density["nodes"].values, density["weights"].values
    zero = np.where(np.abs(nodes) < 1e-6, weights, 0.0).sum(1) / weights.sum(1)
    error = zero.std(ddof=1) / np.sqrt(len(zero))
    assert abs(zero.mean() - (1 - 1 / L)) <= 4 * error


def test_the_barrier_between_two_signs_is_the_origin():
    """W_1, W_2 -> -W_1, -W_2 keeps the product; between them it is (1 - 2t)² M."""
    land = DeepLinear(M, (3, 3, 3))
    point = land.aligned(S)
    found = ti.barrier(land, point, -point, points=21)
    assert found.value == pytest.approx(sum(s * s for s in S) / 2, rel=1e-12)
    line = ti.line(land, point, -point, points=21)
    t = line["t"].values
    expected = (1 - (1 - 2 * t) ** 2) ** 2 * sum(s * s for s in S) / 2
    np.testing.assert_allclose(line["loss"], expected, rtol=0, atol=1e-12)


def test_covariance_of_batches_by_the_instruments():
    land = DeepLinear(M, (3, 4, 3), sigma=0.3)
    point = land.gaussian_start(seed=2, std=0.5)
    noise = land.noise_covariance(point, 4)
    estimate = ti.trace(noise, rtol=0.01, seed=0)
    assert abs(estimate.value - noise.trace()) <= 4 * estimate.stderr + 1e-9
    exact = torch.linalg.eigvalsh(noise.dense())
    pairs = ti.top_eigenpairs(noise, 3)
    np.testing.assert_allclose(pairs.values, exact[-3:].flip(0), rtol=1e-6)


def test_sharpness_in_a_small_ball_is_the_largest_curvature():
    radius = 1e-3
    for widths in ((3, 3, 3), (3, 3, 3, 3)):
        land = DeepLinear(M, widths)
        found = ti.sharpness(land, "zeroth", radius, at=land.aligned(S))
        expected = minimum_curvature(S, len(widths) - 1) * radius**2 / 2
        assert found.value == pytest.approx(expected, rel=0.02)
