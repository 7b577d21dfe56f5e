"""LOBPCG, the preconditioned way of `top_eigenpairs`."""

import numpy as np
import pytest
import torch

from thalweg import instruments as ti
from thalweg.errors import ConvergenceWarning, InputError
from thalweg.instruments.lobpcg import orthonormal
from thalweg.landscapes import MatrixOperator


def stiff(n=400):
    """Return a diagonal over many decades with a weak dense coupling."""
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(n, n, generator=g, dtype=torch.float64)
    return torch.diag(torch.logspace(0, 6, n, dtype=torch.float64)) + 0.02 * (
        noise + noise.T
    )


def test_a_preconditioner_finds_the_low_end_of_a_stiff_operator():
    matrix = stiff()
    A = MatrixOperator(matrix)
    pairs = ti.top_eigenpairs(
        A, 24, which="SA", tol=1e-10, preconditioner=1 / matrix.diagonal()
    )
    exact = torch.linalg.eigvalsh(matrix)[:24]
    torch.testing.assert_close(pairs.values, exact, rtol=1e-9, atol=0)
    assert bool(pairs.converged.all())
    assert pairs.products == A.products < 400
    gram = pairs.vectors.T @ pairs.vectors
    torch.testing.assert_close(gram, torch.eye(24).double(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("which", ["LA", "SA"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_without_a_useful_preconditioner_it_equals_lanczos(which, dtype):
    g = torch.Generator().manual_seed(1)
    noise = torch.randn(80, 80, generator=g, dtype=torch.float64)
    A = MatrixOperator((noise + noise.T).to(dtype))
    plain = ti.top_eigenpairs(A, 6, which=which)
    pairs = ti.top_eigenpairs(A, 6, which=which, preconditioner=lambda V: V)
    assert bool(pairs.converged.all())
    tol = 1e-9 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(pairs.values, plain.values, rtol=tol, atol=0)


def test_every_copy_of_a_multiple_eigenvalue_is_found():
    A = MatrixOperator(
        torch.diag(
            torch.cat([torch.full((4,), 7.0), torch.linspace(-1, 1, 60)]).double()
        )
    )
    pairs = ti.top_eigenpairs(A, 4, preconditioner=lambda V: V)
    np.testing.assert_allclose(pairs.values.numpy(), 7.0, rtol=1e-10)


def test_zero_and_a_tiny_dimension():
    A = MatrixOperator(torch.zeros(8, 8).double())
    pairs = ti.top_eigenpairs(A, 5, preconditioner=lambda V: V)
    assert bool(pairs.converged.all())
    B = MatrixOperator(torch.diag(torch.arange(4.0)).double())
    values = ti.top_eigenpairs(B, 3, preconditioner=lambda V: V).values
    np.testing.assert_allclose(values.numpy(), [3, 2, 1], rtol=1e-12)


def test_a_spent_budget_is_flagged():
    A = MatrixOperator(stiff())
    with pytest.warns(ConvergenceWarning):
        pairs = ti.top_eigenpairs(
            A, 20, which="SA", max_products=60, preconditioner=lambda V: V
        )
    assert pairs.products <= 60
    assert not bool(pairs.converged.all())


def test_dependent_rows_are_dropped():
    rows = torch.tensor([[1.0, 0, 0], [2.0, 0, 0], [0, 0, 0]]).double()
    assert orthonormal(rows).shape == (1, 3)
    assert orthonormal(rows, torch.tensor([[1.0, 0, 0]]).double()).shape == (0, 3)


def test_other_ends_are_refused():
    A = MatrixOperator(torch.eye(9))
    with pytest.raises(InputError, match="'LA' or 'SA', got 'LM'"):
        ti.top_eigenpairs(A, 2, which="LM", preconditioner=torch.ones(9))
