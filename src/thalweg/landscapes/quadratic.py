"""The quadratic landscape: every figure of it is known in closed form."""

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError, StructureError
from thalweg.landscapes.base import Landscape
from thalweg.landscapes.layout import Layout
from thalweg.landscapes.operators import LinearOperator, MatrixOperator
from thalweg.provenance import fingerprint


class Quadratic(Landscape):
    """L(x) = ½ (x - c)ᵀ A (x - c) + offset.

    Args:
        matrix: A, symmetric, of shape (dim, dim).
        center: c, zero by default.
        offset: The loss at the center.
        origin: The point it stands at; the center by default.
        layout: How a point is read.

    Raises:
        StructureError: A is not square or sizes differ.
        InputError: A is not symmetric or not finite.

    Examples:
        >>> land = Quadratic(torch.diag(torch.tensor([3.0, -1.0])))
        >>> float(land.loss(torch.tensor([1.0, 1.0])))
        1.0
    """

    def __init__(
        self,
        matrix: Float[Tensor, "dim dim"],
        center: Float[Tensor, " dim"] | None = None,
        *,
        offset: float = 0.0,
        origin: Float[Tensor, " dim"] | None = None,
        layout: Layout | None = None,
    ) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise StructureError(f"matrix must be square, got {tuple(matrix.shape)}")
        if not bool(torch.isfinite(matrix).all()):
            raise InputError("matrix must be finite")
        gap = float((matrix - matrix.T).abs().max()) if matrix.numel() else 0.0
        if gap > 1e-10 * max(1.0, float(matrix.abs().max())):
            raise InputError(f"matrix must be symmetric, it differs by {gap:.1e}")
        dim = matrix.shape[0]
        center = matrix.new_zeros(dim) if center is None else center
        if center.shape != (dim,):
            raise StructureError(f"center must have shape ({dim},)")
        super().__init__(
            dim, origin=center if origin is None else origin, layout=layout
        )
        self.matrix, self.center, self.offset = matrix, center, offset

    def loss(self, points: Tensor) -> Tensor:
        """Return ½ (x - c)ᵀ A (x - c) + offset."""
        shifted = points - self.center
        return ((shifted @ self.matrix) * shifted).sum(-1) / 2 + self.offset

    def value_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and A (x - c)."""
        shifted = points - self.center
        gradients = shifted @ self.matrix
        return (gradients * shifted).sum(-1) / 2 + self.offset, gradients

    def hessian(self, point: Tensor) -> LinearOperator:
        """Return A."""
        return MatrixOperator(self.matrix, layout=self.layout)

    def describe(self) -> dict[str, object]:
        """Return class, dimension and a fingerprint of A, c and the offset."""
        own = fingerprint(self.matrix, self.center, self.offset)
        return super().describe() | {"fingerprint": own}
