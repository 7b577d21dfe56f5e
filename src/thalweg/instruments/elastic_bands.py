"""Nudged elastic bands: a chain of pivots relaxed onto a path of least loss."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import NonFiniteLossError
from thalweg.instruments.minimizing import (
    BatchSize,
    Display,
    MakeOptimizer,
    cut,
    minimize,
)
from thalweg.landscapes import (
    BetweenLandscape,
    Curve,
    CurveLandscape,
    Landscape,
    NetworkCurve,
    NetworkLandscape,
)
from thalweg.seeding import derive

INSERT = 0.05  # of the range of the loss along the band
SAMPLES = (0.25, 0.5, 0.75)  # of each segment, where a new pivot may go


@dataclass(frozen=True)
class Band:
    """A relaxed band.

    Args:
        curve: The polyline through the pivots, t the share of its length.
        losses: Mean loss of the pivots in each step, one round after the other.
        gradients: Gradients it took.
        evaluations: Losses that it took to see where pivots are missing.
    """

    curve: Curve
    losses: Float[np.ndarray, " steps"]
    gradients: int
    evaluations: int


def along(
    land: Landscape, curve: Curve, span: BetweenLandscape | None
) -> CurveLandscape:
    """Return the landscape t -> L(φ(t)); a network's buffers move along `span`."""
    return CurveLandscape(land, curve) if span is None else NetworkCurve(span, curve)


def relax(
    land: Landscape,
    curve: Curve,
    span: BetweenLandscape | None,
    *,
    rounds: int,
    steps: int,
    rate: float,
    climb: bool,
    optimizer: MakeOptimizer | None,
    batch_size: BatchSize,
    seed: int,
    store: Path | None = None,
    progress: Display = None,
) -> Band:
    """Relax a polyline between its ends, with more pivots each round where they lack.

    In a step every inner pivot moves against the part of its gradient that is
    perpendicular to the band, all on one minibatch; then the pivots are put back to
    their shares of the length. The tangent points to the neighbor of larger loss. After
    a round, a pivot is inserted where the loss between two pivots exceeds the line
    between theirs by more than 5 % of the range of the loss.

    Args:
        land: The landscape.
        curve: A polyline.
        span: A network's segment, which knows the buffers.
        rounds: How many.
        steps: Steps of a round.
        rate: Learning rate of the default optimizer.
        climb: In the last round the highest pivot climbs, against its whole gradient
            with the part along the band reversed, onto the saddle.
        optimizer: Makes another.
        batch_size: Rows of a step.
        seed: Seed of the order of batches.
        store: Directory in which each round is kept.
        progress: See `as_progress`.

    Source: "Essentially No Barriers in Neural Network Energy Landscape", F. Draxler,
    K. Veschgini, M. Salmhofer, F. A. Hamprecht, 2018; for the climbing pivot "A
    Climbing Image Nudged Elastic Band Method for Finding Saddle Points and Minimum
    Energy Paths", G. Henkelman, B. P. Uberuaga, H. Jónsson, 2000.
    """
    pieces = cut(land, batch_size)
    gradients = evaluations = 0
    losses = []
    for number in range(rounds):
        if number:
            curve, cost = _refined(along(land, curve, span))
            evaluations += cost
        band = _Band(land, curve, span, climb and number == rounds - 1)
        inner, seen = minimize(
            curve.pivots[1:-1],
            band.objective,
            pieces,
            steps=steps,
            rate=rate,
            optimizer=optimizer,
            seed=derive(seed, "round", number),
            after_step=band.redistribute,
            checkpoint=None if store is None else store / f"round-{number}.pt",
            progress=progress,
        )
        losses.append(seen)
        gradients += steps * len(inner)
        pivots = torch.cat([curve.pivots[:1], inner, curve.pivots[-1:]])
        curve = Curve("polyline", pivots, _shares(pivots))
    return Band(curve, np.concatenate(losses), gradients, evaluations)


