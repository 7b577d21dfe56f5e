"""The surroundings of one point, in the scale in which a measure counts distance."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError
from thalweg.instruments.normalization import group_norms, grouped
from thalweg.landscapes import Landscape, LinearOperator

Adaptive = Literal["elementwise", "magnitude", "filter", "layer"]
ROWS = 16  # points evaluated in one call, fewer where they take more than this
ROWS_BYTES = 64 * 2**20


class Neighborhood(Landscape):
    """u -> L(θ + T u) with a positive diagonal T, standing at 0; counts what it costs.

    `evaluations` counts passes and products, `undefined` the losses that were NaN.

    Args:
        land: L.
        point: θ.
        scale: Diagonal of T, or None for the identity.
    """

    def __init__(self, land: Landscape, point: Tensor, scale: Tensor | None) -> None:
        super().__init__(land.dim, origin=torch.zeros_like(point), layout=land.layout)
        self.land, self.base, self.scale = land, point, scale
        self.evaluations = self.undefined = 0

    @property
    def rows(self) -> int:
        """How many points go into one call."""
        fits = ROWS_BYTES // (self.dim * self.base.element_size())
        return max(1, min(ROWS, fits))

    def embed(self, points: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return θ + T u."""
        return self.base + (points if self.scale is None else points * self.scale)

    def loss(self, points: Tensor) -> Tensor:
        """Return the loss at θ + T u."""
        self.evaluations += points[..., 0].numel()
        values = self.land.loss(self.embed(points))
        self.undefined += int(values.isnan().sum())
        return values

    def value_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and T times the gradient."""
        self.evaluations += points[..., 0].numel()
        values, gradients = self.land.value_and_gradient(self.embed(points))
        self.undefined += int(values.isnan().sum())
        return values, gradients if self.scale is None else gradients * self.scale

    def hessian(self, point: Tensor) -> LinearOperator:
        """Return T H T."""
        H = self.land.hessian(self.embed(point))
        return H if self.scale is None else Congruent(H, self.scale)

    @contextmanager
    def curvature(self, point: Tensor) -> Iterator[LinearOperator]:
        """Give the Hessian at a point and count its products as evaluations."""
        with self.hessian(point) as H:
            yield H
            self.evaluations += H.products

    def losses(self, points: Float[Tensor, "n dim"]) -> Float[Tensor, " n"]:
        """Return the losses in float64, a few points at a time, without gradient."""
        with torch.no_grad():
            parts = [self.loss(part) for part in points.split(self.rows)]
        return torch.cat(parts).double().cpu()

    def draws(self, n: int, seed: int) -> Iterator[Float[Tensor, "rows dim"]]:
        """Yield n vectors of independent N(0, 1) entries, a few rows at a time.

        Vector i depends on (seed, i) alone.
        """
        from thalweg.seeding import normal

        for start in range(0, n, self.rows):
            yield torch.stack(
                [
                    normal((self.dim,), seed, "sharpness", i, like=self.base)
                    for i in range(start, min(start + self.rows, n))
                ]
            )


class Congruent(LinearOperator):
    """T A T for a diagonal T."""

    def __init__(self, operator: LinearOperator, scale: Tensor) -> None:
        super().__init__(
            operator.dim,
            dtype=operator.dtype,
            device=operator.device,
            layout=operator.layout,
        )
        self.operator = operator
        self.scale = scale.to(dtype=operator.dtype, device=operator.device)

    def _product(self, v: Tensor) -> Tensor:
        return self.scale * (self.operator @ (self.scale * v))

    def _products(self, V: Tensor) -> Tensor:
        return self.scale[:, None] * (self.operator @ (self.scale[:, None] * V))

    def close(self) -> None:
        """Close A."""
        self.operator.close()


def adaptive_scale(
    land: Landscape, point: Tensor, adaptive: str | None, eta: float
) -> Float[Tensor, " dim"] | None:
    """Return the diagonal of T: |θ| + η entrywise, or norms of groups of entries.

    Raises:
        InputError: `adaptive` is unknown, η is negative, or T vanishes everywhere.
    """
    if not eta >= 0:
        raise InputError(f"eta must be at least 0, got {eta}")
    if adaptive is None:
        return None
    if adaptive not in get_args(Adaptive):
        raise InputError(
            f"adaptive must be a bool or one of {get_args(Adaptive)}, got {adaptive!r}"
        )
    if adaptive == "elementwise":
        scale = point.abs() + eta
    elif adaptive == "magnitude":
        scale = (point.square() + eta**2).sqrt()
    else:
        blocks = land.layout.split(point)
        parts = [
            norms.expand(grouped(blocks[block.name], block, 0).shape).reshape(-1)
            for block, norms in group_norms(point, land.layout, adaptive)
        ]
        scale = torch.cat(parts).to(point.dtype) + eta
    if not bool((scale > 0).any()):
        raise InputError(
            "the weights are all zero: adaptive distances need eta > 0 there"
        )
    return scale


def gaussian_radius(dim: int, sigma: float) -> float:
    """Return E|ξ| for ξ ~ N(0, σ² I) in `dim` dimensions."""
    ratio = math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2)
    return sigma * math.sqrt(2) * math.exp(ratio)
