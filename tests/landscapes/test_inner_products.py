"""Sums over millions of float32 entries."""

import pytest
import torch

from thalweg.landscapes import (
    FunctionOperator,
    coefficients,
    gram,
    inner,
    norm,
    pull_back,
)


@pytest.mark.parametrize("length", [1000, 1_000_003])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_long_sums_are_right(length, dtype):
    g = torch.Generator().manual_seed(0)
    a = torch.randn(2, length, generator=g).to(dtype)
    exact = a.double() @ a.double().T
    tol = 1e-6 if dtype == torch.float32 else 1e-13
    scale = float(exact.max())
    torch.testing.assert_close(gram(a, a), exact, rtol=0, atol=tol * scale)
    torch.testing.assert_close(
        coefficients(a, a[0]), exact[0], rtol=0, atol=tol * scale
    )
    assert norm(a[0]) == pytest.approx(float(exact[0, 0]) ** 0.5, rel=tol)
    assert inner(a[0], a[1]) == pytest.approx(float(exact[0, 1]), abs=1e-13 * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projections_on_long_columns_are_right(dtype):
    # With all entries positive nothing cancels, and float32 sums saturate.
    g = torch.Generator().manual_seed(1)
    basis = torch.rand(3_000_017, 2, generator=g).to(dtype)
    exact = basis.double().T @ basis.double()
    rtol = 1e-6 if dtype == torch.float32 else 1e-13
    rows = pull_back(basis, basis.T.contiguous())
    assert rows.dtype == dtype
    torch.testing.assert_close(rows.double(), exact, rtol=rtol, atol=0)
    identity = FunctionOperator(lambda v: v, len(basis), dtype=dtype)
    matrix, image = identity.project(basis, basis[:, 0])
    torch.testing.assert_close(matrix.double(), exact, rtol=rtol, atol=0)
    torch.testing.assert_close(image.double(), exact[0], rtol=rtol, atol=0)


def test_a_long_symmetric_operator_passes_its_check_in_float32():
    g = torch.Generator().manual_seed(0)
    n = 10_000_000
    v = torch.randn(n, generator=g)
    diagonal = torch.rand(n, generator=g) + 0.5
    A = FunctionOperator(lambda x: diagonal * x, n, dtype=torch.float32, check=True)
    torch.testing.assert_close(A @ v, diagonal * v)
