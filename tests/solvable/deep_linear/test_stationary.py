"""The stationary law against its equation, quadrature and the closed form at L = 2."""

import math

import numpy as np
import pytest
from scipy.integrate import quad

from thalweg.errors import DynamicsWarning, InputError
from thalweg.solvable.deep_linear import (
    PointMass,
    approach_rate,
    collapse_rate,
    effective_temperature,
    mode_diffusion,
    mode_drift,
    retention_probability,
    stationary_density,
    stationary_moments,
)

CASES = [
    # S, L, eta, B, sigma, lam
    (1.5, 2, 0.1, 4, 0.3, 1.0),
    (1.5, 3, 0.1, 4, 0.3, 0.6),
    (1.0, 5, 0.2, 2, 0.5, 1.0),
    (1.0, 4, 2.0, 1, 0.5, 1.0),
    (1.0, 2, 0.7, 1, 0.4, 1.0),
    (0.8, 1, 0.1, 2, 0.3, 1.7),
]


def law(S, L, eta, B, sigma, lam):
    return stationary_density(S, L, eta, B, sigma=sigma, lam=lam)


@pytest.mark.parametrize("case", CASES)
def test_no_flux(case):
    S, L, eta, B, sigma, lam = case
    p, s, h = law(*case), np.linspace(0.3 * S, 2 * S, 40), 1e-5 * S

    def flow(x):
        return mode_diffusion(x, S, L, eta, B, sigma=sigma, lam=lam) * p.density(x)

    drift = mode_drift(s, S, L, eta, B, sigma=sigma, lam=lam) * p.density(s)
    slope = (flow(s + h) - flow(s - h)) / (4 * h)
    np.testing.assert_allclose(drift, slope, atol=1e-7 * np.abs(drift).max())


@pytest.mark.parametrize("case", CASES)
def test_moments_and_masses_against_plain_quadrature(case):
    S, L = case[:2]
    p = law(*case)

    def integral(f, low, high):
        def in_logs(w):
            return f(math.exp(w)) * math.exp(w)

        if L == 1:
            return quad(f, S - 30, S + 30, points=[S], epsabs=1e-13, limit=500)[0]
        ends = np.linspace(math.log(low), math.log(high), 40)
        return sum(
            quad(in_logs, a, b, epsabs=1e-14, epsrel=1e-12)[0]
            for a, b in zip(ends[:-1], ends[1:], strict=True)
        )

    low, high = 1e-60 if L == 2 else 1e-7, 1e40
    assert integral(p.density, low, high) == pytest.approx(1, rel=1e-5)
    mean = integral(lambda s: s * p.density(s), low, high)
    assert p.mean == pytest.approx(mean, rel=1e-8)
    assert p.moment(1) == pytest.approx(mean, rel=1e-8)
    square = integral(lambda s: (s - mean) ** 2 * p.density(s), low, high)
    assert p.variance == pytest.approx(square, rel=1e-7)
    assert p.moment(2) == pytest.approx(square + mean**2, rel=1e-7)
    if L > 1:
        below = integral(p.density, low, S)
        assert float(p.cdf(S)) == pytest.approx(below, abs=1e-5)
        assert float(p.cdf(-1.0)) == 0 and float(p.density(-1.0)) == 0


@pytest.mark.parametrize("lam", [1.0, 0.6])
def test_closed_form_at_depth_two(lam):
    S, eta, B, sigma = 1.5, 0.1, 4, 0.3
    p = law(S, 2, eta, B, sigma, lam)
    step, noise = eta * lam, sigma / math.sqrt(lam)
    c = 2 * S**2 + noise**2
    k = B * S / (step * c)

    def log_p(s):
        v = 2 * (s - S) ** 2 + noise**2
        angle = np.arctan(math.sqrt(2) * (s - S) / noise)
        turn = B * noise / (math.sqrt(2) * step * c) * angle
        return (k - 1.5) * np.log(s) - (1 + k / 2) * np.log(v) - turn

    s = np.linspace(0.2, 4, 50)
    gap = p.log_density(s) - log_p(s)
    np.testing.assert_allclose(gap, gap[0], rtol=1e-10)


