"""Sums over millions of float32 entries."""

import pytest
import torch

from thalweg.instruments.inner_products import coefficients, gram, inner, norm


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
