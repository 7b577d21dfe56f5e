"""Observables against plain loops; plateaus against gradient flow and its theory."""

import math

import numpy as np
import pytest
import torch

from draws import draw
from thalweg.errors import DegeneracyWarning, InputError
from thalweg.solvable import DeepLinear
from thalweg.solvable.deep_linear import (
    critical_point,
    find_plateaus,
    initial_strengths,
    learning_time,
    noise_peak,
    observe,
    peak_times,
)

S = (3.0, 1.5, 0.7)


def diagonal(*S):
    return torch.diag(torch.tensor(S, dtype=torch.float64))


def turned(*S):
    U, V = (torch.linalg.qr(draw(n, n, seed=n)).Q for n in (3, 4))
    return U @ diagonal(*S) @ V[:3]


def test_observables_against_plain_loops():
    land = DeepLinear(turned(*S), (4, 5, 3), sigma=0.4)
    points = 0.5 * draw(2, 3, land.dim, seed=1)
    seen = observe(land, points, B=3, threshold=0.1)
    for i in np.ndindex(2, 3):
        W1, W2 = (W.numpy() for W in land.weights(points[i]))
        W, M = W2 @ W1, land.teacher.numpy()
        U, s, _ = np.linalg.svd(W)
        UM, SM, VM = np.linalg.svd(M)
        C = UM.T @ W @ VM[:3].T
        for found, expected in (
            (seen.loss, ((W - M) ** 2).sum() / 2),
            (seen.strengths, np.diag(C)),
            (seen.misalignment, np.linalg.norm(C - np.diag(np.diag(C)))),
            (seen.cosines, [abs(UM[:, a] @ U[:, a]) for a in range(3)]),
            (seen.singular_values, s),
            (seen.stable_rank, (s**2).sum() / s[0] ** 2),
            (seen.rank, (s > 0.1 * SM[0]).sum()),
            (seen.imbalance, [np.linalg.norm(W2.T @ W2 - W1 @ W1.T)]),
            (seen.drift, land.gradient(points[i]).norm()),
            (seen.noise, land.noise_covariance(points[i], 3).dense().trace()),
        ):
            np.testing.assert_allclose(found[i], expected, rtol=1e-9)
        ratio = float(seen.drift[i]) ** 2 / float(seen.noise[i])
        assert float(seen.ratio[i]) == pytest.approx(ratio, rel=1e-12)


def test_the_noise_of_all_parameters_along_gradient_flow():
    """Without label noise it vanishes once everything is learned, as a mode's does."""
    land = DeepLinear(diagonal(1.0), (1, 1, 1))
    s0 = 1e-3
    times = np.linspace(0, float(learning_time(s0, 0.999, 1.0, 2)), 4001)
    noise = observe(land, land.gradient_flow(land.aligned(s0), times), B=2).noise
    # One mode and one unit: of each layer a², so 2 a² v / B; its peak is at S/3.
    place = noise_peak(1.0, 2, coordinate="layer").peak
    expected = float(learning_time(s0, place, 1.0, 2))
    assert times[int(noise.argmax())] == pytest.approx(expected, abs=2 * times[1])
    assert float(noise.max()) == pytest.approx(place * 2 * (1 - place) ** 2, rel=1e-6)
    assert expected < peak_times(s0, 1.0, 2).peak < times[-1]
    assert float(noise[-1]) < 1e-5


def test_coupled_modes_are_not_reported():
    Sigma = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    land = DeepLinear(diagonal(2.0, 1.0), (2, 2, 2), Sigma=Sigma)
    seen = observe(land, draw(land.dim))
    assert seen.strengths is seen.misalignment is seen.cosines is None
    times = np.linspace(0, 20, 400)
    start = land.gaussian_start(seed=0, std=1e-3)
    found = find_plateaus(land, times, land.gradient_flow(start, times))
    assert [p.rank for p in found] == [0, 1]
    assert {p.predicted_loss for p in found} == {None}
    with pytest.raises(InputError, match="Sigma must be diagonal"):
        initial_strengths(land, start)


