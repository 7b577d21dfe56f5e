"""Curvature along a line from three losses, where derivatives cannot see kinks."""

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError
from thalweg.landscapes.base import Landscape


def secant_curvature(
    land: Landscape,
    v: Float[Tensor, " dim"],
    h: float,
    *,
    at: Float[Tensor, " dim"] | None = None,
) -> float:
    """Return (L(x + h v) - 2 L(x) + L(x - h v)) / h², from three losses.

    For h -> 0 it is v.Hv where L is smooth; at finite h it holds what the kinks of
    ReLU and max-pooling add, which the Hessian (their second derivative is 0 almost
    everywhere) misses. Rounding costs about 4 eps |L| / h².

    Args:
        land: Any landscape.
        v: Direction; its length counts.
        h: Half the length of the secant in units of v, positive.
        at: The point; the landscape's origin by default.

    Raises:
        InputError: h is not positive and finite, or there is no point.
    """
    if not 0 < h < float("inf"):
        raise InputError(f"h must be positive and finite, got {h}")
    x = land.point(at)
    v = v.to(x)
    ahead, here, behind = land.loss(torch.stack([x + h * v, x, x - h * v])).double()
    return float(((ahead - here) + (behind - here)) / h**2)
