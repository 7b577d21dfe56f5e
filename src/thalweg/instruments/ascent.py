"""Projected ascent in a ball: the one routine of worst cases.

Sharpness, robust training and the attacks of certification all climb with it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError, LossError
from thalweg.instruments.projections import (
    Bound,
    Norm,
    project_ball,
    read_box,
    read_norm,
    read_radius,
    steepest,
    uniform_in_ball,
)

Rule = Literal["sign", "gradient", "adam"]
Starts = Literal["center", "uniform"]


@runtime_checkable
class Differentiable(Protocol):
    """What knows its own gradient; every landscape does."""

    def loss(self, points: Tensor, /) -> Tensor:
        """Return one value a row."""

    def value_and_gradient(self, points: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return one value and one gradient a row."""


Objective = Callable[[Tensor], Tensor] | Differentiable

_LONGEST = 10.0  # of the automatic steps, in radii a gradient norm


@dataclass(frozen=True)
class Ascent:
    """Where an ascent ended.

    Args:
        points: One point a row, inside of its ball and of the box.
        values: f there.
        evaluations: Passes that every row went through, of which all but the last of
            each restart with gradient.
    """

    points: Float[Tensor, "n *shape"]
    values: Float[Tensor, " n"]
    evaluations: int


def ascend(
    f: Objective,
    x: Float[Tensor, "n *shape"],
    *,
    norm: str,
    radius: float | Float[Tensor, " n"],
    box: tuple[Bound, Bound] | None = None,
    steps: int = 20,
    step: float | Tensor | Sequence[float] | None = None,
    rule: Rule = "sign",
    momentum: float = 0.0,
    starts: Starts | Tensor = "center",
    restarts: int = 1,
    keep: Literal["best", "last"] = "best",
    seed: int = 0,
) -> Ascent:
    """Climb f from every row of x inside of the ball around that row.

    y <- P(y + step · d), with P the exact projection of `project_ball` and d by rule:

    - `"sign"`: the steepest direction of the ball's norm (sign(g) for Linf, g/|g| for
      L2, the largest entry for L1); default step 2.5 radius / steps;
    - `"gradient"`: g itself; without `step` the length is automatic, row by row: long
      where f was convex along the last move, Barzilai-Borwein where it was concave;
    - `"adam"`: Adam's direction (0.9, 0.999), its moments starting anew at each
      restart; default step as for "sign". For L2 and L1 the second moment is the mean
      over the row: taken entrywise it would turn every gradient into its sign, whose
      maximum over the ball lies elsewhere.

    A row whose value is NaN keeps its NaN unless the climb finds a number; entries of
    a gradient that are not finite do not move.

    Args:
        f: Function (n, *shape) -> (n,), rows independent of each other, differentiable
            by torch; or a landscape (anything with `loss` and `value_and_gradient`).
        x: Centers of the balls, inside of the box.
        norm: "Linf", "L2" or "L1".
        radius: One radius, or one a row; at least 0.
        box: Lower and upper bound of the points, numbers or tensors.
        steps: Steps of each restart.
        step: Step length: a number, a tensor (n,), or a sequence with one a step.
        rule: See above.
        momentum: Share of the last direction kept, in [0, 1); for "sign" gradients
            enter it scaled to L1 norm 1. None of it with "adam".
        starts: "center", "uniform" in the ball, or points: (n, *shape), or
            (r, n, *shape) for r restarts. Restarts beyond the given starts are uniform.
        restarts: Number of runs from different starts.
        keep: "best" of all points seen, or the "last" of each run; the best of the
            runs in either case.
        seed: Seed of uniform starts.

    Raises:
        InputError: An option is unknown or out of range.
        LossError: f returns something else than one value a row.

    Cost: restarts · (steps + 1) passes.
    """
    norm = read_norm(norm)
    _check(rule, keep, steps, restarts, momentum)
    radii, limits = read_radius(radius, x), read_box(box, x)
    center = x.detach()
    best: tuple[Tensor, Tensor] | None = None
    evaluations = 0
    for start in _starts(starts, restarts, center, norm, radii, seed):
        lengths = _lengths(step, rule, steps, radii)
        climb = _Climb(f, center, norm, radii, limits, rule, momentum)
        found = climb.run(start, lengths, keep)
        evaluations += steps + 1
        best = found if best is None else _better(best, found)
    assert best is not None
    return Ascent(*best, evaluations)


