"""Plateaus of a run: where it lingers near a saddle, and what theory says of it.

From a small start the modes are learned one after the other, in the order of lam_a S_a;
between two of them the run passes the saddle of the modes learned so far.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError
from thalweg.solvable.deep_linear.checks import array
from thalweg.solvable.deep_linear.critical_points import saddle_index
from thalweg.solvable.deep_linear.landscape import DeepLinear
from thalweg.solvable.deep_linear.mode_flow import learning_time
from thalweg.solvable.deep_linear.observables import rank_level

Rule: TypeAlias = Literal["gradient", "rank"]

_LEARNED = 0.95
_LEAVING = 0.05


@dataclass(frozen=True)
class Plateau:
    """A stretch of a run near a saddle.

    Theory speaks of aligned modes under gradient flow; its entries are None where Sigma
    does not let modes decouple, and NaN where a mode does not start at a positive
    strength.

    Attributes:
        start: Time of its first point.
        end: Time of its last point.
        rank: Rank of the product at its flattest point.
        loss: Excess loss there.
        predicted_loss: ½ Σ lam_j S_j² over the modes beyond the first `rank`.
        predicted_entry: When the last of the learned modes reaches 95 % of its target.
        predicted_exit: When the next one reaches 5 % of its own.
        saddle_index: Negative eigenvalues of the Hessian at the saddle; None beside
            whitened inputs and different strengths.
    """

    start: float
    end: float
    rank: int
    loss: float
    predicted_loss: float | None
    predicted_entry: float | None
    predicted_exit: float | None
    saddle_index: int | None


def find_plateaus(
    land: DeepLinear,
    times: np.ndarray,
    points: Float[Tensor, "times dim"],
    *,
    rule: Rule | str = "gradient",
    quantile: float = 0.1,
    prominence: float = math.log(2),
    shortest: float | None = None,
    threshold: float = 0.05,
) -> tuple[Plateau, ...]:
    """Return the plateaus of one trajectory, by its gradients or by its rank.

    By "gradient": maximal intervals in which the gradient's norm is below a quantile of
    all, or near a local minimum of its logarithm, down to half the minimum's prominence
    (both ends of the run count as walls); those with no change of rank between them are
    one. By "rank": intervals of constant rank. A run that has learned all it can is at
    no saddle and gives none; an empty result is an answer, and that of a single layer,
    which has no saddles. Along SGD the gradient is still that of the loss.

    Args:
        land: A deep linear network.
        times: Ascending times of the points.
        points: Flat points, dense enough in time to see the plateaus.
        rule: "gradient" or "rank".
        quantile: Of the gradient's norm; 0 leaves the local minima alone.
        prominence: Least depth of a local minimum, in units of log |gradient|.
        shortest: Least duration by rank; 5 % of the run by default.
        threshold: Fraction of the teacher's largest strength from which on a singular
            value counts in the rank.

    Raises:
        InputError: Times and points do not match or times do not ascend, another rule,
            or a quantile, prominence, shortest or threshold out of range.
    """
    clock = _checked_times(times, points)
    if rule not in get_args(Rule):
        raise InputError(f"rule must be one of {get_args(Rule)}, got {rule!r}")
    if not 0 <= quantile < 1:
        raise InputError(f"quantile must lie in [0, 1), got {quantile}")
    if not prominence > 0:
        raise InputError(f"prominence must be positive, got {prominence}")
    duration = 0.05 * (clock[-1] - clock[0]) if shortest is None else shortest
    if not duration >= 0:
        raise InputError(f"shortest must be non-negative, got {shortest}")
    level = rank_level(land, threshold)
    if land.depth == 1:
        return ()
    values = torch.linalg.svdvals(land.product(points).double())
    ranks = (values > level).sum(-1).cpu().numpy()
    losses, gradients = land.value_and_gradient(points.double())
    norms = gradients.norm(dim=-1).cpu().numpy()
    if rule == "gradient":
        flat = _runs(_is_flat(norms, quantile, prominence))
        spans = _joined(flat, ranks)
    else:
        spans = [
            (a, b)
            for rank in np.unique(ranks)
            for a, b in _runs(ranks == rank)
            if clock[b] - clock[a] >= duration
        ]
    theory = _Theory(land, points[0].double())
    plateaus = []
    for first, last in sorted(spans):
        flattest = first + int(np.argmin(norms[first : last + 1]))
        rank = int(ranks[flattest])
        if rank < theory.learnable:
            plateaus.append(
                Plateau(
                    float(clock[first]),
                    float(clock[last]),
                    rank,
                    float(losses[flattest]),
                    *theory.of(rank),
                )
            )
    return tuple(plateaus)


def initial_strengths(
    land: DeepLinear, point: Float[Tensor, " dim"]
) -> Float[Tensor, " r"]:
    """Return the strengths that modes start from, as far as their growth is concerned.

    The diagonal of the mode matrix; at depth 2 |½ (W_2ᵀ u_a + W_1 v_a)|², the part of a
    small start that grows: the same for an aligned one, and exact to leading order for
    any.

    Raises:
        InputError: Modes do not decouple.
    """
    modes = land.modes
    if land.depth != 2:
        return land.mode_matrix(point).double().diagonal().clone()
    W1, W2 = (W.double() for W in land.weights(point))
    return ((W2.mT @ modes.U + W1 @ modes.V) / 2).square().sum(0)


class _Theory:
    """What is known of the saddle of the first k modes."""

    def __init__(self, land: DeepLinear, start: Tensor) -> None:
        self._land = land
        if not land.decoupled:
            rank = int(torch.linalg.matrix_rank(land.teacher))
            self.learnable = min(rank, *land.widths)
            return
        modes = land.modes
        self.learnable = modes.learnable
        self._order = torch.argsort(modes.lam * modes.S, descending=True, stable=True)
        self._s0 = initial_strengths(land, start)

    def of(self, k: int) -> tuple[float | None, float | None, float | None, int | None]:
        """Return the loss, the times of entry and exit, and the index."""
        if not self._land.decoupled:
            return None, None, None, None
        modes = self._land.modes
        missing = self._order[k:]
        loss = float((modes.lam[missing] * modes.S[missing].square()).sum()) / 2
        entry = 0.0 if k == 0 else self._time(int(self._order[k - 1]), _LEARNED)
        leaving = self._time(int(self._order[k]), _LEAVING)
        index = None
        if self._land.whitened and not modes.repeated:
            index = saddle_index(modes.S, range(k), self._land.widths)
        return loss, entry, leaving, index

    def _time(self, mode: int, fraction: float) -> float:
        """Return when a mode reaches a fraction of its target; 0 if it starts above."""
        modes = self._land.modes
        s0, S, lam = (float(x[mode]) for x in (self._s0, modes.S, modes.lam))
        if s0 < 0 or lam <= 0:
            return math.nan
        if s0 >= fraction * S:
            return 0.0
        return float(learning_time(s0, fraction * S, S, self._land.depth, lam))


def _is_flat(norms: np.ndarray, quantile: float, prominence: float) -> np.ndarray:
    from scipy.signal import find_peaks, peak_widths

    flat = norms < np.quantile(norms, quantile)
    heights = np.log(np.maximum(norms, np.finfo(np.float64).tiny))
    walled = -np.concatenate([[heights.max()], heights, [heights.max()]])
    minima, found = find_peaks(walled, prominence=prominence)
    edges = (found["prominences"], found["left_bases"], found["right_bases"])
    _, _, left, right = peak_widths(walled, minima, 0.5, edges)
    for a, b in zip(np.ceil(left), np.floor(right), strict=True):
        flat[max(0, int(a) - 1) : int(b)] = True
    return flat


def _joined(spans: list[tuple[int, int]], ranks: np.ndarray) -> list[tuple[int, int]]:
    """Join stretches with no change of rank between: noise only parts them."""
    joined: list[tuple[int, int]] = []
    for first, last in spans:
        if joined and len(np.unique(ranks[joined[-1][1] : first + 1])) == 1:
            joined[-1] = joined[-1][0], last
        else:
            joined.append((first, last))
    return joined


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Return the first and last index of every run of True."""
    steps = np.diff(np.concatenate([[0], mask.astype(np.int8), [0]]))
    firsts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    return [(int(a), int(b) - 1) for a, b in zip(firsts, ends, strict=True)]


def _checked_times(times: np.ndarray, points: Tensor) -> np.ndarray:
    clock = array("times", times)
    if clock.ndim != 1 or len(clock) < 2 or not (np.diff(clock) > 0).all():
        raise InputError(
            f"times must be at least two and ascending, got shape {clock.shape}"
        )
    if len(points) != len(clock):
        raise InputError(
            f"points must be one for each of the {len(clock)} times, got {len(points)}"
        )
    return clock
