"""Minibatch SGD on the matrices against its covariance, loops and gradient flow."""

import math

import numpy as np
import pytest
import torch

from draws import draw
from thalweg.errors import (
    DegeneracyWarning,
    DynamicsWarning,
    InputError,
    StructureError,
)
from thalweg.solvable import DeepLinear
from thalweg.solvable.deep_linear import learning_time, mode_diffusion


def diagonal(*S):
    return torch.diag(torch.tensor(S, dtype=torch.float64))


def one_step(land, point, B, n, **options):
    """Gradients (n, dim) that the replicas took in one step."""
    eta = 0.01
    run = land.simulate_sgd(point, eta, B, n_steps=1, n_paths=n, seed=0, **options)
    return (point - run.final) / eta


# One step ---------------------------------------------------------------------------


@pytest.mark.parametrize("B", [1, 2, 3, 7])
def test_fresh_batches_have_the_mean_and_the_covariance_of_the_gradient(B):
    root = draw(3, 3, seed=5)
    land = DeepLinear(
        draw(2, 3), (3, 2, 2), sigma=0.7, Sigma=root @ root.T
    )  # does not commute with the teacher
    point, n = draw(land.dim, seed=1), 100_000
    g = one_step(land, point, B, n)
    C = land.noise_covariance(point, B).dense()
    scale = C.diagonal().sqrt()
    gap = (g.mean(0) - land.gradient(point)) / scale
    assert float(gap.abs().max()) < 4 / math.sqrt(n)
    found = torch.cov(g.T) / scale / scale[:, None]
    expected = C / scale / scale[:, None]
    # heavy tails: the variance of a product of four Gaussians
    torch.testing.assert_close(found, expected, rtol=0, atol=12 / math.sqrt(n))


def test_wishart_batches_have_the_law_of_inputs_drawn_one_by_one():
    land = DeepLinear(draw(2, 3), (3, 2, 2), sigma=0.7)
    point, n, B = draw(land.dim, seed=1), 50_000, 3
    M, (W1, W2) = land.teacher, land.weights(point)
    X, xi = draw(n, 3, B, seed=2), 0.7 * draw(n, 2, B, seed=3)
    G = ((W2 @ W1 - M) @ X - xi) @ X.mT / B
    direct = land.flatten([W2.T @ G, G @ W1.T])
    found = one_step(land, point, B, n)
    for seed in range(4):
        along = draw(land.dim, seed=10 + seed)
        one, two = (np.sort((g @ along).numpy()) for g in (direct, found))
        gap = np.abs(np.searchsorted(one, two) - np.arange(n)).max() / n
        assert gap < 1.95 * math.sqrt(2 / n)  # Kolmogorov-Smirnov at 1e-3


@pytest.mark.parametrize(("replacement", "B"), [(True, 3), (False, 3), (False, 6)])
def test_batches_of_a_data_set(replacement, B):
    land = DeepLinear(draw(2, 3), (3, 2, 2))
    data = draw(6, 3, seed=3), draw(6, 2, seed=4)
    point, n = draw(land.dim, seed=1), 40_000
    options = {"data": data, "replacement": replacement}
    g = one_step(land, point, B, n, **options)
    full = one_step(land, point, None, 1, data=data)[0]
    X, Y = data

    def loss(p):
        W1, W2 = land.weights(p)
        return (X @ W1.T @ W2.T - Y).square().sum() / 2 / len(X)

    torch.testing.assert_close(full, torch.func.grad(loss)(point), rtol=1e-9, atol=1e-9)
    C = land.noise_covariance(point, B, **options).dense()
    scale = float(C.diagonal().max().sqrt())
    spread = 4 * scale / math.sqrt(n) + 1e-9
    torch.testing.assert_close(g.mean(0), full, rtol=0, atol=spread)
    atol = 8 * scale * spread + 1e-20
    torch.testing.assert_close(torch.cov(g.T), C, rtol=0, atol=atol)


@pytest.mark.parametrize("L", [1, 2, 3])
def test_one_step_moves_a_strength_with_the_variance_of_its_diffusion(L):
    S, s, eta, B, sigma, n = (1.5, 0.8), (0.9, 0.2), 1e-3, 4, 0.4, 100_000
    land = DeepLinear(diagonal(*S), (2,) * (L + 1), sigma=sigma)
    run = land.simulate_sgd(
        land.aligned(s), eta, B, n_steps=1, n_paths=n, seed=0, record_every=1
    )
    expected = eta * mode_diffusion(s, S, L, eta, B, sigma=sigma)
    error = 4 * math.sqrt(8 / n) + 5e-3
    np.testing.assert_allclose(run.strength_variance[1], expected, rtol=error)


