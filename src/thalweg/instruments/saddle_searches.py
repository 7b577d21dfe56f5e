"""Searches for zeros of the gradient: damped Newton, eigenvector following, |g|².

All start points go together; each has its own damping or trust radius.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thalweg.instruments.curvature_frames import (
    DENSE,
    Frames,
    eigenframes,
    singular_frames,
)
from thalweg.landscapes import Landscape

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

_TINY = 1e-300
_SHRINK, _GOOD = 0.25, 0.25  # as trust regions do


class Place(NamedTuple):
    """Loss and gradient at n points."""

    values: Float[Tensor, " n"]
    gradients: Float[Tensor, "n dim"]


@dataclass(frozen=True)
class Newton:
    """Damped Newton on g = 0: the least |H s + g|² + μ |s|², so that |g| falls.

    s = -(H² + μ I)⁻¹ H g, μ relative to the largest curvature squared.
    """

    first: float = 1e-3

    def frames(
        self, land: Landscape, x: Tensor, g: Tensor, last: Frames | None
    ) -> Frames:
        """Return frames in which the step decouples."""
        return singular_frames(land, x, g)

    def step(self, frames: Frames, setting: Tensor) -> Tensor:
        """Return -σ c / (σ² + μ)."""
        sizes, slopes, _ = frames
        mu = setting * sizes.abs().amax(1) ** 2
        return -sizes * slopes / (sizes**2 + mu[:, None]).clamp_min(_TINY)

    def judge(
        self, frames: Frames, s: Tensor, old: Place, new: Place, setting: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Take what lowers |g|."""
        taken = _norms(new.gradients) < _norms(old.gradients)  # false for NaN
        return taken, torch.where(taken, (setting * 0.1).clamp_min(1e-15), setting * 10)

    def hopeless(self, setting: Tensor) -> Tensor:
        """Return where the damping is beyond any use."""
        return setting > 1e16  # noqa: PLR2004