class _Band:
    """One round: the forces on the inner pivots, and their places along the band."""

    def __init__(
        self,
        land: Landscape,
        curve: Curve,
        span: BetweenLandscape | None,
        climb: bool,
    ) -> None:
        assert curve.knots is not None
        self.knots, self.span, self.climb = curve.knots, span, climb
        self.ends = curve.pivots[[0, -1]]
        at = torch.tensor([[0.0], [1.0]], dtype=curve.pivots.dtype)
        self.end_losses = along(land, curve, span).loss(at.to(curve.pivots.device))
        self.top: int | None = None

    def objective(self, inner: Tensor, land: Landscape, step: int) -> Tensor:
        values, gradients = self._slopes(inner.detach(), land)
        if not bool(torch.isfinite(values).all()):
            bad = int((~torch.isfinite(values)).sum())
            raise NonFiniteLossError(
                f"the loss is NaN or infinite at {bad} of {len(values)} pivots after "
                f"{step} steps of a round: begin elsewhere (`jitter=`, `bends=`) or "
                "give an optimizer of a smaller rate"
            )
        losses = torch.cat([self.end_losses[:1], values, self.end_losses[1:]])
        band = torch.cat([self.ends[:1], inner.detach(), self.ends[1:]])
        ahead = band.diff(dim=0)
        uphill = (losses[2:] > losses[:-2])[:, None]
        tangents = torch.where(uphill, ahead[1:], ahead[:-1])
        tangents = tangents / tangents.norm(dim=1, keepdim=True)
        parallel = (gradients * tangents).sum(1, keepdim=True) * tangents
        forces = gradients - parallel
        self.top = int(values.argmax()) if self.climb else None
        if self.top is not None:
            forces[self.top] -= parallel[self.top]
        return values.mean().to(inner) + (forces * (inner - inner.detach())).sum()

    def _slopes(self, inner: Tensor, land: Landscape) -> tuple[Tensor, Tensor]:
        if self.span is None or not isinstance(land, NetworkLandscape):
            return land.value_and_gradient(inner)
        span = self.span.over(land)
        pairs = [
            span.placed(t.reshape(1)).value_and_gradient(point)
            for t, point in zip(self.knots[1:-1], inner, strict=True)
        ]
        values, gradients = zip(*pairs, strict=True)
        return torch.stack(values), torch.stack(gradients)

    def redistribute(self, inner: Tensor, step: int) -> None:
        """Put the pivots where the knots say, as shares of the length."""
        pins = [0, len(inner) + 1]
        if self.top is not None:
            pins.insert(1, self.top + 1)
        band = torch.cat([self.ends[:1], inner, self.ends[1:]])
        for i, j in pairwise(pins):
            if j > i + 1:
                section, knots = band[i : j + 1], self.knots[i : j + 1]
                shares = (knots[1:-1] - knots[0]) / (knots[-1] - knots[0])
                inner[i : j - 1] = Curve("polyline", section, _shares(section))(shares)


def _shares(pivots: Tensor) -> Tensor:
    """Return the share of the length up to each pivot."""
    sides = pivots.diff(dim=0).double().norm(dim=1).cpu()
    total = torch.nn.functional.pad(sides.cumsum(0), (1, 0))
    shares = total / total[-1]
    shares[-1] = 1.0
    return shares


def _refined(whole: CurveLandscape) -> tuple[Curve, int]:
    """Return the curve with pivots inserted, and how many losses that took."""
    curve = whole.curve
    assert curve.knots is not None
    knots = curve.knots.numpy()
    shares = np.array((0.0, *SAMPLES))
    t = np.concatenate(
        [(knots[:-1, None] + np.diff(knots)[:, None] * shares).ravel(), [1.0]]
    )
    points = torch.from_numpy(t)[:, None].to(whole.origin)
    with torch.no_grad():
        losses = whole.loss(points).double().cpu().numpy()
    at_pivots = losses[:: len(shares)]
    lines = at_pivots[:-1, None] * (1 - shares) + at_pivots[1:, None] * shares
    excess = losses[:-1].reshape(lines.shape) - lines
    best = excess.argmax(1)
    missing = excess.max(1) > INSERT * np.ptp(losses)
    new = knots[:-1] + np.diff(knots) * shares[best]
    merged = np.sort(np.concatenate([knots, new[missing]]))
    places = torch.from_numpy(merged)
    return Curve("polyline", curve(places), places), len(t)
