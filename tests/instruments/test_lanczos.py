"""The Lanczos basis: orthogonal, and its recurrence an equality."""

import numpy as np
import pytest
import torch

from thalweg.instruments.lanczos import Lanczos
from thalweg.landscapes import MatrixOperator


def matrix(n, dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    B = torch.randn(n, n, generator=g, dtype=torch.float64)
    values = torch.logspace(-8, 3, n, dtype=torch.float64)
    Q, _ = torch.linalg.qr(B)
    A = (Q * values) @ Q.T
    return ((A + A.T) / 2).to(dtype)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "tol"), [(torch.float64, 1e-13), (torch.float32, 3e-6)]
)
def test_the_basis_stays_orthogonal_and_the_relation_holds(width, dtype, tol):
    n, m = 120, 60
    A = matrix(n, dtype)
    starts = torch.randn(n, width, generator=torch.Generator().manual_seed(1)).to(dtype)
    process = Lanczos(MatrixOperator(A), starts, rows=m + width)
    for _ in range(m):
        process.step()
    Q = process.basis[: process.size]
    eye = torch.eye(process.size, dtype=dtype)
    assert float((Q @ Q.T - eye).abs().max()) < tol
    T = np.tril(process.projected[: process.size, :m])
    lower = torch.from_numpy(T[:m] + np.tril(T[:m], -1).T)
    left = (A @ Q[:m].T).double()
    right = Q[:m].T.double() @ lower + Q[m:].T.double() @ torch.from_numpy(T[m:])
    assert float((left - right).abs().max()) < 1e3 * tol  # |A| = 1e3


def test_a_restart_keeps_the_relation():
    n = 80
    A = matrix(n, torch.float64)
    starts = torch.randn(n, 2, generator=torch.Generator().manual_seed(1)).double()
    process = Lanczos(MatrixOperator(A), starts, rows=20)
    while not process.full:
        process.step()
    values, S, _ = process.ritz()
    process.restart(values[-6:], S[:, -6:])
    process.step()
    process.step()
    values, S, estimates = process.ritz()
    V = process.vectors(S)
    true = (A @ V - V * torch.from_numpy(values)).norm(dim=0)
    np.testing.assert_allclose(true.numpy(), estimates, atol=1e-10)


def test_dependent_starts_are_dropped():
    v = torch.ones(10, 1).double()
    process = Lanczos(
        MatrixOperator(torch.eye(10).double()), torch.cat([v, 2 * v, 0 * v], 1), rows=5
    )
    assert process.size == 1
