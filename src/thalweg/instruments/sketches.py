"""Probes, and an orthonormal basis of the range of an operator that grows by blocks."""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError
from thalweg.landscapes import LinearOperator, coefficients, gram, inner, norm
from thalweg.seeding import normal, rademacher


def block_size(A: LinearOperator, memory: int = 1 << 26) -> int:
    """Return how many vectors to multiply at a time: at most 32, within `memory`."""
    return max(1, min(32, vectors_within(A, memory)))


def vectors_within(A: LinearOperator, memory: int) -> int:
    """Return how many of the operator's vectors fit into so many bytes."""
    return memory // (A.dim * torch.empty(0, dtype=A.dtype).element_size())


def sign_probe(A: LinearOperator, seed: int, name: str, index: int) -> Tensor:
    """Return the Rademacher vector that belongs to (seed, name, index)."""
    like = torch.empty(0, dtype=A.dtype, device=A.device)
    return rademacher((A.dim,), seed, name, index, like=like)


def sphere_probe(A: LinearOperator, seed: int, name: str, index: int) -> Tensor:
    """Return a vector uniform on the sphere of radius sqrt(dim)."""
    like = torch.empty(0, dtype=A.dtype, device=A.device)
    g = normal((A.dim,), seed, name, index, like=like)
    return g * (math.sqrt(A.dim) / norm(g))


def multiply(A: LinearOperator, rows: Float[Tensor, "b dim"]) -> Float[Tensor, "b dim"]:
    """Return the products of A with vectors stored as rows.

    Raises:
        InputError: A product is not finite.
    """
    products = (A @ rows.T).T.detach()
    if not bool(torch.isfinite(products).all()):
        raise InputError(f"a product of this {type(A).__name__} is not finite")
    return products


def exact_diagonal(A: LinearOperator) -> Float[Tensor, " dim"]:
    """Return the diagonal in float64 from `dim` products with unit vectors."""
    diagonal = torch.empty(A.dim, dtype=torch.float64, device=A.device)
    block = block_size(A)
    for start in range(0, A.dim, block):
        rows = torch.arange(min(block, A.dim - start), device=A.device)
        units = torch.zeros(len(rows), A.dim, dtype=A.dtype, device=A.device)
        units[rows, start + rows] = 1
        diagonal[start + rows] = multiply(A, units)[rows, start + rows].double()
    return diagonal


class RangeSketch:
    """Q with orthonormal rows that span products of A, and H = Q A Qᵀ.

    Args:
        A: Symmetric operator of shape (dim, dim).
        rows: Most rows that Q may get.
    """

    def __init__(self, A: LinearOperator, rows: int) -> None:
        self.A, self.rows = A, min(rows, A.dim)
        self._buffer = torch.empty(self.rows, A.dim, dtype=A.dtype, device=A.device)
        self.rank = 0
        self.H = np.zeros((0, 0))
        self.exhausted = False  # the range of A is spanned, to rounding
        self._largest = 0.0
        self._drop = max(1e-10, 100 * torch.finfo(A.dtype).eps)

    @property
    def Q(self) -> Float[Tensor, "rank dim"]:
        """The basis so far."""
        return self._buffer[: self.rank]

    @property
    def room(self) -> int:
        """How many more rows Q may get."""
        return self.rows - self.rank

    def extend(
        self, Y: Float[Tensor, "b dim"]
    ) -> tuple[Float[np.ndarray, "rank b"], Float[Tensor, "kept dim"]]:
        """Append the directions of Y; return Q Yᵀ, and A times the new rows of Q.

        Columns from the first on that is dependent to rounding (1e-10, 100 eps in
        float32) add nothing, and the sketch is exhausted. Costs a product a new row.
        Block Gram-Schmidt, done twice: 8 b rank dim flops.
        """
        old = self.Q
        first = gram(Y, old)
        rest, R = _qr(Y - first.to(Y) @ old)
        second = gram(rest, old)
        rest, again = _qr(rest - second.to(Y) @ old)
        first = first + R.T @ second
        triangle = (again @ R).cpu().numpy()
        diagonal = np.abs(np.diag(triangle))
        self._largest = max(self._largest, float(diagonal.max(initial=0.0)))
        small = diagonal <= self._drop * self._largest
        kept = int(small.argmax()) if small.any() else len(diagonal)
        self.exhausted = kept < len(diagonal)
        new = self._buffer[self.rank : self.rank + kept]
        new.copy_(rest[:kept])
        Z = multiply(self.A, new)
        side = gram(old, Z).cpu().numpy()
        corner = gram(new, Z).cpu().numpy()
        corner = (corner + corner.T) / 2
        self.H = np.block([[self.H, side], [side.T, corner]])
        self.rank += kept
        return np.vstack([first.T.cpu().numpy(), triangle[:kept]]), Z

    def remainder(self, z: Float[Tensor, " dim"]) -> float:
        """Return zᵀ (I - QᵀQ) A (I - QᵀQ) z; one product."""
        outside = z - self.Q.T @ coefficients(self.Q, z).to(z)
        return inner(outside, multiply(self.A, outside[None])[0])


def _qr(
    rows: Float[Tensor, "b dim"],
) -> tuple[Float[Tensor, "b dim"], Float[Tensor, "b b"]]:
    """Return Q (rows of unit length to rounding) and R in float64, rows = RᵀQ."""
    Q, R = torch.linalg.qr(rows.T)
    lengths = torch.tensor([norm(q) for q in Q.T], dtype=rows.dtype).to(rows.device)
    return Q.T / lengths[:, None], (lengths[:, None] * R).double()