def test_at_depth_one_it_is_a_student():
    from scipy.stats import t

    S, eta, B, sigma = 0.8, 0.2, 3, 0.5
    p = law(S, 1, eta, B, sigma, 1.0)
    dof = 1 + B / eta
    reference = t(dof, loc=S, scale=sigma / math.sqrt(2 * dof))
    s = np.linspace(-2, 3, 40)
    np.testing.assert_allclose(p.density(s), reference.pdf(s), rtol=1e-10)
    np.testing.assert_allclose(p.cdf(s), reference.cdf(s), rtol=1e-10)
    assert p.variance == pytest.approx(eta * sigma**2 / (2 * (B - eta)))
    for order in (1, 2, 3, 4):
        assert p.moment(order) == pytest.approx(reference.moment(order), rel=1e-9)
    assert law(S, 1, 3.0, 3, sigma, 1.0).variance == math.inf
    assert law(S, 1, 3.0, 3, sigma, 1.0).moment(2) == math.inf


def test_very_sharp_laws():
    S, eta, B, sigma = 1.0, 1e-5, 1, 1e-3
    p = law(S, 2, eta, B, sigma, 1.0)
    T = effective_temperature(S, 2, eta, B, sigma=sigma)
    assert p.variance == pytest.approx(T, rel=1e-4)
    assert p.variance == pytest.approx(T / (1 - 2 * eta), rel=1e-6)
    wide = law(2.0, 2, 1e-3, 100, 1.0, 1.0)
    T = effective_temperature(2.0, 2, 1e-3, 100, sigma=1.0)
    assert wide.variance == pytest.approx(T, rel=1e-3)
    assert float(wide.cdf(2.0)) == pytest.approx(0.5, abs=2e-3)


@pytest.mark.parametrize("L", [2, 3])
def test_the_mean_is_below_the_target_by_order_eta(L):
    gaps = [1 - law(1.0, L, eta, 4, 0.3, 1.0).mean for eta in (0.02, 0.01)]
    assert gaps[1] > 0 and gaps[0] / gaps[1] == pytest.approx(2, rel=0.05)


def test_tails():
    assert law(1.0, 2, 0.1, 4, 0.3, 1.0).moment(3) == math.inf
    assert law(1.0, 3, 0.1, 4, 0.3, 1.0).moment(3) == math.inf
    assert 1 < law(1.0, 4, 0.1, 4, 0.3, 1.0).moment(3) < 1.1
    p = law(1.0, 4, 0.1, 4, 0.3, 1.0)
    slope = np.diff(p.log_density([1e6, 1e7])) / np.log(10)
    assert float(slope[0]) == pytest.approx(-5 + 3 / 4, abs=1e-3)


def test_total_variation_to_boltzmann():
    case = CASES[1]
    p = law(*case)
    T = p.temperature
    grid = np.linspace(1e-4, 6, 400_001)
    normal = np.exp(-((grid - p.S) ** 2) / (2 * T)) / math.sqrt(2 * math.pi * T)
    expected = np.abs(p.density(grid) - normal).sum() * (grid[1] - grid[0]) / 2
    assert p.total_variation() == pytest.approx(expected, abs=1e-5)
    small, smaller = (
        law(1.0, 2, eta, 4, 0.3, 1.0).total_variation() for eta in (0.01, 0.0001)
    )
    assert smaller == pytest.approx(small / 10, rel=0.1)  # as the root of eta
    assert law(*CASES[-1]).total_variation() < 0.03


