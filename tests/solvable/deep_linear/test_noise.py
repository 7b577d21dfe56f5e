"""Minibatch noise against Monte Carlo; its peak against a grid."""

import itertools
import math

import numpy as np
import pytest
import torch

from draws import draw
from thalweg.errors import InputError
from thalweg.solvable import DeepLinear
from thalweg.solvable.deep_linear import (
    GaussianGradientCovariance,
    learning_time,
    mode_diffusion,
    mode_drift,
    noise_peak,
    peak_times,
)


def problem(sigma=0.7):
    M, X = draw(2, 3), draw(3, 6, seed=1)
    return DeepLinear(M, (3, 2, 2), sigma=sigma, Sigma=X @ X.T / 6)


def sampled_gradients(land, point, n):
    """Gradients of ½ |y - W x|² of single examples, by automatic differentiation."""
    root = torch.linalg.cholesky(land.Sigma)
    x = draw(n, 3, seed=5) @ root.T
    y = x @ land.teacher.T + land.sigma * draw(n, 2, seed=6)

    def example(p, x, y):
        W1, W2 = p[:6].reshape(2, 3), p[6:].reshape(2, 2)
        return 0.5 * (y - W2 @ (W1 @ x)).square().sum()

    return torch.func.vmap(torch.func.grad(example), (None, 0, 0))(point, x, y)


def test_covariance_against_monte_carlo():
    land = problem()
    point = draw(land.dim, seed=2)
    n, B = 100_000, 4
    gradients = sampled_gradients(land, point, n)
    centered = gradients - land.gradient(point)
    outer = centered[:, :, None] * centered[:, None, :]
    error = 4.5 * outer.std(0) / n**0.5
    noise = GaussianGradientCovariance(land, point, B)
    assert bool(((outer.mean(0) / B - noise.dense()).abs() < error / B).all())
    mean_error = centered.mean(0).abs() / (centered.std(0) / n**0.5)
    assert float(mean_error.max()) < 4


def test_variance_trace_and_products_agree_with_the_matrix():
    land = problem()
    noise = GaussianGradientCovariance(land, draw(land.dim, seed=2), B=3)
    C, v = noise.dense(), draw(land.dim, seed=3)
    torch.testing.assert_close(C, C.T, rtol=1e-12, atol=1e-12)
    assert float(torch.linalg.eigvalsh(C)[0]) > -1e-10
    assert noise.variance(v) == pytest.approx(float(v @ C @ v), rel=1e-10)
    assert noise.trace() == pytest.approx(float(C.trace()), rel=1e-10)
    torch.testing.assert_close(noise @ v, C @ v, rtol=1e-10, atol=1e-10)


def test_methods_of_the_landscape_agree_with_the_operator():
    land = problem()
    points, v = draw(2, 5, land.dim, seed=2), draw(land.dim, seed=3)
    C = GaussianGradientCovariance(land, points[1, 2], B=3).dense()
    assert float(land.noise_trace(points, 3)[1, 2]) == pytest.approx(float(C.trace()))
    assert land.noise_variance(points[1, 2], v, 3) == pytest.approx(float(v @ C @ v))
    product = land.noise_covariance_product(points[1, 2], v, 3)
    torch.testing.assert_close(product, C @ v, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("replacement", "B"), [(True, 3), (False, 3), (False, 7)])
def test_noise_of_a_data_set_is_that_of_all_its_batches(replacement, B):
    land, N = problem(), 7
    point, v = draw(land.dim, seed=2), draw(land.dim, seed=3)
    X, Y = draw(N, 3, seed=7), draw(N, 2, seed=8)

    def example(p, x, y):
        W1, W2 = p[:6].reshape(2, 3), p[6:].reshape(2, 2)
        return 0.5 * (y - W2 @ (W1 @ x)).square().sum()

    each = torch.func.vmap(torch.func.grad(example), (None, 0, 0))(point, X, Y)
    pick = itertools.product if replacement else itertools.permutations
    pools = {"repeat": B} if replacement else {"r": B}
    batches = torch.tensor(list(pick(range(N), **pools)))
    means = each[batches].mean(1)
    centered = means - means.mean(0)
    expected = centered.T @ centered / len(means)
    kind = {"data": (X, Y), "replacement": replacement}
    C = land.noise_covariance(point, B, **kind)
    torch.testing.assert_close(C.dense(), expected, rtol=1e-10, atol=1e-12)
    trace = land.noise_trace(point[None], B, **kind)
    assert float(trace[0]) == pytest.approx(float(expected.trace()), abs=1e-12)
    variance = land.noise_variance(point, v, B, **kind)
    assert variance == pytest.approx(float(v @ expected @ v), abs=1e-12)


