"""Worst cases around a point: the largest loss and the largest gradient in a ball."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import LossError
from thalweg.instruments.ascent import Rule, ascend
from thalweg.instruments.neighborhood import Neighborhood
from thalweg.instruments.projections import Norm, ball_norm, dual_norm, steepest
from thalweg.instruments.trust_region import quadratic_maximizers
from thalweg.landscapes import FunctionOperator, LinearOperator
from thalweg.seeding import normal


@dataclass(frozen=True)
class WorstCase:
    """The largest value found, where, and what to know about it."""

    value: float
    point: Float[Tensor, " dim"]
    note: str = ""


@dataclass(frozen=True)
class Search:
    """How a worst case is looked for.

    Args:
        norm: Norm of the ball.
        rho: Radius of the ball.
        method: "one_step" or "pgd".
        steps: Steps of each ascent.
        momentum: Momentum of the ascents.
        restarts: Random starts besides the informed ones.
        seed: Seed of the random starts.
    """

    norm: Norm
    rho: float
    method: str
    steps: int
    momentum: float
    restarts: int
    seed: int

    @property
    def rule(self) -> Rule:
        """Steps of steepest ascent in the cube, of automatic length elsewhere."""
        return "sign" if self.norm == "Linf" else "gradient"

    def edge(self, directions: Float[Tensor, "n dim"]) -> Float[Tensor, "n dim"]:
        """Return the points of the ball furthest along each direction."""
        return self.rho * steepest(directions, self.norm)

    def random(self, area: Neighborhood, i: int) -> Float[Tensor, "1 dim"]:
        """Return one random direction."""
        return normal((1, area.dim), self.seed, "worst case", i, like=area.base)


def largest_increase(area: Neighborhood, search: Search) -> WorstCase:
    """Return max L(θ + Tu) - L(θ) over the ball, from the best point seen.

    u = 0 and the one-step point always count, so the value is at least 0 and at least
    the one-step value.
    """
    zero = area.origin
    assert zero is not None
    value, gradient = area.value_and_gradient(zero)
    base, note = float(value), ""
    direction = gradient[None]
    if not bool(gradient.any()):
        direction, note = search.random(area, 0), "the gradient is zero: random start"
    step = search.edge(direction)
    candidates = torch.cat([zero[None], step])
    values = torch.cat([torch.tensor([base], dtype=torch.float64), area.losses(step)])
    if search.method == "one_step" and float(values[1]) < base:
        note = "; ".join(filter(None, [note, "the step leads down: 0 is reported"]))
    if search.method == "pgd":
        starts, reason = _starts(area, search, direction, gradient)
        note = "; ".join(filter(None, [note, reason]))
        found = _climb(area, search, starts)
        candidates = torch.cat([candidates, found[0]])
        values = torch.cat([values, found[1].double().cpu()])
    best = _argmax(values)
    return WorstCase(float(values[best]) - base, candidates[best], note)


def largest_gradient(area: Neighborhood, search: Search) -> WorstCase:
    """Return max |∇L(θ + Tu)| over the ball, in the norm dual to it.

    u = 0, the one-step point and, under "pgd", the maximizer of the loss always count.
    One step goes along ∇|g| = H d(g), d(g) the steepest direction at θ.
    """
    zero = area.origin
    assert zero is not None
    objective = GradientNorm(area, search.norm)
    gradient = area.gradient(zero)
    note = ""
    direction = steepest(gradient[None], search.norm)
    if not bool(gradient.any()):
        direction, note = search.random(area, 0), "the gradient is zero: random start"
    with area.curvature(zero) as H:
        bent = (H @ direction[0]).to(direction)[None]
        starts = [search.edge(bent)]
        if search.method == "pgd" and search.norm == "L2":
            squared = _square(H)
            starts.append(
                quadratic_maximizers(squared, H @ gradient, search.rho, search.seed)
            )
    candidates = torch.cat([zero[None], starts[0]])
    if search.method == "pgd":
        highest = largest_increase(area, search)
        randoms = [search.random(area, i) for i in range(search.restarts)]
        starts += [highest.point[None], *(search.edge(r) for r in randoms)]
        if search.norm != "L2":
            starts.append(search.edge(torch.cat([gradient[None], -bent])))
        found = _climb(objective, search, torch.cat(starts).to(zero))
        candidates = torch.cat([candidates, highest.point[None], found[0]])
    values = objective.loss(candidates).double().cpu()
    best = _argmax(values)
    return WorstCase(float(values[best]), candidates[best], note)


class GradientNorm:
    """u -> |∇L(θ + Tu)| in the norm dual to the ball's, with its gradient."""

    def __init__(self, area: Neighborhood, norm: Norm) -> None:
        self.area, self.norm = area, norm

    def loss(self, points: Float[Tensor, "n dim"]) -> Float[Tensor, " n"]:
        """Return the norms of the gradients."""
        return ball_norm(self.area.gradient(points), dual_norm(self.norm))

    def value_and_gradient(
        self, points: Float[Tensor, "n dim"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n dim"]]:
        """Return the norms and H d(g), row by row: one product each."""
        gradients = self.area.gradient(points)
        rows = []
        for point, d in zip(points, steepest(gradients, self.norm), strict=True):
            with self.area.curvature(point) as H:
                rows.append((H @ d).to(points))
        return ball_norm(gradients, dual_norm(self.norm)), torch.stack(rows)


def _climb(
    objective: Neighborhood | GradientNorm, search: Search, starts: Tensor
) -> tuple[Tensor, Tensor]:
    found = ascend(
        objective,
        torch.zeros_like(starts),
        norm=search.norm,
        radius=search.rho,
        steps=search.steps,
        rule=search.rule,
        momentum=search.momentum,
        starts=starts,
        seed=search.seed,
    )
    return found.points, found.values


def _starts(
    area: Neighborhood, search: Search, direction: Tensor, gradient: Tensor
) -> tuple[Tensor, str]:
    """Return the gradient's, the top eigenvector's and random starts."""
    zero = area.origin
    assert zero is not None
    starts = [search.edge(direction)]
    note = ""
    try:
        with area.curvature(zero) as H:
            model = quadratic_maximizers(H, gradient, search.rho, search.seed)
    except (LossError, RuntimeError) as error:
        note = f"no second derivatives ({type(error).__name__}): fewer starts"
    else:
        model = model.to(zero)
        starts.append(model if search.norm == "L2" else search.edge(model))
    starts += [search.edge(search.random(area, 1 + i)) for i in range(search.restarts)]
    return torch.cat(starts), note


def _square(H: LinearOperator) -> LinearOperator:
    return FunctionOperator(
        lambda v: H @ (H @ v), H.dim, dtype=H.dtype, device=H.device
    )


def _argmax(values: Tensor) -> int:
    """Return the position of the largest value; NaN only where all are."""
    return int(torch.nan_to_num(values, nan=-torch.inf).argmax())
