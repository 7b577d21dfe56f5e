"""Paths between two points of a landscape along which the loss stays low."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError, NonFiniteLossError
from thalweg.execution import Store
from thalweg.instruments.barriers import GOLDEN, Barrier, barrier
from thalweg.instruments.elastic_bands import along, relax
from thalweg.instruments.minimizing import (
    BatchSize,
    Display,
    MakeOptimizer,
    cut,
    linear_model,
    minimize,
    name_of,
)
from thalweg.instruments.planes import PointLike, common_buffers, read_ends
from thalweg.landscapes import (
    BetweenLandscape,
    Curve,
    Landscape,
    NetworkLandscape,
    norm,
)
from thalweg.provenance import Meter, fingerprint, versions
from thalweg.seeding import normal, uniform

if TYPE_CHECKING:
    import xarray

Shape = Literal["bezier", "polyline"]
Kind = Literal["bezier", "polyline", "neb"]
RATE = 0.03  # of the distance between the ends, root mean square over the coordinates


@dataclass(frozen=True)
class Path:
    """A path from a to b, and the loss along it.

    Args:
        curve: φ; `path.curve(t)` are its points.
        barrier: How much higher than its ends it rises, by every definition.
        mean: Mean of the loss over t.
        mean_by_length: Mean of the loss over the length of the path.
        losses: Loss at the one t (of a band, mean over the pivots) in each step.
    """

    curve: Curve
    barrier: Barrier
    mean: float
    mean_by_length: float
    losses: Float[np.ndarray, " steps"]

    @property
    def line(self) -> "xarray.Dataset":
        """The loss (and metrics) along the path, dim `t`, with the coordinate `length`.

        Drawn by `line_figure`, as a straight line is.
        """
        return self.barrier.line

    @property
    def pivots(self) -> Float[Tensor, "pivots dim"]:
        """The points that make the curve, a first and b last."""
        return self.curve.pivots

    @property
    def length(self) -> float:
        """Length of the path."""
        return self.curve.length

    @property
    def max(self) -> float:
        """The largest loss found along the path."""
        return self.barrier.peak


def connect(
    land: Landscape,
    a: PointLike,
    b: PointLike,
    kind: Kind = "bezier",
    *,
    bends: int | None = None,
    steps: int = 600,
    optimizer: MakeOptimizer | None = None,
    batch_size: BatchSize = "auto",
    length_weighted: bool = False,
    jitter: float = 0.0,
    rounds: int = 4,
    climb: bool = False,
    points: int = 25,
    tol: float = 1e-4,
    seed: int = 0,
    store: str | FilePath | None = None,
    progress: Display = None,
    **settings: Any,
) -> Path:
    """Find a path of low loss from a to b.

    A curve φ(t) = sum_k c_k(t) p_k with φ(0) = a and φ(1) = b to the bit, whose inner
    pivots start on the segment.

    - "bezier", "polyline": trained to minimize the mean of L(φ(t)) over t, or with
      `length_weighted` over the length. A step takes one t and one minibatch: the
      gradient in p_k is c_k(t) times the gradient of L at φ(t), through the flat point,
      so that any landscape will do. The t follow a golden-ratio sequence, even over
      [0, 1].
    - "neb": a nudged elastic band. In a step every inner pivot moves against the part
      of its gradient that is perpendicular to the band, and all are put back to their
      shares of the length. After each round, a pivot is inserted where the loss between
      two pivots exceeds the line between theirs by more than 5 % of the range of the
      loss. It settles on a path of least loss through saddles; with `climb` the highest
      pivot ends on the saddle itself.

    A network's buffers at φ(t) are those found there under `buffers="recalibrate"` (at
    the cost of its calibration pass in each step; `calibration_batches` bounds it), and
    else, where a and b are state dicts or modules, the checkpoints' own, moving
    linearly in t.

    Args:
        land: The landscape.
        a: Point, state dict or module.
        b: The same.
        kind: One of the three.
        bends: Number of inner pivots; 1 by default, and 5 of a band, at the beginning.
        steps: Steps of training, one gradient each; of a band those of each round, one
            gradient a pivot.
        optimizer: Makes an optimizer from the list of inner pivots; Adam by default,
            its rate 3 % of the root mean square of b - a. The rate falls along half a
            cosine to zero.
        batch_size: Rows of a step; "auto" is 128 where the landscape has rows; None
            takes all.
        length_weighted: See above.
        jitter: Length of a random displacement of each inner pivot at the start, in
            units of the distance from a to b; needed where symmetry holds the segment
            on a ridge.
        rounds: Rounds of a band.
        climb: See above.
        points: Samples along the path, both ends included, before refinement.
        tol: Length of the last interval of t around the maximum.
        seed: Seed of everything random.
        store: Directory in which the training and the evaluations are kept; an
            interrupted search for the same path goes on there, to the same result.
        progress: "auto", "plain", "none" or a display.
        settings: As of `surface`: executor, on_error, threads.

    Raises:
        InputError: The kind is unknown, a number is out of range, an option belongs to
            another kind, or a and b are the same point.
        CheckpointError: a or b is not finite.
        StoreError: The store holds something else.
        NonFiniteLossError: Training meets a loss that is NaN or infinite.

    Cost: the gradients, of a minibatch each, and the evaluations of `ti.barrier`.

    Source: "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs",
    T. Garipov, P. Izmailov, D. Podoprikhin, D. Vetrov, A. G. Wilson, 2018;
    "Essentially No Barriers in Neural Network Energy Landscape", F. Draxler,
    K. Veschgini, M. Salmhofer, F. A. Hamprecht, 2018.

    Examples:
        >>> from thalweg.landscapes import Quadratic
        >>> bowl = Quadratic(torch.eye(2).double())
        >>> a, b = torch.tensor([[-1.0, 0.0], [0.0, 1.0]]).double()
        >>> path = connect(bowl, a, b, steps=20)
        >>> path.max, path.curve(1.0).tolist()
        (0.5, [0.0, 1.0])
    """
    if bends is None:
        bends = 5 if kind == "neb" else 1
    _check(kind, length_weighted, jitter, climb)
    _check_counts(
        bends=(bends, 1), steps=(steps, 1), rounds=(rounds, 1), points=(points, 2)
    )
    first, second = read_ends(land, a, b)
    ends = torch.stack([first.point, second.point])
    span = _span(land, ends, common_buffers(first, second))
    start = _start(ends, bends, jitter, seed)
    rate = RATE * norm(ends[1] - ends[0]) / land.dim**0.5
    plan = {
        "instrument": "path",
        "landscape": land.describe(),
        "ends": fingerprint(ends, common_buffers(first, second)),
        "kind": kind,
        "bends": bends,
        "steps": steps,
        "optimizer": None if optimizer is None else name_of(optimizer),
        "batch_size": batch_size,
        "length_weighted": length_weighted,
        "jitter": jitter,
        "rounds": rounds,
        "climb": climb,
        "seed": seed,
        "versions": versions(),
    }
    kept = None if store is None else Store.resume(store, plan).path
    with Meter() as meter:
        if kind == "neb":
            band = relax(
                land,
                Curve("polyline", torch.cat([ends[:1], start, ends[1:]])),
                span,
                rounds=rounds,
                steps=steps,
                rate=rate,
                climb=climb,
                optimizer=optimizer,
                batch_size=batch_size,
                seed=seed,
                store=kept,
                progress=progress,
            )
            curve, losses = band.curve, band.losses
            meter.add(gradients=band.gradients, points=band.evaluations)
        else:
            base = _mean_end(land, ends, span) if length_weighted else None
            training = _Training(kind, ends, span, base, seed)
            inner, losses = minimize(
                start,
                training,
                cut(land, batch_size),
                steps=steps,
                rate=rate,
                optimizer=optimizer,
                seed=seed,
                checkpoint=None if kept is None else kept / "training.pt",
                progress=progress,
            )
            curve = training.curve(inner)
            meter.add(gradients=steps)
        found = barrier(
            along(land, curve, span),
            ends.new_zeros(1),
            ends.new_ones(1),
            points,
            tol=tol,
            store=None if kept is None else kept / f"line-{points}",
            progress=progress,
            **settings,
        )
        meter.add(points=found.evaluations)
    return _path(curve, found, losses, meter, kind=kind, seed=seed)


def _check(kind: str, length_weighted: bool, jitter: float, climb: bool) -> None:
    if kind not in get_args(Kind):
        raise InputError(f"kind must be one of {get_args(Kind)}, got {kind!r}")
    if length_weighted and kind == "neb":
        raise InputError(
            "length_weighted belongs to kind='bezier' and 'polyline'; the pivots of a "
            "band are spread over its length as it is"
        )
    if climb and kind != "neb":
        raise InputError(f"climb belongs to kind='neb', got kind={kind!r}")
    if not jitter >= 0:
        raise InputError(f"jitter must not be negative, got {jitter}")


def _check_counts(**counts: tuple[int, int]) -> None:
    for name, (count, least) in counts.items():
        if count < least:
            raise InputError(f"{name} must be at least {least}, got {count}")


def _span(
    land: Landscape, ends: Tensor, buffers: Sequence[dict[str, Tensor]] | None
) -> BetweenLandscape | None:
    """Return the segment of a network's checkpoints, which knows their buffers."""
    if not isinstance(land, NetworkLandscape):
        return None
    if buffers is None:
        return land.between(*ends)
    pairs = zip(ends, buffers, strict=True)
    return land.between(*[land.unflatten(end) | own for end, own in pairs])