def test_approximations():
    S, L, eta, B, sigma = 1.5, 3, 0.1, 8, 0.4
    h = eta * L * S ** (4 / 3)
    T = eta * L * sigma**2 * S ** (4 / 3) / (2 * B)

    def variance(method, lam=1.0):
        found = stationary_moments(S, L, eta, B, sigma=sigma, lam=lam, method=method)
        assert found.method == method
        return found.variance

    assert variance("boltzmann") == pytest.approx(T)
    assert variance("boltzmann", lam=2.0) == pytest.approx(T)
    assert variance("multiplicative") == pytest.approx(T / (1 - h / B))
    assert variance("discrete") == pytest.approx(
        h * sigma**2 / (B * (2 - h - 2 * h / B))
    )
    assert variance("exact") == law(S, L, eta, B, sigma, 1.0).variance
    hot = stationary_moments(1.0, 3, 4.0, 1, sigma=0.1, method="multiplicative")
    assert hot.variance == math.inf
    assert effective_temperature(2.0, 2, 0.1, 1, sigma=1.0) > effective_temperature(
        1.0, 2, 0.1, 1, sigma=1.0
    )


def test_without_label_noise_all_mass_is_at_the_target():
    found = stationary_density(1.3, 3, 0.1, 2)
    assert isinstance(found, PointMass) and found.at == 1.3
    assert (found.mean, found.variance, found.moment(2)) == (1.3, 0, 1.3**2)
    assert "label noise" in found.reason
    for method in ("exact", "boltzmann", "multiplicative", "discrete"):
        assert stationary_moments(1.3, 3, 0.1, 2, method=method).variance == 0
    assert approach_rate(1.3, 2, 0.1, 2) == pytest.approx(-2.6 - 0.05 * 2.6**2)


def test_noise_collapse():
    S, B, sigma, lam = 1.0, 2, 0.5, 0.7
    rate = collapse_rate(S, 2, B, sigma=sigma, lam=lam)
    assert rate == pytest.approx(2 * S * B / (2 * lam * S**2 + sigma**2))
    assert collapse_rate(S, 1, B) == collapse_rate(S, 3, B) == math.inf
    just_below = law(S, 2, 0.99 * rate, B, sigma, lam)
    assert 0 < just_below.mean < 0.2
    with pytest.warns(DynamicsWarning, match="the mode ends at 0"):
        above = law(S, 2, 1.01 * rate, B, sigma, lam)
    assert isinstance(above, PointMass) and above.at == 0
    with pytest.warns(DynamicsWarning, match="the mode ends at 0 or S"):
        assert stationary_density(1.0, 2, 2.5, 2).at == 1.0


def test_retention_without_label_noise():
    assert retention_probability(0.1, 1.0, 0.5, 2) == 1.0
    assert retention_probability(1.1, 1.0, 5.0, 2) == 1.0
    assert retention_probability(0.0, 1.0, 5.0, 2) == 0.0
    # The scale function: s^(-1/2-k) (S-s)^k, integrated.
    k = 2 / (2 * 5.0)
    whole, part = (
        quad(lambda s: s ** (-0.5 - k) * (1 - s) ** k, 0, end)[0] for end in (1, 0.3)
    )
    found = retention_probability(0.3, 1.0, 5.0, 2)
    assert found == pytest.approx(part / whole, rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stationary_density(0.0, 2, 0.1, 1), "S must be positive, got 0.0"),
        (
            lambda: stationary_density(1.0, 0, 0.1, 1),
            "L must be an integer of at least",
        ),
        (lambda: stationary_density(1.0, 2, -0.1, 1), "eta must be positive, got -0.1"),
        (
            lambda: stationary_density(1.0, 2, 0.1, 0),
            "B must be an integer of at least",
        ),
        (
            lambda: law(1.0, 2, 0.1, 1, -1.0, 1.0),
            "sigma must be non-negative, got -1.0",
        ),
        (lambda: law(1.0, 2, 0.1, 1, 1.0, 0.0), "lam must be positive, got 0.0"),
        (
            lambda: stationary_moments(1.0, 2, 0.1, 1, method="gibbs"),
            "method must be one of",
        ),
        (
            lambda: law(1.0, 2, 0.1, 1, 1.0, 1.0).moment(-1),
            "order must be an integer of at least 0, got -1",
        ),
        (lambda: retention_probability(-1.0, 1.0, 0.1, 1), "s0 must be non-negative"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
