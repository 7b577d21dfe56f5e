"""Whether the signs available on a component can represent a target network."""

from dataclasses import dataclass
from enum import StrEnum
from itertools import product

import numpy as np

from thalweg.errors import InputError, StructureError
from thalweg.solvable.relu_topology.conservation import Array, as_layers
from thalweg.solvable.relu_topology.labels import Components

_MAX_ORIENTED = 16


class Verdict(StrEnum):
    """What a component says about a target."""

    OBSTRUCTED = "obstructed"
    OPEN = "open"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class NeuronCount:
    """How many neurons of each output sign a function needs.

    Attributes:
        least: (positive, negative): its hyperplanes with positive and negative kink,
            needed by every representation.
        least_total: A lower bound on all its neurons together.
        sufficient: Pairs (positive, negative) that do represent it.
        exact: Whether `least` itself is sufficient.
    """

    least: tuple[int, int]
    least_total: int
    sufficient: tuple[tuple[int, int], ...]

    @property
    def exact(self) -> bool:
        """Return whether the lower bound is attained."""
        return self.least in self.sufficient


@dataclass(frozen=True)
class Reachability:
    """Whether a target is representable on a component, and why.

    Attributes:
        verdict: OBSTRUCTED: no network on the component is the target. OPEN: some is,
            which does not promise that training arrives. UNDECIDED: the bounds on the
            number of neurons leave it open.
        count: What the target needs.
        available: Neurons (locked positive, locked negative, free).
        silenced: Locked neurons that the representation must make vanish; they cannot
            have w2 = 0, so that training reaches it in the limit w1 -> 0 at best.
        reason: The verdict in a sentence.
    """

    verdict: Verdict
    count: NeuronCount
    available: tuple[int, int, int]
    silenced: int
    reason: str


def count_neurons(
    w1: Array,
    w2: Array,
    bias: Array | None = None,
    *,
    slope: float = 0.0,
    data: Array | None = None,
    rtol: float = 1e-9,
) -> NeuronCount:
    """Return how many neurons of each sign the function of a network needs.

    A network with one output is sum_h (kappa_h / 2) |<h, x>| + <r, x> over its
    hyperplanes h, uniquely; sign(kappa_h) needs a neuron of that sign. One neuron a
    hyperplane is enough where orientations match the linear part r, which is searched
    through up to 16 hyperplanes; else one more pair of both signs always is.

    Args:
        w1: Hidden weights (l, d) of the target.
        w2: Output weights (1, l).
        bias: Hidden biases (l,); constants then have no kink.
        slope: Negative slope of the activation: 0 for ReLU.
        data: Inputs (n, d); neurons that are active on none (ReLU) are left out, so
            that the count is of the function without them.
        rtol: Relative tolerance to which directions agree and sums vanish.

    Raises:
        StructureError: More than one output, or shapes that do not fit.
        InputError: slope not in [0, 1), or weights not finite.
    """
    inner, outer = as_layers(w1, w2, bias)
    if outer.shape[0] != 1:
        raise StructureError(f"the target must have one output, got {outer.shape[0]}")
    if not 0 <= slope < 1:
        raise InputError(f"slope must be in [0, 1), got {slope}")
    norms = np.linalg.norm(inner, axis=1)
    kept = (norms > 0) & (outer[0] != 0)
    if data is not None and slope == 0:
        inputs = _inputs(data, inner.shape[1], bias is not None)
        kept &= (inputs @ inner.T > 0).any(0)
    rays, weights = inner[kept] / norms[kept, None], outer[0, kept] * norms[kept]
    rays, weights = _merge(rays, weights, rtol)
    size = rtol * max(float(np.abs(weights).sum()), 1e-300)
    rays, weights = rays[np.abs(weights) > size], weights[np.abs(weights) > size]
    used = (int(np.sum(weights > 0)), int(np.sum(weights < 0)))

    normals, kinks, linear = _canonical(rays, weights, slope, rtol)
    if bias is not None:
        constant = np.abs(normals[:, -1]) >= 1 - rtol
        normals, kinks = normals[~constant], kinks[~constant]
        # On x~ = (x, 1), relu of a positive constant is linear, of a negative zero.
        linear += _constants(rays, weights, slope, rtol)
    bent = np.abs(kinks) > size
    normals, kinks = normals[bent], kinks[bent]
    least = (int(np.sum(kinks > 0)), int(np.sum(kinks < 0)))
    return _bounds(least, used, normals, kinks, linear, slope, size, bias is not None)