def test_bad_data_sets():
    land = problem()
    point, X, Y = draw(land.dim), draw(5, 3), draw(5, 2)
    for data, B, message in (
        ((X, Y[:4]), 1, "inputs and targets must have as many rows"),
        ((Y, X), 1, "inputs and targets must have 3 and 2 columns"),
        ((X, Y), 6, "B must be at most the 5 examples without replacement, got 6"),
        ((X, Y), 0, "B must be an integer of at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            land.noise_trace(point, B, data=data, replacement=False)
    wide = DeepLinear(draw(80, 80), (80, 80))
    data = draw(2, 80), draw(2, 80)
    with pytest.raises(InputError, match="a dense covariance of 6400 parameters"):
        wide.noise_covariance(draw(wide.dim), data=data).dense()


@pytest.mark.parametrize("L", [1, 2, 3])
def test_noise_of_an_aligned_mode_is_its_diffusion(L):
    M = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))
    land = DeepLinear(M, (2,) * (L + 1), sigma=0.4)
    s, eta, B = 0.6, 0.01, 8
    point = land.aligned([s, 0.3])
    # The gradient of the strength of mode 0 at the point: L s^(1-1/L) in each layer.
    direction = torch.func.grad(lambda p: land.mode_matrix(p)[0, 0])(point)
    variance = eta * GaussianGradientCovariance(land, point, B).variance(direction)
    expected = mode_diffusion(s, 2.0, L, eta, B, sigma=0.4)
    assert variance == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize("L", [2, 3, 5])
@pytest.mark.parametrize("sigma", [0.0, 0.2])
@pytest.mark.parametrize("lam", [1.0, 0.6])
def test_peak_against_a_grid(L, sigma, lam):
    S = 1.7
    grid = np.linspace(0, S, 200_001)
    found = noise_peak(S, L, sigma, lam=lam)
    values = mode_diffusion(grid, S, L, 0.1, 4, sigma=sigma, lam=lam)
    inside = grid < found.minimum
    assert grid[inside][values[inside].argmax()] == pytest.approx(found.peak, abs=2e-5)
    assert found.is_global == (values.argmax() == values[inside].argmax())
    beyond = grid >= found.peak
    lowest = grid[beyond][values[beyond].argmin()]
    assert lowest == pytest.approx(found.minimum, abs=2e-5)
    if sigma == 0:
        assert found.peak == pytest.approx(S * (2 * L - 2) / (3 * L - 2))
        assert found.minimum == pytest.approx(S)
        layer = noise_peak(S, L, coordinate="layer").peak
        assert layer == pytest.approx(S * (L - 1) / (2 * L - 1))


def test_a_peak_that_is_local_only_and_none_at_all():
    S, L = 1.0, 2
    critical = noise_peak(S, L).critical_sigma
    assert critical == pytest.approx(S * math.sqrt(2 / (2 * 4)))
    close = noise_peak(S, L, 0.98 * critical)
    assert close.peak is not None and close.is_global is False
    above = noise_peak(S, L, 1.02 * critical)
    assert above.peak is None and "is not below the critical" in above.reason
    grid = np.linspace(0, S, 10_001)
    values = mode_diffusion(grid, S, L, 0.1, 4, sigma=1.02 * critical)
    assert (np.diff(values) > 0).all()
    assert noise_peak(S, 1).peak is None and "L = 1" in noise_peak(S, 1).reason


def test_the_noise_peaks_before_the_mode_is_learned():
    times = peak_times(1e-3, 1.5, 3)
    assert times.peak == pytest.approx(float(learning_time(1e-3, 1.5 * 4 / 7, 1.5, 3)))
    assert times.learned == pytest.approx(times.peak + times.gap) and times.gap > 0
    assert peak_times(1e-3, 1.0, 2, sigma=2.0).peak is None


def test_ito_correction_vanishes_at_depth_one_and_on_request():
    plain = mode_drift(0.4, 1.0, 3, 0.1, 2, ito_correction=False)
    assert float(plain) == pytest.approx(3 * 0.4 ** (4 / 3) * 0.6)
    term = 0.1 / 4 * 3 * 2 * 0.4 ** (5 / 3) * 2 * 0.36
    assert float(mode_drift(0.4, 1.0, 3, 0.1, 2) - plain) == pytest.approx(term)
    assert float(mode_drift(0.4, 1.0, 1, 0.1, 2)) == pytest.approx(0.6)


def test_wide_networks_need_no_dense_covariance():
    land = DeepLinear(draw(80, 80), (80, 80))
    noise = GaussianGradientCovariance(land, draw(land.dim, seed=1))
    assert noise.trace() > 0
    with pytest.raises(InputError, match="a dense covariance of 6400 parameters"):
        noise.dense()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: noise_peak(-1.0, 2), "S must be positive, got -1.0"),
        (lambda: noise_peak(1.0, 0), "L must be an integer of at least 1, got 0"),
        (lambda: noise_peak(1.0, 2, -0.1), "sigma must be non-negative"),
        (lambda: mode_drift(0.1, 1.0, 2, 0.0, 1), "eta must be positive, got 0.0"),
        (lambda: mode_diffusion(0.1, 1.0, 2, 0.1, 0), "B must be an integer of at"),
        (lambda: peak_times(0.1, 1.0, 2, eps=1.0), r"eps must lie in \(0, 1\)"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