def _mean_end(land: Landscape, ends: Tensor, span: BetweenLandscape | None) -> float:
    t = torch.tensor([[0.0], [1.0]]).to(ends)
    return float(along(land, Curve("polyline", ends), span).loss(t).mean())


def _start(ends: Tensor, bends: int, jitter: float, seed: int) -> Tensor:
    """Return inner pivots on the segment, displaced at random."""
    t = torch.arange(1, bends + 1).to(ends)[:, None] / (bends + 1)
    inner = torch.lerp(ends[0], ends[1], t)
    if not jitter:
        return inner
    scale = jitter * norm(ends[1] - ends[0])
    noise = torch.stack(
        [normal(inner.shape[1:], seed, "jitter", k, like=ends) for k in range(bends)]
    )
    return inner + scale * noise / noise.norm(dim=1, keepdim=True)


class _Training:
    """The objective of curve training: L at one t of the curve.

    With a `base`, a loss such as those of the ends, weighted by the speed there.
    """

    def __init__(
        self,
        kind: Shape,
        ends: Tensor,
        span: BetweenLandscape | None,
        base: float | None,
        seed: int,
    ) -> None:
        self.kind, self.ends, self.span, self.base = kind, ends, span, base
        self.offset = float(uniform((1,), seed, "t", like=ends.double()))

    def curve(self, inner: Tensor) -> Curve:
        return Curve(self.kind, torch.cat([self.ends[:1], inner, self.ends[1:]]))

    def __call__(self, inner: Tensor, land: Landscape, step: int) -> Tensor:
        curve = self.curve(inner)
        t = torch.tensor((self.offset + step * GOLDEN) % 1.0, dtype=torch.float64)
        point = curve(t)
        if isinstance(land, NetworkLandscape) and self.span is not None:
            land = self.span.over(land).placed(t.reshape(1))
        value, model = linear_model(land, point)
        if not bool(torch.isfinite(value)):
            raise NonFiniteLossError(
                f"the loss is {float(value)} at t = {float(t):.4g} of the path, after "
                f"{step} steps of training: begin elsewhere (`jitter=`, `bends=`) or "
                "give an optimizer of a smaller rate"
            )
        if self.base is None:
            return model(point)
        # The weight's mean over t is 1 whatever the pivots: its gradient is 0 on
        # average, and any constant taken off the loss before it leaves noise out only.
        weight = curve.relative_speed(t).to(point)
        moved = model(point) - value.to(point)
        excess = value.to(point) - self.base
        return value + weight.detach() * moved + excess * (weight - weight.detach())


def _path(
    curve: Curve,
    found: Barrier,
    losses: np.ndarray,
    meter: Meter,
    **entries: object,
) -> Path:
    line = found.line
    t, values = line["t"].values, line["loss"].values
    lengths = curve.lengths(t)
    start = curve.pivots[0]
    distance = [norm(curve(float(s)) - start) for s in t]
    line = line.assign_coords(
        displacement=("t", distance), length=("t", lengths)
    ).assign_attrs(
        {name: str(entry) for name, entry in entries.items()},
        instrument="path",
        cost=meter.attribute(),
    )
    return Path(
        curve,
        replace(found, line=line),
        mean=_mean(values, t),
        mean_by_length=_mean(values, lengths),
        losses=losses,
    )


def _mean(values: np.ndarray, x: np.ndarray) -> float:
    """Return the mean over x of the line through the values."""
    steps = np.diff(x)
    return float((values[1:] + values[:-1]) @ steps / 2 / steps.sum())
