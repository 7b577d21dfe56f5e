"""Ensembles of modes against loops, the equations, and the stationary law."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from thalweg.errors import DynamicsWarning, InputError
from thalweg.seeding import numpy_generator
from thalweg.solvable.deep_linear import (
    collapse_rate,
    mode_diffusion,
    mode_drift,
    mode_strength,
    retention_probability,
    simulate_modes,
    stationary_density,
    stationary_moments,
)
from thalweg.solvable.deep_linear.schemes import ModePaths

SCHEMES = ["euler", "tamed", "milstein", "sgd"]
F64 = torch.float64


def run(S, L, eta, B, **options):
    settings = {"s0": 0.5, "n_steps": 50, "n_paths": 1000, "seed": 0}
    return simulate_modes(S, L, eta, B, **(settings | options))


@pytest.mark.parametrize("L", [1, 2, 3, 5])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_step_has_the_drift_and_the_variance_of_the_equation(L, scheme):
    S, s0, eta, B, sigma, lam, n = 1.2, 0.6, 2e-3, 3, 0.8, 0.7, 400_000
    options = {"sigma": sigma, "lam": lam, "dtype": F64, "scheme": scheme}
    found = run(S, L, eta, B, s0=s0, n_steps=1, n_paths=n, **options)
    v = eta * float(mode_diffusion(s0, S, L, eta, B, sigma=sigma, lam=lam))
    drift = eta * float(mode_drift(s0, S, L, eta, B, sigma=sigma, lam=lam))
    error = math.sqrt(v / n)
    assert found.mean[1, 0] - s0 == pytest.approx(drift, abs=4 * error + 5e-3 * drift)
    assert found.variance[1, 0] == pytest.approx(v, rel=4 * math.sqrt(6 / n) + 5e-3)


@pytest.mark.parametrize("scheme", ["euler", "milstein", "sgd"])
def test_the_ensemble_drifts_as_ito_says(scheme):
    S, L, s0, eta, B, sigma, n = 1.0, 3, 0.5, 0.01, 1, 3.0, 400_000
    found = run(
        S, L, eta, B, s0=s0, n_steps=1, n_paths=n, scheme=scheme, sigma=sigma, dtype=F64
    )
    moved = (found.mean[1, 0] - s0) / eta
    error = math.sqrt(found.variance[1, 0] / n) / eta
    plain, whole = (
        float(mode_drift(s0, S, L, eta, B, sigma=sigma, ito_correction=on))
        for on in (False, True)
    )
    assert abs(moved - whole) < 4 * error
    assert abs(moved - plain) > 8 * error


@pytest.mark.parametrize("scheme", ["euler", "tamed", "milstein"])
def test_drift_without_the_ito_term(scheme):
    S, L, s0, eta, B, n = 1.0, 3, 0.5, 0.05, 1, 100_000
    common = {"s0": s0, "n_steps": 1, "n_paths": n, "scheme": scheme, "dtype": F64}
    with_term, without = (
        run(S, L, eta, B, sigma=3.0, ito_correction=on, **common).mean[1, 0]
        for on in (True, False)
    )
    term = mode_drift(s0, S, L, eta, B, sigma=3.0) - mode_drift(
        s0, S, L, eta, B, sigma=3.0, ito_correction=False
    )
    assert with_term - without == pytest.approx(eta * float(term), rel=0.15)


def test_scalar_sgd_has_the_law_of_batches_drawn_one_by_one():
    S, L, eta, s0, sigma, lam, n = 1.0, 2, 0.2, 0.7, 0.5, 1.3, 200_000
    rng = np.random.default_rng(5)
    for B in (1, 2, 5):
        x = math.sqrt(lam) * rng.standard_normal((n, B))
        xi = sigma * rng.standard_normal((n, B))
        a = math.sqrt(s0)
        direct = np.abs(a - eta * a * ((s0 - S) * x**2 - xi * x).mean(1)) ** 2
        found = run(
            S, L, eta, B, s0=s0, n_steps=1, n_paths=n, sigma=sigma, lam=lam,
            scheme="sgd", dtype=F64,
        ).final[:, 0]  # fmt: skip
        gap = np.abs(
            np.searchsorted(np.sort(direct), np.sort(found)) - np.arange(n)
        ).max()
        assert gap / n < 1.95 * math.sqrt(2 / n)  # Kolmogorov-Smirnov at 1e-3


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("L", [2, 3])
def test_small_noise_follows_gradient_flow(L, scheme):
    eta, steps = 1e-3, 1500
    found = run(
        [2.0, 1.0], L, eta, 10_000, s0=0.05, n_steps=steps, n_paths=50, scheme=scheme,
        lam=[1.0, 2.0], dtype=F64, record_every=300,
    )  # fmt: skip
    expected = mode_strength(
        eta * found.steps[:, None], 0.05, [2.0, 1.0], L, [1.0, 2.0]
    )
    np.testing.assert_allclose(found.mean, expected, rtol=2e-2)


@pytest.mark.parametrize(
    ("L", "eta", "B", "scheme"),
    [(1, 0.3, 2, "tamed"), (2, 0.2, 3, "tamed"), (3, 0.06, 3, "milstein")],
)
def test_long_runs_reach_the_stationary_law(L, eta, B, scheme):
    S, sigma = 1.0, 0.6
    law = stationary_density(S, L, eta, B, sigma=sigma)
    edges = np.concatenate([[-np.inf], S + law.variance**0.5 * np.linspace(-4, 4, 33)])
    edges = np.append(edges, np.inf)
    found = run(
        S, L, eta, B, s0=S, n_steps=600, n_paths=8000, sigma=sigma, scheme=scheme,
        substeps=8, record_every=20, burn_in=200, bins=edges, dtype=F64,
    )  # fmt: skip
    exact = np.diff([0, *law.cdf(edges[1:-1]), 1])
    seen = found.counts[0] / found.counts.sum()
    assert np.abs(seen - exact).sum() / 2 < 0.02
    late = found.steps >= 200
    mean, variance = found.mean[late].mean(), found.variance[late].mean()
    assert mean == pytest.approx(law.mean, abs=0.01 * S)
    assert variance == pytest.approx(law.variance, rel=0.06)


def test_sgd_of_one_layer_has_the_discrete_variance():
    S, eta, B, sigma = 1.0, 0.5, 2, 0.6
    expected = stationary_moments(S, 1, eta, B, sigma=sigma, method="discrete").variance
    found = run(
        S, 1, eta, B, s0=S, n_steps=200, n_paths=40_000, sigma=sigma, scheme="sgd",
        record_every=10,
    )  # fmt: skip
    late = found.variance[found.steps >= 60]
    assert late.mean() == pytest.approx(expected, rel=0.02)


def test_without_label_noise_paths_end_at_the_target():
    found = run(1.0, 2, 0.2, 4, s0=0.1, n_steps=400)
    assert np.abs(found.final - 1).max() < 1e-5


def test_noise_collapse_and_retention():
    S, B, s0 = 1.0, 1, 0.4
    eta = 1.3  # the origin attracts above 1
    found = run(
        S, 2, eta, B, s0=s0, n_steps=400, n_paths=1000, substeps=64, dtype=F64,
        record_every=400,
    )  # fmt: skip
    kept = float((np.abs(found.final - S) < 1e-3).mean())
    lost = float((found.final < 1e-3).mean())
    p = retention_probability(s0, S, eta, B)
    assert kept + lost > 0.99
    assert kept == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 1000) + 0.01)


def test_label_noise_collapses_a_mode_above_the_rate():
    S, B, sigma, s0 = 1.0, 1, 6.0, 1e-8
    rate = collapse_rate(S, 2, B, sigma=sigma)
    ends = [
        run(S, 2, eta, B, s0=s0, n_steps=round(30 / eta), n_paths=200, sigma=sigma,
            substeps=16, dtype=F64, record_every=10_000).final
        for eta in (rate / 4, 4 * rate)
    ]  # fmt: skip
    assert np.median(ends[0]) > 0.1
    assert ends[1].max() < 1e-12


def reference_paths(L, eta, B, sigma, dW, dt, scheme):
    """The textbook loop in NumPy, on given increments (steps, paths)."""
    a = np.full(dW.shape[1], 0.6)
    c = math.sqrt(eta / B)
    for dw in dW:
        v = 2 * (a**L - 1) ** 2 + sigma**2
        g = c * a ** (L - 1) * np.sqrt(v)
        new = a - a ** (L - 1) * (a**L - 1) * dt + g * dw
        if scheme == "milstein":
            slope = c * (
                (L - 1) * a ** (L - 2) * np.sqrt(v)
                + a ** (L - 1) * 2 * L * a ** (L - 1) * (a**L - 1) / np.sqrt(v)
            )
            new += g * slope * (dw**2 - dt) / 2
        a = new
    return a


@pytest.mark.parametrize("scheme", ["euler", "milstein"])
@pytest.mark.parametrize("L", [2, 3])
def test_schemes_are_those_of_the_textbook(scheme, L):
    eta, B, sigma, n, steps = 0.05, 2, 0.5, 64, 40
    rng = numpy_generator(3, 0)
    dW = np.stack([rng.standard_normal(n) for _ in range(steps)]) * math.sqrt(eta)
    expected = reference_paths(L, eta, B, sigma, dW, eta, scheme) ** L
    found = run(
        1.0, L, eta, B, s0=0.6**L, n_steps=steps, n_paths=n, sigma=sigma, seed=3,
        scheme=scheme, dtype=F64,
    )  # fmt: skip
    np.testing.assert_allclose(found.final[:, 0], expected, rtol=1e-9)


class Driven(ModePaths):
    """Paths driven by given draws (steps, modes, paths)."""

    draws: Iterator[np.ndarray]

    def _normal(self, out):
        out.copy_(torch.from_numpy(next(self.draws)))


@pytest.mark.parametrize(
    ("scheme", "order"), [("euler", 0.5), ("tamed", 0.5), ("milstein", 1.0)]
)
def test_strong_order(scheme, order):
    L, eta, B, sigma, fine, n = 2, 0.2, 1, 0.7, 2**12, 1000
    dW = np.random.default_rng(0).standard_normal((fine, 1, n)) / math.sqrt(fine)
    one = torch.ones(1, 1, dtype=F64)

    def ends(steps, scheme):
        start = torch.full((1, n), 0.8, dtype=F64)
        paths = Driven(
            start, one, L, eta, B, sigma, one, scheme, steps, True, (0, 0)
        )  # fmt: skip
        coarse = dW.reshape(steps, fine // steps, 1, n).sum(1)
        paths.draws = iter(coarse * math.sqrt(steps))
        paths.step()
        return paths.a[0]

    exact = ends(fine, "milstein")
    coarse, finer = ((ends(k, scheme) - exact).abs().mean() for k in (2**4, 2**7))
    slope = math.log(float(coarse / finer)) / math.log(8)
    assert slope == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_paths_depend_on_the_seed_alone(scheme, dtype):
    common = {"scheme": scheme, "dtype": dtype, "n_steps": 30, "sigma": 0.2}
    one = run([2.0, 1.0], 3, 0.05, 2, record_every=1, passage=0.5, **common)
    two = run([2.0, 1.0], 3, 0.05, 2, record_every=7, passage=0.5, **common)
    np.testing.assert_array_equal(one.final, two.final)
    np.testing.assert_array_equal(one.first_passage, two.first_passage)
    assert two.steps.tolist() == [0, 7, 14, 21, 28, 30]
    np.testing.assert_array_equal(one.mean[two.steps], two.mean)
    other = run([2.0, 1.0], 3, 0.05, 2, seed=1, **common)
    assert not np.array_equal(one.final, other.final)


def test_first_passage_and_quantiles_are_those_of_the_paths():
    ends = [
        run(1.0, 2, 0.1, 2, s0=0.2, n_steps=k, n_paths=200, sigma=0.3).final[:, 0]
        for k in range(1, 26)
    ]
    paths = np.stack([np.full(200, 0.2), *ends])
    found = run(1.0, 2, 0.1, 2, s0=0.2, n_steps=25, n_paths=200, sigma=0.3, passage=0.5)
    there = paths >= 0.5
    first = np.where(there.any(0), there.argmax(0), np.inf)
    np.testing.assert_array_equal(found.first_passage[:, 0], first)
    np.testing.assert_allclose(found.mean[:, 0], paths.mean(1), rtol=1e-7)
    expected = np.quantile(paths[-1], found.levels)
    np.testing.assert_allclose(found.quantiles[:, -1, 0], expected, rtol=1e-12)


def test_explosions_are_counted_and_left_out():
    starts = np.concatenate([np.full((10, 1), 1e6), np.full((90, 1), 0.9)])
    with pytest.warns(DynamicsWarning, match="10 of 100 paths exploded"):
        found = run(
            1.0, 3, 0.1, 4, s0=starts, n_paths=100, scheme="euler", record_every=10
        )
    assert found.exploded.tolist() == [10]
    assert np.isfinite(found.mean).all() and found.mean[-1, 0] < 2


def test_the_tamed_scheme_survives_where_euler_explodes():
    common = {"s0": 8.0, "n_paths": 100, "record_every": 10}
    with pytest.warns(DynamicsWarning, match="100 of 100 paths exploded"):
        lost = run(1.0, 3, 0.5, 10**6, scheme="euler", **common)
    assert np.isnan(lost.mean[-1, 0])
    calm = run(1.0, 3, 0.5, 10**6, scheme="tamed", **common)
    assert calm.exploded.tolist() == [0]
    assert calm.mean[-1, 0] == pytest.approx(1, abs=1e-2)


def test_crossings_of_odd_depths():
    common = {"s0": 0.01, "sigma": 9.0, "n_steps": 1}
    found = run(1.0, 3, 0.5, 1, scheme="euler", **common)
    assert found.crossings[0] > 0 and (found.final >= 0).all()
    jumped = run(1.0, 3, 0.5, 1, scheme="sgd", **common)
    assert jumped.crossings[0] == (jumped.final < 0).sum() > 0
    even = run(1.0, 2, 0.5, 1, scheme="sgd", **common)
    assert even.crossings[0] == 0 and (even.final >= 0).all()


def test_what_drew_the_noise():
    assert run(1.0, 2, 0.1, 1).generator == "torch"
    assert run(1.0, 2, 0.1, 1, dtype=F64).generator == "numpy"
    assert run(1.0, 2, 0.1, 1, scheme="sgd").generator == "numpy"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"L": 0}, "L must be an integer of at least 1, got 0"),
        ({"eta": 0.0}, "eta must be positive, got 0.0"),
        ({"B": 0}, "B must be an integer of at least 1, got 0"),
        ({"sigma": -0.1}, "sigma must be non-negative, got -0.1"),
        ({"S": -1.0}, "S must be non-negative, got -1.0"),
        ({"S": []}, "S must be a number or one axis"),
        ({"lam": 0.0}, "lam must be positive, got 0.0"),
        ({"lam": [1.0, 2.0]}, "lam must be a number or one of each of the 1 modes"),
        ({"s0": -0.1}, "s0 must be non-negative, got -0.1"),
        ({"s0": [0.1, 0.2]}, "s0 must be a number or one of each of the 1 modes"),
        ({"s0": np.ones((3, 1))}, r"s0 must be a number, 1 of them or of shape"),
        ({"n_steps": 0}, "n_steps must be an integer of at least 1, got 0"),
        ({"n_paths": 0}, "n_paths must be an integer of at least 1, got 0"),
        ({"substeps": 0}, "substeps must be an integer of at least 1, got 0"),
        ({"record_every": -1}, "record_every must be an integer of at least 1, got -1"),
        ({"scheme": "heun"}, "scheme must be one of"),
        ({"scheme": "sgd", "substeps": 2}, "scheme 'sgd' is discrete"),
        ({"passage": 0.0}, "passage must be a positive fraction of S, got 0.0"),
        ({"bins": [1.0, 0.5]}, "bins must be at least two ascending edges"),
        ({"dtype": torch.float16}, "dtype must be one of"),
    ],
)
def test_bad_input(arguments, message):
    settings = {"S": 1.0, "L": 2, "eta": 0.1, "B": 1} | arguments
    with pytest.raises(InputError, match=message):
        run(**settings)
