"""The loss barrier on the straight line between two points."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg.execution import thread_count
from thalweg.instruments.lines import line
from thalweg.instruments.plane_setup import plane_of
from thalweg.instruments.planes import PointLike, between
from thalweg.instruments.sampling import losses
from thalweg.landscapes import Landscape

if TYPE_CHECKING:
    import xarray

GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Barrier:
    """How much higher the line between two points rises than its ends.

    Args:
        value: max_t [L(t) - (1 - t) L(0) - t L(1)].
        max_end: max_t L(t) - max(L(0), L(1)).
        mean_end: max_t L(t) - (L(0) + L(1)) / 2.
        t: Where `value` is attained.
        t_peak: Where L is largest.
        peak: The largest L.
        ends: L(0) and L(1).
        evaluations: Points evaluated, refinement included.
        line: The line that was sampled.
    """

    value: float
    max_end: float
    mean_end: float
    t: float
    t_peak: float
    peak: float
    ends: tuple[float, float]
    evaluations: int
    line: "xarray.Dataset"


def barrier(
    land: Landscape,
    a: PointLike,
    b: PointLike,
    points: int = 25,
    *,
    tol: float = 1e-4,
    **settings: Any,
) -> Barrier:
    """Measure the loss barrier on the straight line from a to b.

    The line is sampled at `points` values of t; around the largest sample, of L and of
    L less the chord, golden-section search narrows t down to `tol`. All three
    definitions in use are returned. A line that is not finite somewhere is not
    refined: a NaN on it makes the barrier NaN, an infinity +inf.

    Args:
        land: The landscape.
        a: Point, state dict or module.
        b: The same.
        points: Samples before refinement, both ends included.
        tol: Length of the last interval of t.
        settings: As of `surface`: store, executor, progress, on_error, threads.

    Raises:
        InputError: `points` is below 2, or a and b are the same point.

    Source: "Linear Mode Connectivity and the Lottery Ticket Hypothesis", J. Frankle,
    G. K. Dziugaite, D. M. Roy, M. Carbin, 2020 (`mean_end`); "The Role of Permutation
    Invariance in Linear Mode Connectivity of Neural Networks", R. Entezari, H. Sedghi,
    O. Saukh, B. Neyshabur, 2022 (`value`).
    """
    sampled = line(land, a, b, points, **settings)
    t, values = sampled["t"].values, sampled["loss"].values
    first, last = float(values[0]), float(values[-1])
    seen = dict(zip(map(float, t), map(float, values), strict=True))

    def excess(s: float) -> float:
        return seen[s] - (1 - s) * first - s * last

    if np.isfinite(values).all():
        plane = plane_of(land, between(land, a, b))

        def at(s: float) -> float:
            if s not in seen:
                found = losses(plane, np.array([[s]]))["loss"]
                seen[s] = float(found[0])
            return seen[s]

        with thread_count(settings.get("threads", 1)):
            for height in (at, lambda s: at(s) - (1 - s) * first - s * last):
                i = int(np.argmax([height(s) for s in t]))
                _climb(height, t[max(i - 1, 0)], t[min(i + 1, len(t) - 1)], tol)
    places = list(seen)
    i = int(np.argmax([excess(s) for s in places]))  # a NaN is the largest
    j = int(np.argmax([seen[s] for s in places]))
    peak = seen[places[j]]
    return Barrier(
        value=excess(places[i]),
        max_end=peak - float(np.max([first, last])),
        mean_end=peak - (first + last) / 2,
        t=places[i],
        t_peak=places[j],
        peak=peak,
        ends=(first, last),
        evaluations=len(seen),
        line=sampled,
    )


def _climb(
    height: Callable[[float], float], low: float, high: float, tol: float
) -> None:
    """Golden-section search for the largest height; what is seen is kept by it."""
    low, high = float(low), float(high)
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    while high - low > tol:
        if height(left) > height(right):
            high, right = right, left
            left = high - GOLDEN * (high - low)
        else:
            low, left = left, right
            right = low + GOLDEN * (high - low)
