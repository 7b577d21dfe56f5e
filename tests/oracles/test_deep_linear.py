"""The instruments on a deep linear network, whose curvature is known."""

import numpy as np
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