def test_equal_strengths_are_seen_as_a_block():
    land = DeepLinear(turned(2.0, 1.0, 1.0), (4, 3, 3))
    with pytest.warns(DegeneracyWarning, match=r"blocks \[\[0\], \[1, 2\]\]"):
        seen = observe(land, land.aligned([2.0, 1.0, 1.0]))
    torch.testing.assert_close(
        seen.strengths, torch.tensor([2.0, 1.0]).double(), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(seen.cosines, torch.ones(2).double())
    assert float(seen.misalignment) < 1e-12


def test_what_starts_to_grow_in_two_layers():
    land = DeepLinear(turned(*S), (4, 30, 3))
    aligned = initial_strengths(land, land.aligned([0.3, 0.2, 0.1]))
    torch.testing.assert_close(
        aligned, torch.tensor([0.3, 0.2, 0.1]).double(), rtol=1e-6, atol=0
    )
    start = land.gaussian_start(seed=3, std=1e-5)
    s0 = initial_strengths(land, start)
    early = land.gradient_flow(start, [2.0])
    grown = land.mode_matrix(early[0]).diagonal()
    expected = s0 * torch.exp(2 * torch.tensor(S).double() * 2.0)
    torch.testing.assert_close(grown[:1], expected[:1], rtol=0.01, atol=0)


@pytest.mark.parametrize("rule", ["gradient", "rank"])
def test_plateaus_of_gradient_flow_from_a_small_start(rule):
    land = DeepLinear(turned(*S), (4, 20, 3))
    start = land.gaussian_start(seed=0, std=1e-4)
    times = np.linspace(0, 25, 1501)
    points = land.gradient_flow(start, times)
    found = find_plateaus(land, times, points, rule=rule)
    assert [p.rank for p in found] == [0, 1, 2]
    losses = [sum(x * x for x in S[k:]) / 2 for k in range(3)]
    strengths = observe(land, points).strengths.numpy()
    learned = [0.0, *(times[np.argmax(strengths[:, a] > 0.95 * S[a])] for a in (0, 1))]
    leaving = [times[np.argmax(strengths[:, a] > 0.05 * S[a])] for a in range(3)]
    for k, plateau in enumerate(found):
        assert plateau.predicted_loss == pytest.approx(losses[k], rel=1e-9)
        assert plateau.loss == pytest.approx(losses[k], rel=0.01)
        assert plateau.predicted_entry == pytest.approx(learned[k], rel=0.05)
        assert plateau.predicted_exit == pytest.approx(leaving[k], rel=0.05)
        assert plateau.start < plateau.predicted_exit
        assert plateau.end > plateau.predicted_entry
        H = land.hessian(land.flatten(_turned_saddle(land, k))).dense()
        assert plateau.saddle_index == int((torch.linalg.eigvalsh(H) < -1e-9).sum())


def _turned_saddle(land, k):
    first, *between, last = critical_point(S, range(k), (3, *land.widths[1:-1], 3))
    return [first @ land.modes.V.T, *between, land.modes.U @ last]


def test_deep_plateaus_are_not_strict_and_sgd_passes_them_too():
    land = DeepLinear(diagonal(*S), (3, 3, 3, 3), sigma=0.05)
    eta, steps = 0.01, 3000
    for B in (None, 32):
        run = land.simulate_sgd(
            land.aligned([0.01, 0.004, 0.002]), eta, B, n_steps=steps, seed=0,
            record_every=5,
        )  # fmt: skip
        found = find_plateaus(land, eta * run.steps, run.points[:, 0], quantile=0.0)
        assert [p.rank for p in found] == [0, 1, 2]
        assert [p.saddle_index for p in found] == [0, 0, 0]
        for p in found:
            assert p.loss == pytest.approx(p.predicted_loss, rel=0.1)


def test_no_plateau_is_an_answer():
    land = DeepLinear(diagonal(*S), (3, 3, 3))
    times = np.linspace(0, 10, 300)
    for rule in ("gradient", "rank"):
        points = land.gradient_flow(land.aligned(0.6), times)
        assert find_plateaus(land, times, points, rule=rule) == ()
        one = DeepLinear(diagonal(*S), (3, 3))  # has no saddles
        points = one.gradient_flow(one.aligned(1e-3), times)
        assert find_plateaus(one, times, points, rule=rule) == ()


def test_times_are_unknown_of_modes_that_start_negative_or_at_zero():
    land = DeepLinear(diagonal(2.0, 1.0), (2, 2, 2, 2))
    times = np.linspace(0, 1, 20)
    start = land.aligned([0.01, 0.0])
    flow = land.gradient_flow(start, times)
    assert find_plateaus(land, times, flow)[0].predicted_exit > 0
    at_rest = torch.zeros(20, land.dim, dtype=torch.float64)
    (plateau,) = find_plateaus(land, times, at_rest, rule="rank")
    assert (plateau.rank, plateau.predicted_exit) == (0, math.inf)
    negative = land.flatten([-W if i == 0 else W for i, W in
                             enumerate(land.weights(land.aligned(0.01)))])  # fmt: skip
    (plateau,) = find_plateaus(land, times, negative.expand(20, -1), rule="rank")
    assert math.isnan(plateau.predicted_exit)


def test_a_teacher_without_modes_is_unlearned():
    land = DeepLinear(torch.zeros(2, 3, dtype=torch.float64), (3, 2, 2), sigma=0.1)
    run = land.simulate_sgd(
        land.gaussian_start(seed=0, std=0.5), 0.1, 4, n_steps=200, seed=0
    )
    assert run.loss[-1] < run.loss[0] / 10
    seen = observe(land, run.points[:, 0])
    assert seen.strengths.shape == seen.cosines.shape == (101, 0)
    assert find_plateaus(land, 0.1 * run.steps, run.points[:, 0]) == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "loss"}, "rule must be one of"),
        ({"quantile": 1.0}, r"quantile must lie in \[0, 1\), got 1.0"),
        ({"prominence": 0.0}, "prominence must be positive, got 0.0"),
        ({"shortest": -1.0}, "shortest must be non-negative, got -1.0"),
        ({"threshold": 1.0}, r"threshold must lie in \(0, 1\), got 1.0"),
        ({"times": np.zeros(3)}, "times must be at least two and ascending"),
        ({"times": np.arange(4.0)}, "points must be one for each of the 4 times"),
    ],
)
def test_bad_input(options, message):
    land = DeepLinear(diagonal(2.0, 1.0), (2, 2, 2))
    settings = {"times": np.arange(3.0)} | options
    with pytest.raises(InputError, match=message):
        find_plateaus(land, settings.pop("times"), draw(3, land.dim), **settings)
    with pytest.raises(InputError, match="threshold must lie in"):
        observe(land, draw(land.dim), threshold=0.0)
