"""Angles between vectors, accurate to rounding from 0 to π, and what follows."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# Outside this range of the cosine, the angle is recomputed from the vectors.
_SAFE_COSINE = 0.99
# Below this angle, sin t - t cos t is summed as a series.
_SERIES_BELOW = 0.7


@dataclass(frozen=True)
class Pairs:
    """Norms, unit vectors and angles of all pairs (x_i, y_j).

    The zero vector has the unit vector 0 and the angle π/2 with everything.
    """

    norm_x: Tensor  # (..., n)
    norm_y: Tensor  # (..., m)
    unit_x: Tensor  # (..., n, d)
    unit_y: Tensor  # (..., m, d)
    cos: Tensor  # (..., n, m)
    sin: Tensor
    theta: Tensor

    @property
    def products(self) -> Tensor:
        """Return |x_i| |y_j|."""
        return self.norm_x[..., :, None] * self.norm_y[..., None, :]


def unit(x: Float[Tensor, "*batch n d"]) -> tuple[Tensor, Tensor]:
    """Return norms (..., n) and unit vectors; the zero vector stays zero."""
    norm = x.norm(dim=-1)
    return norm, x / torch.where(norm > 0, norm, 1.0)[..., None]


def pairs(x: Float[Tensor, "*a n d"], y: Float[Tensor, "*b m d"]) -> Pairs:
    """Return the geometry of all pairs of rows of x and y.

    θ = atan2(√((1-c)(1+c)), c) where |c| < 0.99, else 2 atan2(|x̂-ŷ|, |x̂+ŷ|): the
    error is about 1e-16 absolute up to θ = 0 and π. Cost O(n m d).
    """
    norm_x, unit_x = unit(x)
    norm_y, unit_y = unit(y)
    cos = (unit_x @ unit_y.mT).clamp(-1.0, 1.0)
    sin = ((1 - cos) * (1 + cos)).sqrt()
    theta = torch.atan2(sin, cos)
    near = (cos.abs() >= _SAFE_COSINE).nonzero(as_tuple=True)
    if len(near[0]):
        batch, (i, j) = near[:-2], near[-2:]
        shape = cos.shape[:-2]
        a = unit_x.expand(*shape, *unit_x.shape[-2:])[(*batch, i)]
        b = unit_y.expand(*shape, *unit_y.shape[-2:])[(*batch, j)]
        difference, total = (a - b).norm(dim=-1), (a + b).norm(dim=-1)
        theta, sin = theta.clone(), sin.clone()
        theta[near] = 2 * torch.atan2(difference, total)
        sin[near] = difference * total / 2
    return Pairs(norm_x, norm_y, unit_x, unit_y, cos, sin, theta)


def overlap_angles(
    a: Float[Tensor, "*batch n"],
    b: Float[Tensor, "*batch m"],
    q: Float[Tensor, "*batch n m"],
) -> tuple[Tensor, Tensor]:
    """Return (s, θ) from squared norms a, b and overlaps q, with s = |x||y| sin θ.

    s = √max(ab - q², 0), θ = atan2(s, q). Near collinearity half of the digits are
    lost (θ is off by up to 1e-8): vectors know more than their overlaps. Both come
    from the same s, so that derivatives stay consistent.
    """
    s = (a[..., :, None] * b[..., None, :] - q * q).clamp_min(0.0).sqrt()
    return s, torch.atan2(s, q)


def kink(theta: Tensor) -> Tensor:
    """Return χ(θ) = sin θ - θ cos θ, to full relative precision.

    Series θ³/3 - θ⁵/30 + θ⁷/840 - ... below 0.7.
    """
    square = theta * theta
    series = torch.zeros_like(theta)
    for k in range(9, 0, -1):
        series = series * square + (-1) ** (k + 1) * 2 * k / math.factorial(2 * k + 1)
    direct = theta.sin() - theta * theta.cos()
    return torch.where(theta < _SERIES_BELOW, series * square * theta, direct)
