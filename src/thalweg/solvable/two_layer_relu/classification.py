"""What a critical point is: minimum, saddle or degenerate; global or spurious."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from thalweg.solvable.two_layer_relu.derivatives import Curvature
from thalweg.solvable.two_layer_relu.kernel import loss
from thalweg.solvable.two_layer_relu.polish import tolerance
from thalweg.solvable.two_layer_relu.reduction import reduce, spectrum
from thalweg.solvable.two_layer_relu.zero_loss import (
    distinct_teachers,
    snapped,
    transfers,
)

Kind = Literal["minimum", "degenerate", "saddle", "not stationary"]
Level = Literal["global", "spurious", "lowest_found", "above_lowest", "unranked"]
Case = Literal[
    "S is regular: every neuron lies in span(V)",
    "S is singular: neurons may leave span(V) at a minimum",
    "W leaves span(V): with d above dim span(V, W) no strict minimum",
]

GLOBAL_LOSS = 1e-10
_STATIONARY = 1e-6
_SCALES = (1e-2, 1e-3)


@dataclass(frozen=True)
class Classification:
    """A point of the landscape, classified by the spectrum of its Hessian.

    Attributes:
        kind: "saddle" (an eigenvalue below -τ), "minimum" (all above τ), "degenerate",
            or "not stationary" (gradient norm above 1e-6), τ = 1e-8 max(1, λ_max).
        level: "global" (loss <= 1e-10, K >= M), "spurious" (loss above, K >= M); for
            K < M no certificate exists: "lowest_found", "above_lowest" among families,
            "unranked" alone.
        loss, grad_norm: At the point.
        smallest, largest: Eigenvalues of the Hessian in dimension d.
        S_min: Smallest eigenvalue of S, the Hessian outside span(V, W).
        orthogonal_norm: |W_⊥|_F, what lies outside span(V).
        case: What stationarity implies here for W_⊥.
        nullity: Number of eigenvalues within ±τ, in dimension d.
        flat: Of these, directions of constant loss.
        cubic: Of these, directions in which the loss grows as the third power.
    """

    kind: Kind
    level: Level
    loss: float
    grad_norm: float
    smallest: float
    largest: float
    S_min: float
    orthogonal_norm: float
    case: Case
    nullity: int
    flat: int
    cubic: int

    def __repr__(self) -> str:
        null = f", {self.nullity} null ({self.flat} flat, {self.cubic} cubic)"
        return (
            f"Classification({self.level} {self.kind}, loss {self.loss:.6g}, λ in "
            f"[{self.smallest:.4g}, {self.largest:.4g}]{null if self.nullity else ''})"
        )


def classify(W: Tensor, V: Tensor, d: int) -> Classification:
    """Classify the student W (K, d0) in dimension d.

    Points near the set of zero loss of K > M are first moved onto it, since their
    Hessian is singular only there.
    """
    value = float(loss(W, V))
    teachers = distinct_teachers(V)
    realizable = len(W) >= len(teachers)
    level: Level = "unranked"
    if realizable:
        level = "global" if value <= GLOBAL_LOSS else "spurious"
    if level == "global" and len(W) > len(teachers):
        exact = snapped(W, teachers)
        alive = exact.norm(dim=1) > 0
        W = exact if bool(alive.all()) else W
    norm = float(Curvature(W, V).gradient().norm())
    result = spectrum(W, V, d)
    orthogonal = float(reduce(W, V).gram.trace().clamp_min(0).sqrt())
    tau = float(tolerance(torch.tensor(result.largest)))
    s_min = float(result.outside[0])
    kind: Kind
    if norm > _STATIONARY:
        kind = "not stationary"
    elif result.smallest < -tau:
        kind = "saddle"
    else:
        kind = "minimum" if result.smallest > tau else "degenerate"
    nullity = int((result.values.abs() <= tau).sum())
    flat = cubic = 0
    if kind == "degenerate":
        flat, cubic = _flat_and_cubic(W, V, d, tau)
    return Classification(
        kind,
        level,
        float(loss(W, V)),
        norm,
        result.smallest,
        result.largest,
        s_min,
        orthogonal,
        _case(orthogonal, s_min, tau),
        nullity,
        flat,
        cubic,
    )


def _case(orthogonal: float, s_min: float, tau: float) -> Case:
    if orthogonal > 1e-6:
        return "W leaves span(V): with d above dim span(V, W) no strict minimum"
    if s_min > tau:
        return "S is regular: every neuron lies in span(V)"
    return "S is singular: neurons may leave span(V) at a minimum"


def _flat_and_cubic(W: Tensor, V: Tensor, d: int, tau: float) -> tuple[int, int]:
    """Count null directions of constant loss and of cubic growth in dimension d."""
    result = spectrum(W, V, d)
    w, v = result.coordinates, result.teacher
    K, r = w.shape
    values, vectors = torch.linalg.eigh(Curvature(w, v).dense())
    null = vectors[:, values.abs() <= tau]
    moves = transfers(w)
    rest = null - moves @ (moves.T @ null)
    left, sizes, _ = torch.linalg.svd(rest, full_matrices=False)
    rest = left[:, sizes > 1e-3]
    flat, cubic = _growth(w, v, rest.T.reshape(-1, K, r))
    flat += moves.shape[1]
    outside, mixes = torch.linalg.eigh(Curvature(w, v).S)
    mixes = mixes[:, outside.abs() <= tau]
    if result.multiplicity and mixes.shape[1]:
        # One fresh coordinate stands for all of them.
        pad = torch.nn.functional.pad
        directions = pad(mixes.T[:, :, None], (r, 0))
        more = _growth(pad(w, (0, 1)), pad(v, (0, 1)), directions)
        flat += result.multiplicity * more[0]
        cubic += result.multiplicity * more[1]
    return flat, cubic


def _growth(W: Tensor, V: Tensor, directions: Tensor) -> tuple[int, int]:
    """Count directions (n, K, d) of no growth and of cubic growth, at two scales."""
    if not len(directions):
        return 0, 0
    base = loss(W, V)
    coarse, fine = ((loss(W + scale * directions, V) - base).abs() for scale in _SCALES)
    ratios = coarse / _SCALES[0] ** 3, fine / _SCALES[1] ** 3
    flat = (coarse < 1e-14) & (fine < 1e-14)
    cubic = ~flat & (ratios[1] > 0.5 * ratios[0]) & (ratios[1] < 2 * ratios[0])
    return int(flat.sum()), int(cubic.sum())
