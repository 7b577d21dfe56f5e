"""The verdict on a point: what its gradient and curvature prove, and no more.

That a point is a minimum cannot be proved by products: negative curvature may hide in a
direction that none of them met. So a survey says `saddle`, `not stationary`, or that it
found no negative curvature in so many products.
"""

from dataclasses import dataclass
from typing import Literal

from thalweg.reporting import format_number

# ‖g‖ within this many sampling errors counts as stationary.
STATIONARY = 2.0
# Weight decay is named where it explains at least this share of ‖g‖.
EXPLAINED = 0.5


@dataclass(frozen=True)
class Facts:
    """What was measured at the point.

    Args:
        gradient_norm: ‖g‖ of the surveyed loss, weight decay included where given.
        gradient_error: Sampling error of ‖g‖, sqrt(tr C / N) with C the covariance of
            the examples' gradients; None where the landscape has no examples.
        scale: Magnitude that ‖g‖ is held against where there is no sampling error:
            the largest |eigenvalue| times max(1, ‖θ‖).
        curvature: Smallest vᵀHv found over unit vectors v; None where not measured.
        floor: Rounding error of vᵀHv; curvature above -floor is no evidence.
        products: Products spent on looking for negative curvature.
        decay: Fitted weight decay λ̂ = -g·θ / ‖θ‖².
        decay_share: Share of ‖g‖ that -λ̂θ explains, |cos(g, θ)|.
    """

    gradient_norm: float
    gradient_error: float | None
    scale: float
    curvature: float | None
    floor: float
    products: int
    decay: float
    decay_share: float


@dataclass(frozen=True)
class Verdict:
    """A kind, a headline and the reasons."""

    kind: Literal["saddle", "not stationary", "no negative curvature found"]
    headline: str
    reasons: tuple[str, ...]


def judge(facts: Facts) -> Verdict:
    """Return the verdict that `facts` allow."""
    reasons = [_gradient_reason(facts)]
    curvature = facts.curvature
    negative = curvature is not None and curvature < -facts.floor
    if negative:
        reasons.append(
            f"A unit vector v has vᵀHv = {format_number(curvature, 3)} < 0: the loss "
            "falls both ways along it, to second order."
        )
    stationary = _stationary(facts)
    decayed = facts.decay > 0 and facts.decay_share >= EXPLAINED
    if decayed and (negative or not stationary):
        reasons.append(
            f"Weight decay explains {facts.decay_share:.0%} of ‖g‖, with a fitted "
            f"coefficient of {facts.decay:.2g}: a network trained with weight decay is "
            "stationary, and at a minimum, only for the loss with its penalty. Survey "
            f"that sum with --weight-decay {facts.decay:.2g}."
        )
    if not stationary:
        return Verdict("not stationary", "Not a stationary point", tuple(reasons))
    if negative:
        return Verdict("saddle", "A saddle", tuple(reasons))
    if curvature is None:
        return Verdict(
            "no negative curvature found",
            "Stationary; curvature was not looked at",
            tuple(reasons),
        )
    reasons.append(
        "That is evidence for a minimum, not a proof: negative curvature may lie in a "
        "direction that these products did not meet."
    )
    headline = f"No negative curvature found in {facts.products} products"
    return Verdict("no negative curvature found", headline, tuple(reasons))


def _stationary(facts: Facts) -> bool:
    if facts.gradient_error is not None:
        return facts.gradient_norm <= STATIONARY * facts.gradient_error
    return facts.gradient_norm <= 1e-6 * facts.scale


def _gradient_reason(facts: Facts) -> str:
    norm, error = facts.gradient_norm, facts.gradient_error
    if error is None:
        return f"‖g‖ = {norm:.3g}, against a scale of {facts.scale:.3g}."
    if _stationary(facts):
        return (
            f"‖g‖ = {norm:.3g} lies within {STATIONARY:.0f} times its sampling error "
            f"of {error:.3g}: on other data of this size it could vanish."
        )
    times = norm / error if error > 0 else float("inf")
    return (
        f"‖g‖ = {norm:.3g} is {times:.3g} times its sampling error of {error:.3g}: "
        "more than chance in the data explains, so the loss still falls along -g."
    )
