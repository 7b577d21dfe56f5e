"""Least values of a convex loss over outputs of one sign."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError

ConvexLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
_DOUBLINGS, _BISECTIONS = 60, 80


def least_losses(
    loss: ConvexLoss, y: Float[Tensor, " n"], sign: int
) -> Float[Tensor, " n"]:
    """Return a lower bound on inf over u >= 0 of loss(sign u, y_i), for each example.

    By convexity the two tangents at the ends of an interval that holds the minimum
    bound it from below; bisection closes the interval to rounding. A loss that still
    falls at u = 2^60 is taken to fall to 0, which holds for losses that are nowhere
    negative.

    Args:
        loss: Maps outputs (n,) and targets (n,) to losses (n,), convex in the outputs
            and not negative.
        y: Targets.
        sign: Sign of the outputs.

    Raises:
        InputError: The loss returns another shape, values that are negative or not
            finite at 0, or is found not to be convex.
    """

    def at(u: Tensor) -> tuple[Tensor, Tensor]:
        u = u.detach().requires_grad_()
        value = loss(sign * u, y)
        if value.shape != y.shape:
            raise InputError(
                f"loss must return one value an example, {tuple(y.shape)}, got shape "
                f"{tuple(value.shape)}"
            )
        if not value.requires_grad:  # constant in the outputs
            return value, torch.zeros_like(u)
        (slope,) = torch.autograd.grad(value.sum(), u)
        return value.detach(), slope

    with torch.enable_grad():
        zero = torch.zeros_like(y)
        start, first = at(zero)
        if not bool(torch.isfinite(start).all()) or bool((start < 0).any()):
            raise InputError(
                "loss must be finite and not negative at the output 0, got "
                f"{float(start.min())}"
            )
        _check_convex(at, y)
        low, high = zero, torch.ones_like(y)
        for _ in range(_DOUBLINGS):
            falling = at(high)[1] < 0
            if not bool((falling & (first < 0)).any()):
                break
            low = torch.where(falling, high, low)
            high = torch.where(falling, 2 * high, high)
        endless = (first < 0) & (at(high)[1] < 0)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            falling = at(middle)[1] < 0
            low = torch.where(falling, middle, low)
            high = torch.where(falling, high, middle)
        (a, left), (b, right) = at(low), at(high)
    width = high - low
    # Where the tangents meet; flat ones meet anywhere.
    meet = ((b - a - right * width) / (left - right)).clamp(min=0.0)
    meet = torch.minimum(torch.nan_to_num(meet), width)
    bound = torch.where(first >= 0, start, a + left * meet)
    return torch.where(endless, 0.0, bound).clamp_min(0.0)


def _check_convex(at: Callable[[Tensor], tuple[Tensor, Tensor]], y: Tensor) -> None:
    """Hold tangents against values at a few outputs, which shows gross errors."""
    places = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
    found = [at(torch.full_like(y, u)) for u in places]
    for u, (value, slope) in zip(places, found, strict=True):
        for v, (other, _) in zip(places, found, strict=True):
            if bool((value + slope * (v - u) > other + 1e-6 * (1 + other.abs())).any()):
                raise InputError(
                    f"loss must be convex in the outputs: its tangent at {u:g} lies "
                    f"above it at {v:g}"
                )