class _Climb:
    """One run from one start, all rows at once."""

    def __init__(
        self,
        f: Objective,
        center: Tensor,
        norm: Norm,
        radii: Tensor,
        box: tuple[Tensor, Tensor] | None,
        rule: Rule,
        momentum: float,
    ) -> None:
        self.f, self.center, self.norm, self.radii = f, center, norm, radii
        self.box, self.rule, self.momentum = box, rule, momentum
        self.velocity = torch.zeros_like(center)
        self.square = torch.zeros_like(center)
        self.previous: tuple[Tensor, Tensor] | None = None

    def run(
        self, start: Tensor, lengths: Sequence[Tensor | None], keep: str
    ) -> tuple[Tensor, Tensor]:
        point = self.project(start)
        best: tuple[Tensor, Tensor] | None = None
        for i, length in enumerate(lengths):
            value, gradient = _value_and_gradient(self.f, point)
            if keep == "best":
                here = point, value
                best = here if best is None else _better(best, here)
            gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
            if length is None:
                length = self.automatic(point, gradient)
            direction = self.direction(point, gradient, i)
            point = self.project(point + _rows(length, point) * direction)
        last = point, _value(self.f, point)
        return last if best is None else _better(best, last)

    def project(self, point: Tensor) -> Tensor:
        return project_ball(point, self.center, self.norm, self.radii, self.box)

    def direction(self, point: Tensor, g: Tensor, i: int) -> Tensor:
        if self.rule == "adam":
            self.velocity = 0.9 * self.velocity + 0.1 * g
            second = g.square()
            if self.norm != "Linf":
                second = _rows(second.flatten(1).mean(1), g)
            self.square = 0.999 * self.square + 0.001 * second
            mean = self.velocity / (1 - 0.9 ** (i + 1))
            spread = (self.square / (1 - 0.999 ** (i + 1))).sqrt()
            return mean / (spread + 1e-12)
        if self.momentum:
            if self.rule == "sign":
                size = g.flatten(1).abs().sum(1).clamp(min=1e-30)
                g = g / _rows(size, g)
            g = self.velocity = self.momentum * self.velocity + g
        if self.rule == "gradient":
            return g
        return steepest(g, self.norm, point, self.box)

    def automatic(self, point: Tensor, gradient: Tensor) -> Tensor:
        """Return the length of a gradient step, row by row."""
        size = gradient.flatten(1).double().norm(dim=1)
        natural = torch.where(size > 0, self.radii / size, torch.zeros_like(size))
        longest = _LONGEST * natural
        if self.previous is None:
            self.previous = point, gradient
            return natural
        moved = (point - self.previous[0]).flatten(1).double()
        change = (gradient - self.previous[1]).flatten(1).double()
        self.previous = point, gradient
        bend = (moved * change).sum(1)
        spectral = moved.square().sum(1) / -bend
        return torch.where(bend < 0, torch.minimum(spectral, longest), longest)


def _check(rule: str, keep: str, steps: int, restarts: int, momentum: float) -> None:
    if rule not in get_args(Rule):
        raise InputError(f"rule must be one of {get_args(Rule)}, got {rule!r}")
    if keep not in ("best", "last"):
        raise InputError(f"keep must be 'best' or 'last', got {keep!r}")
    if steps < 0 or restarts < 1:
        raise InputError(
            f"steps must be at least 0 and restarts at least 1, got {steps} and "
            f"{restarts}"
        )
    if not 0 <= momentum < 1 or (momentum and rule == "adam"):
        raise InputError(
            f"momentum must lie in [0, 1), and be 0 with rule='adam'; got {momentum}"
        )


def _starts(
    starts: str | Tensor,
    restarts: int,
    center: Tensor,
    norm: Norm,
    radii: Tensor,
    seed: int,
) -> Iterator[Tensor]:
    given: list[Tensor] = []
    if isinstance(starts, Tensor):
        if starts.shape[-center.ndim :] != center.shape or (
            starts.ndim not in (center.ndim, center.ndim + 1)
        ):
            raise InputError(
                f"starts must have shape {tuple(center.shape)}, or one axis of "
                f"restarts before it, got {tuple(starts.shape)}"
            )
        given = list(starts.detach().to(center).reshape(-1, *center.shape))
    elif starts == "center":
        given = [center]
    elif starts != "uniform":
        raise InputError(
            f"starts must be 'center', 'uniform' or a tensor, got {starts!r}"
        )
    yield from given
    for i in range(len(given), restarts):
        yield center + uniform_in_ball(center, norm, radii, seed, "start", i)


def _lengths(
    step: float | Tensor | Sequence[float] | None,
    rule: Rule,
    steps: int,
    radii: Tensor,
) -> Sequence[Tensor | None]:
    """Return the step length of every step; None where it is automatic."""
    if step is None:
        default = None if rule == "gradient" else 2.5 * radii / max(steps, 1)
        return [default] * steps
    if isinstance(step, Sequence):
        if len(step) != steps:
            raise InputError(
                f"step has {len(step)} lengths for {steps} steps: give one each"
            )
        lengths = [torch.as_tensor(s, dtype=torch.float64) for s in step]
    else:
        lengths = [torch.as_tensor(step, dtype=torch.float64)] * steps
    if any(not bool((length > 0).all()) for length in lengths):
        raise InputError(f"step must be positive, got {step}")
    return [length.to(radii.device).expand_as(radii) for length in lengths]


def _better(
    old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return row by row the point of larger value; a number beats a NaN."""
    take = (new[1] > old[1]) | (old[1].isnan() & ~new[1].isnan())
    return (
        torch.where(_rows(take, old[0]), new[0], old[0]),
        torch.where(take, new[1], old[1]),
    )


def _rows(values: Tensor, like: Tensor) -> Tensor:
    """Return one value a row with the axes of `like`."""
    if values.dtype.is_floating_point:
        values = values.to(like.dtype)
    return values.reshape((-1,) + (1,) * (like.ndim - 1))


def _value(f: Objective, point: Tensor) -> Tensor:
    with torch.no_grad():
        return _checked(
            f.loss(point) if isinstance(f, Differentiable) else f(point), point
        )


def _value_and_gradient(f: Objective, point: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(f, Differentiable):
        value, gradient = f.value_and_gradient(point)
        return _checked(value, point), gradient.detach()
    with torch.enable_grad():
        point = point.detach().requires_grad_()
        value = f(point)
        if not isinstance(value, Tensor) or not value.requires_grad:
            raise LossError("f must return a tensor that depends on its argument")
        _checked(value, point)
        (gradient,) = torch.autograd.grad(value.sum(), point, materialize_grads=True)
    return value.detach(), gradient


def _checked(value: Tensor, point: Tensor) -> Tensor:
    if value.shape != point.shape[:1]:
        raise LossError(
            f"f must return one value a row, shape ({point.shape[0]},), got "
            f"{tuple(value.shape)}"
        )
    return value.detach()
