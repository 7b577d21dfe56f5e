"""Critical points of the excess loss and the signs of their Hessian (Sigma = I).

Aligned and balanced: a subset of modes is learned, the others are zero. Sources:
P. Baldi, K. Hornik, "Neural networks and principal component analysis" (1989);
E. Achour, F. Malgouyres, S. Gerchinovitz, "The loss landscape of deep linear neural
networks: a second-order analysis" (2024).
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import InputError
from thalweg.solvable.deep_linear.checks import (
    Reals,
    depth,
    descending,
    positive,
    widths_of,
)


def critical_point(
    S: Reals, subset: Iterable[int], widths: Sequence[int]
) -> tuple[Tensor, ...]:
    """Return the balanced weights W_1..W_L that have learned exactly the modes given.

    In the teacher's own basis, M = diag(S): hidden unit i carries the i-th learned mode
    with S_a^(1/L) in every layer.

    Args:
        S: Strengths (r,) in descending order.
        subset: Indices of the learned modes, counted from 0.
        widths: (d_0, ..., d_L), with d_0 and d_L at least r.

    Raises:
        InputError: An index is repeated or no mode, or a hidden layer is narrower than
            the number of learned modes.
    """
    strengths, learned, widths = _checked(S, subset, widths)
    L = len(widths) - 1
    weights = []
    for layer in range(1, L + 1):
        W = torch.zeros(widths[layer], widths[layer - 1], dtype=torch.float64)
        for unit, mode in enumerate(learned):
            row = mode if layer == L else unit
            column = mode if layer == 1 else unit
            W[row, column] = strengths[mode] ** (1 / L)
        weights.append(W)
    return tuple(weights)


def saddle_index(S: Reals, subset: Iterable[int], widths: Sequence[int]) -> int:
    """Return the number of negative Hessian eigenvalues at a critical point.

    Every pair (a learned, b not) with S_b > S_a gives one, S_a^(1-2/L) (S_a - S_b). At
    depth 2 each of the h - |A| free hidden units gives one more, -S_b, for every
    unlearned b. So at depth 3 and more the saddles with the top k modes learned have
    none: they are not strict, and the escape from them is polynomially slow.

    Raises:
        InputError: See `critical_point`.
    """
    return len(negative_eigenvalues(S, subset, widths))


def negative_eigenvalues(
    S: Reals, subset: Iterable[int], widths: Sequence[int]
) -> np.ndarray:
    """Return the negative Hessian eigenvalues at a critical point, ascending.

    Raises:
        InputError: See `critical_point`.
    """
    strengths, learned, widths = _checked(S, subset, widths)
    L = len(widths) - 1
    missing = [b for b in range(len(strengths)) if b not in learned]
    values = []
    if L >= 2:
        for a in learned:
            for b in missing:
                gap = strengths[a] - strengths[b]
                if gap < 0:
                    values.append(strengths[a] ** (1 - 2 / L) * gap)
    if L == 2:
        values += [-strengths[b] for b in missing] * (widths[1] - len(learned))
    return np.sort(np.array(values, dtype=np.float64))


def is_strict(S: Reals, subset: Iterable[int], widths: Sequence[int]) -> bool:
    """Return whether the Hessian has a negative eigenvalue at a critical point.

    Raises:
        InputError: See `critical_point`.
    """
    return saddle_index(S, subset, widths) > 0


def minimum_curvature(S: Reals, L: int) -> float:
    """Return the largest Hessian eigenvalue at the balanced global minimum.

    L S_1^(2-2/L); gradient descent is linearly stable there iff its learning rate is
    below 2 over it.

    Raises:
        InputError: L < 1 or a strength that is not positive.
    """
    L = depth(L)
    return float(L * positive("S", S).max() ** (2 - 2 / L))


def _checked(
    S: Reals, subset: Iterable[int], widths: Sequence[int]
) -> tuple[np.ndarray, tuple[int, ...], tuple[int, ...]]:
    strengths, widths, learned = descending("S", S), widths_of(widths), tuple(subset)
    r = len(strengths)
    if len(set(learned)) != len(learned) or not all(0 <= a < r for a in learned):
        raise InputError(
            f"subset must be different indices of modes 0..{r - 1}, got {learned}"
        )
    if min(widths[0], widths[-1]) < r:
        raise InputError(
            f"widths must begin and end with at least the number of modes {r}, got "
            f"{widths}"
        )
    if len(widths) > 2 and min(widths[1:-1]) < len(learned):
        raise InputError(
            f"subset has {len(learned)} modes, more than the narrowest hidden layer "
            f"of widths {widths} can carry"
        )
    if len(widths) == 2 and len(learned) < r:
        raise InputError("subset must hold every mode at L = 1, which has no saddles")
    return strengths, learned, widths