def reachable(
    start: Components | tuple[int, int, int],
    count: NeuronCount,
    *,
    flow: bool = True,
) -> Reachability:
    """Return whether the component of `start` holds the function behind `count`.

    With (m+, m-, f) neurons locked positive, locked negative and free, a
    representation by (p, q) fits where max(0, p - m+) + max(0, q - m-) <= f.

    Args:
        start: `components(...)` of the student, or the three numbers.
        count: `count_neurons(...)` of the target.
        flow: Count marginal neurons as locked, as exact gradient flow does.

    Raises:
        InputError: The student has more than one output, or negative numbers.
    """
    if isinstance(start, Components):
        if start.e != 1:
            raise InputError(
                f"signs obstruct only where there is one output, got {start.e}"
            )
        available = start.counts(flow=flow)
    else:
        available = start
    if min(available) < 0:
        raise InputError(f"start must be three counts >= 0, got {available}")
    fitting = [pair for pair in count.sufficient if _fits(pair, available)]
    if fitting:
        silenced = min(_silenced(pair, available) for pair in fitting)
        reason = "the signs suffice, which does not promise that training arrives"
        if silenced:
            reason = (
                f"reachable in the limit: {silenced} locked neurons must vanish, by "
                "w1 -> 0; " + reason
            )
        return Reachability(Verdict.OPEN, count, available, silenced, reason)
    p, q = count.least
    if not _fits(count.least, available):
        reason = (
            f"the target has {p} positive and {q} negative kinks; there are "
            f"{available[0]} neurons locked positive, {available[1]} locked negative "
            f"and {available[2]} free"
        )
        return Reachability(Verdict.OBSTRUCTED, count, available, 0, reason)
    if sum(available) < count.least_total:
        reason = f"the target needs {count.least_total} neurons, got {sum(available)}"
        return Reachability(Verdict.OBSTRUCTED, count, available, 0, reason)
    reason = (
        f"between {count.least} and {count.sufficient} neurons (positive, negative) "
        "are needed: orientations leave it open"
    )
    return Reachability(Verdict.UNDECIDED, count, available, 0, reason)


def _fits(pair: tuple[int, int], available: tuple[int, int, int]) -> bool:
    p, q = pair
    positive, negative, free = available
    return max(0, p - positive) + max(0, q - negative) <= free


def _silenced(pair: tuple[int, int], available: tuple[int, int, int]) -> int:
    """Count the locked neurons of a sign that is not used: none can be split off."""
    return sum(m for m, n in zip(available, pair, strict=False) if n == 0)


def _inputs(data: Array, d: int, biased: bool) -> np.ndarray:
    inputs = np.asarray(data, dtype=np.float64)
    if inputs.ndim != 2 or inputs.shape[1] != d - biased:
        raise StructureError(
            f"data must have shape (n, {d - biased}), got {inputs.shape}"
        )
    return np.pad(inputs, ((0, 0), (0, 1)), constant_values=1.0) if biased else inputs


def _merge(
    rays: np.ndarray, weights: np.ndarray, rtol: float
) -> tuple[np.ndarray, np.ndarray]:
    """Sum the weights of rays of one direction."""
    directions: list[np.ndarray] = []
    sums: list[float] = []
    for ray, weight in zip(rays, weights, strict=True):
        near = [i for i, x in enumerate(directions) if np.abs(x - ray).max() <= rtol]
        if near:
            sums[near[0]] += weight
        else:
            directions.append(ray)
            sums.append(weight)
    return np.array(directions).reshape(-1, rays.shape[1]), np.array(sums)


def _canonical(
    rays: np.ndarray, weights: np.ndarray, slope: float, rtol: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return normals of hyperplanes, kinks (1 - slope) sum a, and the linear part."""
    linear = (1 + slope) / 2 * weights @ rays
    if not len(rays):
        return rays, weights, linear
    first = np.argmax(np.abs(rays) > rtol, axis=1)
    turn = np.sign(rays[np.arange(len(rays)), first])
    normals, sums = _merge(rays * turn[:, None], weights, rtol)
    return normals, (1 - slope) * sums, linear


def _constants(
    rays: np.ndarray, weights: np.ndarray, slope: float, rtol: float
) -> np.ndarray:
    """Return what |<h, x>| of the hyperplane at infinity adds to the linear part."""
    last = rays[:, -1]
    constant = np.abs(last) >= 1 - rtol
    extra = np.zeros(rays.shape[1])
    extra[-1] = (1 - slope) / 2 * np.sum(weights[constant])
    return extra


def _bounds(
    least: tuple[int, int],
    used: tuple[int, int],
    normals: np.ndarray,
    kinks: np.ndarray,
    linear: np.ndarray,
    slope: float,
    size: float,
    biased: bool,
) -> NeuronCount:
    p, q = least
    if p + q > _MAX_ORIENTED:
        return NeuronCount(least, p + q, tuple({used, (p + 1, q + 1)}))
    # One neuron a hyperplane, of orientation s: linear part sum s kink h * half.
    half = (1 + slope) / (2 * (1 - slope))
    signs = np.array(list(product((1.0, -1.0), repeat=p + q))).reshape(
        2 ** (p + q), p + q
    )
    rest = linear - half * (signs * kinks) @ normals
    if (np.abs(rest).max(1) <= size).any():
        return NeuronCount(least, p + q, (least,))
    sufficient = {used, (p + 1, q + 1)}
    if biased:
        constant = np.abs(rest[:, :-1]).max(1, initial=0.0) <= size
        values = rest[constant, -1]
        if (values > 0).any() or (len(values) and slope > 0):
            sufficient.add((p + 1, q))
        if (values < 0).any() or (len(values) and slope > 0):
            sufficient.add((p, q + 1))
    if p + q == 0 and (p + 1, q) not in sufficient and (p, q + 1) not in sufficient:
        return NeuronCount((1, 1), 2, ((1, 1),))
    return NeuronCount(least, p + q + 1, tuple(sorted(sufficient)))
