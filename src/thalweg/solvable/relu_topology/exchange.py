"""Equivalent networks elsewhere on the invariant set: rescaling and exchange."""

import numpy as np

from thalweg.errors import InputError, StructureError
from thalweg.solvable.relu_topology.conservation import Array, as_layers
from thalweg.solvable.relu_topology.labels import components

Layers = tuple[np.ndarray, np.ndarray]
_FORBIDDEN = 2


def rescale(
    w1: Array, w2: Array, to: Array | float, bias: Array | None = None
) -> Layers | tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the same function with the invariants `to`, for kappa = 1.

    Each neuron becomes (alpha w1, w2 / alpha) with
    alpha² = (c' + sqrt(c'² + 4 ‖w1‖² ‖w2‖²)) / (2 ‖w1‖²); no sign changes. A neuron
    with w2 = 0 reaches only c' > 0 and one with w1 = 0 only c' < 0.

    Args:
        w1: Hidden weights (l, d).
        w2: Output weights (e, l).
        to: The invariants (l,) to reach, or one for all.
        bias: Hidden biases (l,), rescaled with w1.

    Returns:
        (w1, w2), or (w1, w2, bias) where a bias is given, in float64.

    Raises:
        InputError: A neuron cannot reach its value, or see `invariants`.
    """
    inner, outer = as_layers(w1, w2, bias)
    target = np.broadcast_to(np.asarray(to, dtype=np.float64), (len(inner),))
    if not np.isfinite(target).all():
        raise InputError(f"to must be finite, got {to}")
    scaled, counter = rescale_rows(inner, outer, target)
    if bias is None:
        return scaled, counter
    return scaled[:, :-1], counter, scaled[:, -1]


def transport(
    w1: Array, w2: Array, to: Array, bias: Array | None = None
) -> Layers | tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return equivalent weights on H(c) in the component `to`, or None.

    Neurons change places (as few as possible, by optimal assignment) and each is then
    rescaled to the c of its new slot: the function stays, and so does c. A neuron that
    contributes nothing (w1 = 0 or w2 = 0) also takes the opposite sign. Marginal
    neurons stay. None where no such exchange exists. For kappa = 1; O(l³) at worst.

    Args:
        w1: Hidden weights (l, d).
        w2: Output weights (e, l).
        to: Label (l,) of the component, as `components(...).label`; entries of neurons
            without a locked sign are ignored.
        bias: Hidden biases (l,).

    Returns:
        (w1, w2), or (w1, w2, bias) where a bias is given, in float64; or None.

    Raises:
        StructureError: `to` has another length.
        InputError: `to` is not +1 or -1 on a neuron whose sign is locked.
    """
    from scipy.optimize import linear_sum_assignment

    inner, outer = as_layers(w1, w2, bias)
    here = components(w1, w2, bias)
    wanted = np.asarray(to)
    if wanted.shape != here.label.shape:
        raise StructureError(
            f"to must have shape {here.label.shape}, one sign a neuron, got "
            f"{wanted.shape}"
        )
    split = here.label != 0
    if not np.isin(wanted[split], (-1, 1)).all():
        raise InputError(f"to must be +1 or -1 on neurons {np.flatnonzero(split)}")
    cost = _exchange_costs(inner, outer, here.invariants.kind, split, wanted)
    slots, neurons = linear_sum_assignment(cost)
    if (cost[slots, neurons] >= _FORBIDDEN * len(cost)).any():
        return None
    moved, counter = rescale_rows(inner[neurons], outer[:, neurons], here.invariants.c)
    _turn_silent(moved, counter, here.invariants.kind, split, wanted)
    if bias is None:
        return moved, counter
    return moved[:, :-1], counter, moved[:, -1]


def _exchange_costs(
    inner: np.ndarray,
    outer: np.ndarray,
    kind: np.ndarray,
    split: np.ndarray,
    wanted: np.ndarray,
) -> np.ndarray:
    """Return (slots, neurons): 0 to stay, 1 to move, and a prohibitive cost else."""
    no_inner, no_outer = np.all(inner == 0, axis=1), np.all(outer == 0, axis=0)
    silent = np.logical_or(no_inner, no_outer)
    reaches = ~np.where(kind[:, None] > 0, no_inner[None], no_outer[None])
    # Where a slot's sign is locked it is that of w2 (c < 0) or of a scalar w1 (c > 0).
    sign = np.where(kind[:, None] < 0, np.sign(outer[0]), np.sign(inner[:, 0]))
    fits = ~split[:, None] | (sign == wanted[:, None]) | silent[None]
    same = np.eye(len(kind), dtype=bool)
    allowed = np.where((kind == 0)[:, None], same, reaches & fits)
    allowed &= same | (kind != 0)[None]
    return np.where(allowed, ~same, _FORBIDDEN * len(kind)).astype(np.float64)


def _turn_silent(
    inner: np.ndarray,
    outer: np.ndarray,
    kind: np.ndarray,
    split: np.ndarray,
    wanted: np.ndarray,
) -> None:
    """Give neurons that contribute nothing the wanted sign, in place."""
    k = split & (kind < 0)
    outer[0, k] = np.abs(outer[0, k]) * wanted[k]
    k = split & (kind > 0)
    inner[k, 0] = np.abs(inner[k, 0]) * wanted[k]


def rescale_rows(inner: np.ndarray, outer: np.ndarray, to: np.ndarray) -> Layers:
    """Return (l, d) and (e, l) weights of the same function with the invariants `to`.

    Raises:
        InputError: A neuron cannot reach its value.
    """
    a, b = np.sum(inner**2, 1), np.sum(outer**2, 0)
    failing = ((a == 0) & (to > 0)) | ((b == 0) & (to < 0))
    failing |= ((a == 0) != (b == 0)) & (to == 0)
    failing |= (a == 0) & (b == 0) & (to != 0)
    if failing.any():
        k = int(np.flatnonzero(failing)[0])
        raise InputError(
            f"neuron {k} cannot reach c = {to[k]}: its ‖w1‖² is {a[k]} and its ‖w2‖² "
            f"is {b[k]}"
        )
    root = np.hypot(to, 2 * np.sqrt(a * b))
    # The new squared norms, each by the form that does not cancel.
    large = (np.abs(to) + root) / 2
    small = np.divide(a * b, large, out=np.zeros_like(a), where=large > 0)
    norms = np.where(to > 0, large, small), np.where(to > 0, small, large)
    alpha = np.sqrt(np.divide(norms[0], a, out=np.ones_like(a), where=a > 0))
    beta = np.sqrt(np.divide(norms[1], b, out=np.ones_like(b), where=b > 0))
    return inner * alpha[:, None], outer * beta