@dataclass(frozen=True)
class Follow:
    """Eigenvector following: climb the `index` lowest modes and descend the others.

    Each mode moves by |slope / curvature|, all within a radius in which the gradient
    is linear enough; at a critical point of that index this is Newton's method.
    """

    index: int
    first: float

    def frames(
        self, land: Landscape, x: Tensor, g: Tensor, last: Frames | None
    ) -> Frames:
        """Return eigenpairs, the lowest of them from those of the last frame."""
        known = None if last is None or land.dim <= DENSE else last.vectors
        return eigenframes(land, x, g, self.index, known)

    def step(self, frames: Frames, setting: Tensor) -> Tensor:
        """Return ± c / |λ|, no longer than the radius."""
        values, slopes, _ = frames
        floor = 1e-12 * values.abs().amax(1, keepdim=True) + _TINY
        s = -slopes / torch.maximum(values.abs(), floor)
        s[:, : self.index] *= -1
        return s * (setting / _norms(s).clamp_min(_TINY)).clamp(max=1)[:, None]

    def judge(
        self, frames: Frames, s: Tensor, old: Place, new: Place, setting: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Take a step if the quadratic model held: in the gradient, or in the value.

        The value is the judge at kinks, where gradients jump, and the gradient is it
        where changes of the value are lost in rounding.
        """
        values, slopes, _ = frames
        error = _norms(frames.pull_back(new.gradients) - slopes - values * s)
        error = error / _norms(values * s)
        expected = slopes * s + values * s**2 / 2
        gap = (new.values - old.values).double() - expected.sum(1)
        error = torch.fmin(error, gap.abs() / expected.abs().sum(1))
        taken = error < 1  # false for NaN
        wider = torch.where(error < _GOOD, (2 * setting).clamp(max=self.first), setting)
        return taken, torch.where(taken, wider, _SHRINK * setting)

    def hopeless(self, setting: Tensor) -> Tensor:
        """Return where the radius has vanished."""
        return setting < 1e-14 * self.first


Rule = Newton | Follow


def search(
    land: Landscape,
    points: Float[Tensor, "n dim"],
    targets: Float[Tensor, " n"],
    rule: Rule,
    max_steps: int,
) -> tuple[Float[Tensor, "n dim"], Int[Tensor, " n"]]:
    """Step by the rule until |g| <= target; return the ends and the steps tried.

    `setting` is what the rule adapts, one number a point: damping, or trust radius.
    """
    n, ends = len(points), points.clone()
    steps = torch.zeros(n, dtype=torch.int64, device=points.device)
    rows = torch.arange(n, device=points.device)  # of those still on their way
    x, place = points.clone(), Place(*land.value_and_gradient(points))
    setting = torch.full((n,), rule.first, dtype=torch.float64, device=x.device)
    frames: Frames | None = None
    moved = torch.ones(n, dtype=torch.bool, device=x.device)  # since the last frames
    for _ in range(max_steps):
        near = _norms(place.gradients) <= targets[rows]
        going = ~(near | rule.hopeless(setting))
        ends[rows[~going]] = x[~going]
        if not going.all():
            rows, x, setting, moved = (
                part[going] for part in (rows, x, setting, moved)
            )
            place = Place(*(part[going] for part in place))
            frames = None if frames is None else frames.rows(going)
        if len(rows) == 0:
            return ends, steps
        frames = _refreshed(land, rule, frames, x, place.gradients, moved)
        s = rule.step(frames, setting)
        trial = x + frames.combine(s).to(x)
        found = Place(*land.value_and_gradient(trial))
        moved, setting = rule.judge(frames, s, place, found, setting)
        column = moved[:, None]
        x = torch.where(column, trial, x)
        place = Place(
            torch.where(moved, found.values, place.values),
            torch.where(column, found.gradients, place.gradients),
        )
        steps[rows] += 1
    ends[rows] = x
    return ends, steps


def _refreshed(
    land: Landscape,
    rule: Rule,
    frames: Frames | None,
    x: Tensor,
    g: Tensor,
    moved: Bool[Tensor, " n"],
) -> Frames:
    """Return frames of x: new ones where the point has moved."""
    if frames is None:
        return rule.frames(land, x, g, None)
    rows = torch.nonzero(moved)[:, 0]
    if len(rows) == 0:
        return frames
    return frames.updated(rows, rule.frames(land, x[rows], g[rows], frames))


def minimize_gradient_norm(
    land: Landscape,
    points: Float[Tensor, "n dim"],
    targets: Float[Tensor, " n"],
    max_steps: int,
) -> tuple[Float[Tensor, "n dim"], Int[Tensor, " n"]]:
    """Minimize |g|²/2, whose gradient is H g, by L-BFGS; one start after the other."""
    ends, steps = points.clone(), torch.zeros(len(points), dtype=torch.int64)
    for i, target in enumerate(targets.tolist()):
        objective = _HalfSquare(land, points[i], target)
        ends[i], steps[i] = objective.minimize(max_steps)
    return ends, steps


class _HalfSquare:
    """|g|²/2 over that of the start, as scipy takes it.

    In units of length in which a slope of one is a fall to zero: scipy's first step
    has the length one.
    """

    def __init__(self, land: Landscape, start: Tensor, target: float) -> None:
        self.land, self.start = land, start
        g = land.gradient(start)
        self.size = float(g.double().norm())
        with land.hessian(start) as H:
            slope = float((H @ g).double().norm())
        self.unit = self.size**2 / (2 * slope) if slope > 0 else 1.0
        self.reached = target / self.size if self.size > 0 else 1.0

    def minimize(self, max_steps: int) -> tuple[Tensor, int]:
        """Return the end and the number of steps."""
        from scipy.optimize import minimize

        if self.size == 0:
            return self.start, 0
        result = minimize(
            self,
            np.zeros(self.land.dim),
            jac=True,
            method="L-BFGS-B",
            callback=self.stop,
            options={
                "maxiter": max_steps,
                "maxfun": 10 * max_steps,
                "ftol": 0.0,
                "gtol": 0.0,
                "maxcor": 20,
            },
        )
        return self.point(result.x), int(result.nit)

    def point(self, x: np.ndarray) -> Tensor:
        """Return where x is."""
        return self.start + self.unit * torch.from_numpy(x.copy()).to(self.start)

    def __call__(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        point = self.point(x)
        g = self.land.gradient(point) / self.size
        with self.land.hessian(point) as H:
            slope = (H @ g).double().cpu().numpy()
        return float(g.double() @ g.double()) / 2, slope * (self.unit / self.size)

    def stop(self, intermediate_result: "OptimizeResult") -> None:
        """End it once |g| has reached its target."""
        if (2 * float(intermediate_result.fun)) ** 0.5 <= self.reached:
            raise StopIteration


def _norms(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows.double(), dim=-1)