# The reduction to independent modes -------------------------------------------------


def test_the_reduction_to_modes_is_exact_for_the_projected_noise_alone():
    """The documentation says so: with the whole noise weights leave the manifold."""
    L, eta, B, sigma, S = 3, 0.05, 2, 0.3, diagonal(1.5, 0.8).diagonal()
    land = DeepLinear(torch.diag(S), (2, 2, 2, 2), sigma=sigma)
    point = land.aligned([0.5, 0.4])
    a = diagonal(0.5, 0.4).diagonal() ** (1 / L)
    projected = point.clone()
    for step in range(50):
        x, xi = draw(2, B, seed=2 * step), sigma * draw(2, B, seed=2 * step + 1)
        W1, W2, W3 = land.weights(projected)
        G = ((W3 @ W2 @ W1 - land.teacher) @ x - xi) @ x.T / B
        G = torch.diag(G.diagonal())  # the projection
        gradient = [W2.T @ W3.T @ G, W3.T @ G @ W1.T, G @ W1.T @ W2.T]
        projected = projected - eta * land.flatten(gradient)
        a = a - eta * a ** (L - 1) * (((a**L - S)[:, None] * x - xi) * x).mean(1)
        C = land.mode_matrix(projected)
        torch.testing.assert_close(C, torch.diag(a**L), rtol=1e-10, atol=1e-12)
        assert all(float(gap.abs().max()) < 1e-12 for gap in land.balance(projected))

    def squared_misalignment(eta, B):
        run = land.simulate_sgd(
            point, eta, B, n_steps=round(2 / eta), n_paths=1000, seed=1
        )
        C = land.mode_matrix(run.final)
        return float((C - torch.diag_embed(C.diagonal(dim1=-2, dim2=-1))).square()
                     .sum((-2, -1)).mean())  # fmt: skip

    whole, half, wide = (
        squared_misalignment(*at) for at in ((0.02, 2), (0.01, 2), (0.02, 4))
    )
    assert whole > 1e-3
    assert whole / half == pytest.approx(2, rel=0.15)  # of order eta d / B
    assert whole / wide == pytest.approx(2, rel=0.15)
    assert squared_misalignment(0.02, None) < 1e-25


# Long runs --------------------------------------------------------------------------


@pytest.mark.parametrize("L", [2, 3])
def test_half_learning_times_are_those_of_gradient_flow(L):
    S, s0, eta = (2.0, 1.2, 0.7), 0.02, 2e-3
    land = DeepLinear(diagonal(*S), (3,) * (L + 1), sigma=0.1)
    expected = learning_time(s0, np.array(S) / 2, S, L)
    run = land.simulate_sgd(
        land.aligned(s0), eta, 64, n_steps=round(1.3 * expected[-1] / eta),
        n_paths=40, seed=0, passage=0.5,
    )  # fmt: skip
    np.testing.assert_allclose(eta * run.first_passage.mean(0), expected, rtol=0.05)


@pytest.mark.parametrize("B", [None, 8])
def test_modes_are_learned_in_the_order_of_their_strengths(B):
    S, eta = (3.0, 1.5, 0.7), 0.01
    U, V = (torch.linalg.qr(draw(n, n, seed=n)).Q for n in (3, 4))
    land = DeepLinear(U @ diagonal(*S) @ V[:3], (4, 5, 3), sigma=0.1)
    start = land.gaussian_start(seed=0, n=20, gamma=4.0)
    run = land.simulate_sgd(start, eta, B, n_steps=2000, seed=0, passage=0.5)
    assert (np.diff(run.first_passage, axis=1) > 0).all()
    assert np.isfinite(run.first_passage).all()


