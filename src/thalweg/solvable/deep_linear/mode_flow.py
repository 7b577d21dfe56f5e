"""Gradient flow of one aligned and balanced mode, in closed form.

ds/dt = L lam s^(2-2/L) (S - s), time t = learning rate x steps. Source: A. Saxe,
J. McClelland, S. Ganguli, "Exact solutions to the nonlinear dynamics of learning in
deep linear neural networks" (2014).
"""

import numpy as np

from thalweg.errors import InputError
from thalweg.solvable.deep_linear.checks import Reals, depth, nonnegative, positive

_BISECTIONS = 80


def learning_time(
    s0: Reals, s1: Reals, S: Reals, L: int, lam: Reals = 1.0
) -> np.ndarray:
    """Return the time that a mode takes from strength s0 to s1 under gradient flow.

    s1 lies between s0 and the target S, from below or from above; S = 0 is a decaying
    mode. Infinite for s0 = 0 and L >= 2: the origin is a saddle. Arguments broadcast.

    Raises:
        InputError: L < 1, lam <= 0, s0, s1 or S negative, or s1 outside (s0, S).
    """
    L = depth(L)
    s0, s1, S = (nonnegative(n, v) for n, v in (("s0", s0), ("s1", s1), ("S", S)))
    s0, s1, S, lam = np.broadcast_arrays(s0, s1, S, positive("lam", lam))
    inside = ((s0 <= s1) & (s1 < S)) | ((S < s1) & (s1 <= s0))
    if not inside.all():
        i = np.unravel_index(int(np.argmin(inside)), inside.shape)
        raise InputError(
            f"s1 must lie between s0 and S, got s1 = {s1[i]} with s0 = {s0[i]} and "
            f"S = {S[i]}"
        )
    stuck = (s0 == 0) & (L >= 2)
    start = np.where(stuck, s1, s0)
    time = (_clock(s1, S, L) - _clock(start, S, L)) / (lam * L)
    return np.where(stuck, np.where(s1 > 0, np.inf, 0.0), np.where(s0 == s1, 0.0, time))


def escape_time(s0: Reals, S: Reals, L: int, lam: Reals = 1.0) -> np.ndarray:
    """Return the leading order, as s0 -> 0, of the time that a mode waits at zero.

    log(S/s0) / (2 lam S) at depth 2, s0^-(1-2/L) / ((L-2) lam S) above: depth 2 waits
    logarithmically, deeper networks polynomially. Infinite at s0 = 0.

    Raises:
        InputError: L < 2 (nothing to escape from), s0 < 0, S <= 0 or lam <= 0.
    """
    L = depth(L)
    if L < 2:
        raise InputError("L must be at least 2: a single layer has no saddle at zero")
    s0, S, lam = nonnegative("s0", s0), positive("S", S), positive("lam", lam)
    with np.errstate(divide="ignore"):
        if L == 2:
            return np.asarray(np.log(S / s0) / (2 * lam * S))
        return np.asarray(s0 ** -(1 - 2 / L) / ((L - 2) * lam * S))


def mode_strength(
    t: Reals, s0: Reals, S: Reals, L: int, lam: Reals = 1.0
) -> np.ndarray:
    """Return the strength s(t) of a mode under gradient flow from s0 >= 0.

    Exponential for L = 1 and logistic for L = 2; for L >= 3 the closed form t(s) is
    inverted by bisection in log s. Arguments broadcast.

    Raises:
        InputError: L < 1, lam <= 0, or t, s0 or S negative.
    """
    L = depth(L)
    t, s0, S = (nonnegative(n, v) for n, v in (("t", t), ("s0", s0), ("S", S)))
    t, s0, S, lam = np.broadcast_arrays(t, s0, S, positive("lam", lam))
    if L == 1:
        return np.asarray(S + (s0 - S) * np.exp(-lam * t))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        zero_target = _decayed(t, s0, L, lam)
        if L == 2:
            decay = np.exp(-2 * lam * S * t)
            grown = S * s0 / (s0 + (S - s0) * decay)
        else:
            grown = _inverted(t, s0, S, L, lam)
    moving = np.where(S == 0, zero_target, grown)
    return np.where((s0 == 0) | (s0 == S), s0, moving)


def _decayed(t: np.ndarray, s0: np.ndarray, L: int, lam: np.ndarray) -> np.ndarray:
    """Return s(t) of a mode with target zero, L >= 2."""
    n = 2 - 2 / L
    return np.asarray((s0**-n + n * L * lam * t) ** (-1 / n))


def _inverted(
    t: np.ndarray, s0: np.ndarray, S: np.ndarray, L: int, lam: np.ndarray
) -> np.ndarray:
    live = (S > 0) & (s0 > 0) & (s0 != S)
    start, target = np.where(live, s0, 0.5), np.where(live, S, 1.0)
    goal = _clock(start, target, L) + lam * L * t
    near, far = np.log(start), np.log(target)
    for _ in range(_BISECTIONS):
        middle = (near + far) / 2
        late = _clock(np.asarray(np.exp(middle)), target, L) > goal
        near, far = np.where(late, near, middle), np.where(late, middle, far)
    return np.asarray(np.exp((near + far) / 2))


def _clock(s: np.ndarray, S: np.ndarray, L: int) -> np.ndarray:
    """Return the antiderivative of 1 / (s^(2-2/L) (S - s)) on s's side of S."""
    from scipy.special import hyp2f1

    n = 2 - 2 / L
    with np.errstate(divide="ignore", invalid="ignore"):
        if L == 1:
            return np.asarray(-np.log(np.abs(S - s)))
        if L == 2:
            moving = (np.log(s) - np.log(np.abs(S - s))) / S
            return np.where(S == 0, 1 / s, moving)
        m = 2 / L - 1
        below = np.minimum(np.where(S > 0, s / S, 0.5), np.nextafter(1, 0))
        above = np.minimum(np.where(s > 0, S / s, 0.5), np.nextafter(1, 0))
        rising = s**m / (m * S) * hyp2f1(1, m, m + 1, below)
        falling = s**-n / n * hyp2f1(1, n, n + 1, above)
        return np.where(s < S, rising, falling)
