"""Bases: a tensor (dim, k), or any linear map with `.shape`, `@` and `.T @`.

Block, Kronecker, sparse and Fastfood bases of millions of rows need no dense matrix;
whatever takes a basis uses the functions here and nothing else of it.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from thalweg.errors import StructureError
from thalweg.landscapes.inner_products import against_columns


@runtime_checkable
class LinearMap(Protocol):
    """What a basis must offer; a tensor of two axes does."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(dim, k)."""

    @property
    def T(self) -> "LinearMap":
        """The transposed map, with `@`."""

    def __matmul__(self, c: Tensor) -> Tensor: ...


class _Like(Protocol):
    dtype: torch.dtype
    device: torch.device


def check_basis(basis: LinearMap, dim: int) -> None:
    """Raise unless `basis` maps into a space of `dim` dimensions."""
    if len(basis.shape) != 2 or basis.shape[0] != dim:
        raise StructureError(
            f"a basis of shape {tuple(basis.shape)} does not fit a landscape of "
            f"dimension {dim}; expected ({dim}, k)"
        )


def column(basis: LinearMap, j: int, like: _Like) -> Tensor:
    """Return column j as a vector."""
    if isinstance(basis, Tensor):
        return basis[:, j].to(dtype=like.dtype, device=like.device)
    unit = torch.zeros(basis.shape[1], dtype=like.dtype, device=like.device)
    unit[j] = 1
    return basis @ unit


def combine(basis: LinearMap, coordinates: Tensor) -> Tensor:
    """Return basis @ c for coordinates (..., k), with shape (..., dim)."""
    if isinstance(basis, Tensor):
        return coordinates @ basis.T
    flat = coordinates.reshape(-1, coordinates.shape[-1])
    rows = torch.stack([basis @ c for c in flat.unbind(0)])
    return rows.reshape(*coordinates.shape[:-1], basis.shape[0])


def pull_back(basis: LinearMap, vectors: Tensor) -> Tensor:
    """Return basisᵀ v for vectors (..., dim), with shape (..., k)."""
    if isinstance(basis, Tensor):
        return against_columns(vectors, basis)
    transposed = basis.T
    flat = vectors.reshape(-1, vectors.shape[-1])
    rows = torch.stack([transposed @ v for v in flat.unbind(0)])
    return rows.reshape(*vectors.shape[:-1], basis.shape[1])