def test_gradient_descent_is_the_loop():
    root = draw(3, 3, seed=5)
    land = DeepLinear(draw(2, 3), (3, 4, 4, 2), Sigma=root @ root.T / 3)
    start = 0.4 * draw(2, land.dim, seed=2)
    run = land.simulate_sgd(start, 0.02, None, n_steps=50, seed=0, keep=2)
    point = start
    for _ in range(50):
        point = point - 0.02 * land.gradient(point)
    torch.testing.assert_close(run.final, point, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(run.points[-1], point, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(run.points[0], start, rtol=0, atol=0)
    assert run.strengths is None and run.misalignment is None  # modes are coupled
    assert run.loss[-1] == pytest.approx(float(land.loss(point).mean()), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_replicas_depend_on_the_seed_alone(dtype):
    land = DeepLinear(diagonal(1.0, 0.5), (2, 3, 2), sigma=0.2)
    start = land.gaussian_start(seed=0, std=[0.1, 0.2], n=8).to(dtype)
    runs = [
        land.simulate_sgd(
            start, 0.05, 4, n_steps=30, seed=seed, record_every=every, passage=0.3
        )
        for seed, every in ((0, 1), (0, 7), (1, 7))
    ]
    assert runs[0].final.dtype == dtype
    assert torch.equal(runs[0].final, runs[1].final)
    np.testing.assert_array_equal(runs[0].first_passage, runs[1].first_passage)
    assert runs[1].steps.tolist() == [0, 7, 14, 21, 28, 30]
    np.testing.assert_array_equal(runs[0].loss[runs[1].steps], runs[1].loss)
    assert not torch.equal(runs[1].final, runs[2].final)
    assert torch.equal(
        start, land.gaussian_start(seed=0, std=[0.1, 0.2], n=8).to(dtype)
    )
    runs[0].final.requires_grad_()  # no inference tensor


def test_exploded_replicas_are_counted_and_left_out():
    land = DeepLinear(diagonal(1.0, 0.5), (2, 2, 2), sigma=0.1)
    good = land.aligned(0.3)
    start = torch.stack([good, 1e4 * good, good])
    with pytest.warns(DynamicsWarning, match="1 of 3 replicas exploded"):
        run = land.simulate_sgd(start, 0.05, 16, n_steps=200, seed=0)
    assert run.exploded == 1
    assert np.isfinite(run.loss).all() and run.loss[-1] < 0.1
    assert np.isfinite(run.strengths).all()


# Degenerate teachers ----------------------------------------------------------------


def test_repeated_strengths_are_taken_as_blocks():
    U, V = (torch.linalg.qr(draw(3, 3, seed=n)).Q for n in (3, 4))
    land = DeepLinear(U @ diagonal(2.0, 1.0, 1.0) @ V.T, (3, 3, 3), sigma=0.1)
    assert land.modes.repeated
    assert land.modes.blocks == (slice(0, 1), slice(1, 3))
    turn = torch.linalg.qr(draw(2, 2, seed=8)).Q
    start = land.gaussian_start(seed=0, n=5, std=0.05)
    with pytest.warns(DegeneracyWarning, match=r"blocks \[\[0\], \[1, 2\]\]"):
        run = land.simulate_sgd(start, 0.02, 8, n_steps=600, seed=0, passage=0.5)
    assert run.strengths.shape[1] == 2
    np.testing.assert_allclose(run.strengths[-1], [2, 1], rtol=0.05)
    # What is reported does not see a rotation inside the block.
    C = land.mode_matrix(run.final)
    turned = C.clone()
    turned[:, 1:] = turn.T @ turned[:, 1:]
    turned[:, :, 1:] = turned[:, :, 1:] @ turn
    traces = turned[:, 1:, 1:].diagonal(dim1=1, dim2=2).mean(-1)
    np.testing.assert_allclose(traces.mean(), run.strengths[-1, 1], rtol=1e-12)
    outside = turned.clone()
    outside[:, 0, 0] = 0
    outside[:, 1:, 1:] = 0
    expected = outside.square().sum((1, 2)).sqrt().mean()
    np.testing.assert_allclose(run.misalignment[-1], expected, rtol=1e-12)


def test_a_narrow_network_learns_what_it_can_carry():
    land = DeepLinear(diagonal(2.0, 1.0, 0.5), (3, 1, 3))
    start = land.gaussian_start(seed=0, std=0.1)
    run = land.simulate_sgd(start, 0.05, None, n_steps=1000, seed=0, passage=0.5)
    assert land.modes.learnable == 1
    assert run.first_passage[0].tolist()[1:] == [math.inf, math.inf]
    assert run.loss[-1] == pytest.approx(land.lowest_loss, rel=1e-6)
    assert land.lowest_loss == pytest.approx((1 + 0.25) / 2, rel=1e-12)


# Starts -----------------------------------------------------------------------------


def test_starts():
    land = DeepLinear(draw(2, 3), (3, 40, 50, 2))
    W1, W2, W3 = land.weights(land.gaussian_start(seed=0, gamma=1.5))
    std = 50**-0.75
    for W in (W1, W2, W3):
        error = 4 / math.sqrt(2 * W.numel())
        assert float(W.std()) == pytest.approx(std, rel=error)
    W1, W2, W3 = land.weights(land.gaussian_start(seed=0, std=[1.0, 2.0, 3.0]))
    assert float(W2.std()) == pytest.approx(2, rel=0.07)
    points = land.balanced_start(0.3, seed=1, n=4)
    assert points.shape == (4, land.dim)
    for gap in land.balance(points):
        assert float(gap.abs().max()) < 1e-14
    values = [torch.linalg.svdvals(W)[:, :2] for W in land.weights(points)]
    torch.testing.assert_close(values[0], values[1], rtol=1e-12, atol=0)
    assert torch.linalg.matrix_norm(land.product(points)).std() > 0
    one = land.balanced_start(0.3, seed=1)
    torch.testing.assert_close(one, points[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": 0.1, "gamma": 2.0}, "give exactly one of std and gamma"),
        ({}, "give exactly one of std and gamma"),
        ({"std": 0.0}, "std must be positive, got 0.0"),
        ({"std": [1.0, 2.0, 3.0]}, "std must be a number or one of each of the 2"),
        ({"std": 1.0, "n": 0}, "n must be an integer of at least 1, got 0"),
    ],
)
def test_bad_starts(options, message):
    land = DeepLinear(torch.eye(2), (2, 2, 2))
    with pytest.raises(InputError, match=message):
        land.gaussian_start(seed=0, **options)


def test_a_balanced_start_needs_a_scale():
    with pytest.raises(InputError, match="scale must be positive, got 0"):
        DeepLinear(torch.eye(2), (2, 2, 2)).balanced_start(0.0, seed=0)


X, Y = torch.ones(4, 2), torch.ones(4, 2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"eta": 0.0}, InputError, "eta must be positive, got 0.0"),
        ({"B": 0}, InputError, "B must be an integer of at least 1, got 0"),
        ({"n_steps": 0}, InputError, "n_steps must be an integer of at least 1, got 0"),
        ({"n_paths": 0}, InputError, "n_paths must be an integer of at least 1, got 0"),
        (
            {"record_every": -2},
            InputError,
            "record_every must be an integer of at least 1, got -2",
        ),
        ({"keep": -1}, InputError, "keep must be an integer of at least 1, got -1"),
        ({"passage": 0.0}, InputError, "passage must be a positive fraction"),
        ({"levels": (1.5,)}, InputError, r"levels must lie in \[0, 1\], got"),
        ({"start": torch.ones(7)}, InputError, r"start must have shape \(8,\) or"),
        ({"start": torch.ones(8) / 0}, InputError, "start must be finite"),
        ({"start": torch.ones(8).half()}, InputError, "start must be float32 or"),
        (
            {"start": torch.ones(3, 8), "n_paths": 2},
            InputError,
            "n_paths must be the number of starts 3, got 2",
        ),
        (
            {"data": (X, Y), "B": 5, "replacement": False},
            InputError,
            "B must be at most the 4 examples without replacement, got 5",
        ),
        ({"data": (X, Y[:3])}, StructureError, "inputs and targets must have as many"),
    ],
)
def test_bad_runs(options, error, message):
    land = DeepLinear(diagonal(1.0, 0.5), (2, 2, 2))
    settings = {"start": torch.ones(8), "eta": 0.1, "B": 2, "n_steps": 3, "seed": 0}
    settings |= options
    with pytest.raises(error, match=message):
        land.simulate_sgd(
            settings.pop("start"), settings.pop("eta"), settings.pop("B"), **settings
        )


def test_first_passages_need_modes_that_decouple():
    Sigma = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    land = DeepLinear(diagonal(2.0, 1.0), (2, 2, 2), Sigma=Sigma)
    with pytest.raises(InputError, match="Sigma must be diagonal in the teacher's"):
        land.simulate_sgd(torch.ones(8), 0.1, 2, n_steps=2, seed=0, passage=0.5)
