"""Defaults of a landscape against closed forms."""

import pytest
import torch

from thalweg.errors import InputError, StructureError
from thalweg.landscapes import Landscape, Quadratic


class Quartic(Landscape):
    """sum x^4 / 12, known only by its loss."""

    def __init__(self, dim):
        super().__init__(dim)

    def loss(self, points):
        return (points**4).sum(-1) / 12


def test_defaults_follow_from_the_loss():
    land = Quartic(3)
    points = torch.randn(4, 2, 3, dtype=torch.float64)
    values, gradients = land.value_and_gradient(points)
    assert values.shape == (4, 2)
    torch.testing.assert_close(gradients, points**3 / 3)
    x = points[0, 0]
    hessian = land.hessian(x)
    torch.testing.assert_close(hessian.dense(), torch.diag(x**2))
    assert hessian.products == 3


def test_restriction_sums_and_multiples():
    A = torch.randn(5, 5, dtype=torch.float64)
    A = A + A.T
    land = Quadratic(A)
    U = torch.randn(5, 2, dtype=torch.float64)
    x = torch.randn(5, dtype=torch.float64)
    c = torch.randn(7, 2, dtype=torch.float64)
    both = (2 * land + Quartic(5)).restrict(x, U)
    p = x + c @ U.T
    torch.testing.assert_close(both.loss(c), 2 * land.loss(p) + (p**4).sum(-1) / 12)
    torch.testing.assert_close(both.gradient(c), (2 * p @ A + p**3 / 3) @ U)
    dense = both.hessian(c[0]).dense()
    expected = U.T @ (2 * A + torch.diag(p[0] ** 2)) @ U
    torch.testing.assert_close(dense, expected)
    assert both.origin.tolist() == [0.0, 0.0]


def test_bad_points_and_bases_are_refused():
    land = Quadratic(torch.eye(3))
    with pytest.raises(StructureError, match=r"\(3,\)"):
        land.at(torch.zeros(4))
    with pytest.raises(StructureError, match="basis"):
        land.restrict(torch.zeros(3), torch.zeros(4, 2))
    with pytest.raises(InputError, match="stands nowhere"):
        Quartic(2).point()
