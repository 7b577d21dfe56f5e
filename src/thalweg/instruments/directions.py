"""Directions in a landscape: a frozen basis with its provenance."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.landscapes import Layout, LinearMap


@dataclass(frozen=True)
class Directions:
    """k directions (the columns of `basis`) and where they come from.

    Args:
        basis: Tensor (dim, k), or a linear map.
        origin: The point the plane is tied to, or None (random, Hessian and gradient
            directions serve every point).
        layout: How a column is read.
        kind: How they were made: "random", "hessian", "pca", "plane", ...
        seed: Seed of random directions.
        normalize: Scheme of their normalization, or "none".
        labels: One text a column: eigenvalue, explained variance, ...
        anchors: Named points in the plane -> their coordinates (k,).
        buffers: Floating buffers of the checkpoints that span the plane, in the order
            origin, then one entry a column; None where there are none.
        reference: Fingerprint of the point they were scaled or computed at.
    """

    basis: Tensor | LinearMap
    origin: Float[Tensor, " dim"] | None = None
    layout: Layout | None = None
    kind: str = "given"
    seed: int | None = None
    normalize: str = "none"
    labels: tuple[str, ...] = ()
    anchors: dict[str, Tensor] = field(default_factory=dict)
    buffers: tuple[dict[str, Tensor], ...] | None = None
    reference: str | None = None

    @property
    def dim(self) -> int:
        """Dimension of the space."""
        return self.basis.shape[0]

    @property
    def k(self) -> int:
        """Number of directions."""
        return self.basis.shape[1]

    @cached_property
    def gram(self) -> Float[Tensor, "k k"]:
        """Inner products of the directions, in float64."""
        from thalweg.landscapes import column, pull_back

        like = torch.empty(0, dtype=torch.float64)
        columns = [column(self.basis, j, like) for j in range(self.k)]
        if isinstance(self.basis, Tensor):
            dense = self.basis.double()
            return dense.T @ dense
        return torch.stack([pull_back(self.basis, c) for c in columns], dim=1)
