"""Spectral instruments on networks: closed forms, dense Hessians, ARPACK."""

import numpy as np
import pytest
import torch
from torch import nn

from thalweg import NetworkLandscape
from thalweg import instruments as ti
from thalweg.data import digits
from thalweg.models import mlp
from thalweg.seeding import generator


def trained(sizes, steps):
    """Return the landscape of a tanh MLP after a little training on digits."""
    x, y = digits().tensors
    x = x.double()
    model = mlp(sizes, seed=0).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    order = torch.randint(len(x), (steps, 128), generator=generator(0, "order"))
    for rows in order:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return NetworkLandscape(model, nn.CrossEntropyLoss(), (x, y))


@pytest.fixture(scope="module")
def small():
    land = trained((64, 8, 10), 150)
    H = land.hessian(land.origin)
    return H, H.dense()


def test_linear_regression_in_closed_form():
    """H = (2 / N C) I_C (x) XᵀX: every eigenvalue has C copies."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=g, dtype=torch.float64)
    y = torch.randn(40, 3, generator=g, dtype=torch.float64)
    model = nn.Linear(6, 3, bias=False).double()
    land = NetworkLandscape(model, nn.MSELoss(), (x, y))
    H = land.hessian(land.origin)
    single = torch.linalg.eigvalsh(x.T @ x).flip(0) * 2 / (40 * 3)
    pairs = ti.top_eigenpairs(H, 5, block=3)
    expected = single.repeat_interleave(3)[:5]
    torch.testing.assert_close(pairs.values, expected, rtol=1e-10, atol=0)
    exact = 3 * float(single.sum())
    assert ti.trace(H).value == pytest.approx(exact, rel=1e-10)
    spectrum = ti.spectral_density(H, probes=4)
    assert float(spectrum["nodes"].max()) == pytest.approx(float(single[0]), rel=1e-10)


def test_both_ends_equal_the_dense_hessian(small):
    H, dense = small
    exact = torch.linalg.eigvalsh(dense)
    top = ti.top_eigenpairs(H, 5)
    torch.testing.assert_close(top.values, exact[-5:].flip(0), rtol=1e-8, atol=0)
    low = ti.top_eigenpairs(H, 3, which="SA")
    torch.testing.assert_close(low.values, exact[:3], rtol=1e-6, atol=1e-9)


def test_traces_and_layers_are_met_within_their_error(small):
    H, dense = small
    exact = float(dense.trace())
    for method in ("xtrace", "hutch++"):
        estimate = ti.trace(H, method, rtol=0.02)
        assert abs(estimate.value - exact) < 4 * estimate.stderr
    layers = ti.block_traces(H, groups={"first": "1.*", "last": "3.*"}, probes=32)
    cut = 64 * 8 + 8
    for name, part in (("first", slice(0, cut)), ("last", slice(cut, None))):
        true = float(dense.diagonal()[part].sum())
        assert abs(layers[name].value - true) < 4 * layers[name].stderr


def test_the_density_has_the_moments_of_the_dense_hessian(small):
    H, dense = small
    exact = torch.linalg.eigvalsh(dense)
    spectrum = ti.spectral_density(H, probes=6, steps=30)
    c = 2 * float(-exact[0]) + 0.05
    for estimate, true in (
        (ti.spectral_moment(spectrum, 1), exact.mean()),
        (ti.spectral_moment(spectrum, 2), exact.square().mean()),
        (ti.log_determinant(spectrum, c), (exact + c).log().sum()),
    ):
        assert abs(estimate.value - float(true)) < 4 * estimate.stderr


def test_five_eigenvalues_of_a_digits_network_equal_arpack():
    from scipy.sparse.linalg import eigsh

    land = trained((64, 128, 96, 10), 100)
    H = land.hessian(land.origin)
    expected = np.sort(eigsh(H.to_scipy(), 5, which="LA", return_eigenvectors=False))
    pairs = ti.top_eigenpairs(H, 5)
    assert bool(pairs.converged.all())
    np.testing.assert_allclose(pairs.values.numpy(), expected[::-1], rtol=1e-6)
    quick = ti.top_eigenpairs(H, 5, tol=1e-2)
    assert quick.products <= 25
    np.testing.assert_allclose(quick.values.numpy(), expected[::-1], rtol=1e-3)
