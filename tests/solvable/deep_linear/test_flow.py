"""Closed-form gradient flow against quadrature and an ODE solver."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp

from draws import draw
from thalweg.errors import InputError
from thalweg.solvable import DeepLinear
from thalweg.solvable.deep_linear import (
    escape_time,
    learning_time,
    mode_strength,
    two_layer_flow,
)


@pytest.mark.parametrize("L", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(
    ("s0", "s1", "S"),
    [(0.01, 1.9, 2.0), (0.3, 0.31, 2.0), (5.0, 2.1, 2.0), (0.9, 0.2, 0.0)],
)
def test_times_against_quadrature(L, s0, s1, S):
    lam = 0.7
    # In log s the integrand is smooth.
    expected, _ = quad(
        lambda u: np.exp(u * (2 / L - 1)) / (L * lam * (S - np.exp(u))),
        np.log(s0), np.log(s1), epsabs=0, epsrel=1e-12, limit=200,
    )  # fmt: skip
    assert float(learning_time(s0, s1, S, L, lam)) == pytest.approx(expected, rel=1e-9)


def test_depth_four_in_elementary_terms():
    s0, s1, S, lam = 0.02, 1.4, 1.7, 0.8
    u0, u1, R = np.sqrt(s0), np.sqrt(s1), np.sqrt(S)
    arcs = np.arctanh(u1 / R) - np.arctanh(u0 / R)
    expected = ((1 / u0 - 1 / u1) / S + S**-1.5 * arcs) / (2 * lam)
    assert float(learning_time(s0, s1, S, 4, lam)) == pytest.approx(expected, rel=1e-11)


def test_the_limit_of_infinite_depth():
    s0, s1, S, L = 0.2, 1.4, 1.7, 10**5
    logs = np.log(s1 * (S - s0) / (s0 * (S - s1)))
    expected = (1 / s0 - 1 / s1) / S + logs / S**2
    assert L * float(learning_time(s0, s1, S, L)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("L", [1, 2, 3, 5])
@pytest.mark.parametrize(("s0", "S"), [(1e-3, 1.5), (4.0, 1.5), (0.6, 0.0)])
def test_strength_against_an_ode(L, s0, S):
    lam, times = 0.9, np.array([0.0, 0.1, 1.0, 5.0, 40.0])
    solution = solve_ivp(
        lambda t, s: L * lam * s ** (2 - 2 / L) * (S - s), (0, 40), [s0],
        method="DOP853", t_eval=times, rtol=1e-12, atol=1e-16,
    )  # fmt: skip
    strength = mode_strength(times, s0, S, L, lam)
    np.testing.assert_allclose(strength, solution.y[0], rtol=1e-8, atol=1e-13)


def test_strength_and_time_are_inverse_and_broadcast():
    S = np.array([2.0, 1.0])
    times = learning_time(1e-4, 0.5 * S, S, 3)
    np.testing.assert_allclose(mode_strength(times, 1e-4, S, 3), 0.5 * S, rtol=1e-9)
    assert times[0] < times[1]


def test_fixed_points_stay():
    assert float(mode_strength(3.0, 0.0, 1.0, 3)) == 0.0
    assert float(mode_strength(3.0, 1.0, 1.0, 3)) == 1.0
    assert float(mode_strength(1e6, 0.5, 1.0, 3)) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("L", [2, 3, 5])
def test_escape_time_is_the_leading_order(L):
    S, lam = 1.3, 0.6
    ratios = [
        float(learning_time(s0, S / 2, S, L, lam) / escape_time(s0, S, L, lam))
        for s0 in (1e-4, 1e-12)
    ]
    assert abs(ratios[1] - 1) < abs(ratios[0] - 1) + 1e-12
    assert ratios[1] == pytest.approx(1, abs=0.03)
    assert np.isinf(escape_time(0.0, S, L))
    assert np.isinf(learning_time(0.0, 0.5, S, L))


@pytest.mark.parametrize("L", [2, 3])
def test_aligned_matrices_follow_the_modes_and_any_start_conserves_balance(L):
    M = draw(3, 3)
    land = DeepLinear(M, (3,) * (L + 1))
    s0, times = np.array([0.05, 0.03, 0.02]), np.array([0.5, 2.0])
    path = land.gradient_flow(land.aligned(s0), times)
    C = land.mode_matrix(path)
    expected = mode_strength(times[:, None], s0, land.modes.S, L)
    np.testing.assert_allclose(C.diagonal(dim1=-2, dim2=-1), expected, rtol=1e-7)
    start = 0.3 * draw(land.dim, seed=1)
    end = land.gradient_flow(start, 3.0)[0]
    for before, after in zip(land.balance(start), land.balance(end), strict=True):
        torch.testing.assert_close(before, after, rtol=0, atol=1e-8)


@pytest.mark.parametrize("rank", [1, 3])
def test_exact_two_layer_flow_against_an_ode(rank):
    M = draw(4, rank) @ draw(rank, 3, seed=1)  # not square, singular F
    land = DeepLinear(M, (3, 5, 4))
    # Balanced and unaligned: W_2 = A root, W_1 = root B with orthonormal A, B.
    A, B = (torch.linalg.qr(draw(n, 3, seed=n)).Q for n in (4, 3))
    R = torch.linalg.qr(draw(5, 3, seed=7)).Q
    root = torch.diag(torch.tensor([0.4, 0.3, 0.1], dtype=torch.float64))
    W1, W2 = R @ root @ B.T, A @ root @ R.T
    times = np.array([8.0, 0.0, 0.3, 60.0])
    exact = two_layer_flow(W1, W2, M, times)
    path = land.gradient_flow(land.flatten([W1, W2]), times, rtol=1e-12)
    torch.testing.assert_close(exact, land.product(path), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: learning_time(0.1, 0.5, 1.0, 0), "L must be an integer of at least 1"),
        (lambda: learning_time(0.1, 1.5, 1.0, 2), "s1 must lie between s0 and S"),
        (lambda: learning_time(-0.1, 0.5, 1.0, 2), "s0 must be non-negative, got -0.1"),
        (lambda: learning_time(0.1, 0.5, 1.0, 2, 0.0), "lam must be positive, got 0.0"),
        (lambda: escape_time(0.1, 1.0, 1), "L must be at least 2"),
        (lambda: escape_time(0.1, -1.0, 2), "S must be positive"),
        (lambda: mode_strength(-1.0, 0.1, 1.0, 2), "t must be non-negative"),
        (lambda: mode_strength(np.nan, 0.1, 1.0, 2), "t must be finite"),
        (
            lambda: two_layer_flow(torch.eye(2), 2 * torch.eye(2), torch.eye(2), 1.0),
            "W1 and W2 must be balanced",
        ),
        (
            lambda: two_layer_flow(torch.eye(2), torch.eye(3), torch.eye(2), 1.0),
            "do not fit together",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
