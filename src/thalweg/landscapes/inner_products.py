"""Inner products of long vectors, summed in float64 over pieces of the axis.

A float32 sum over 10 million entries, as BLAS does it, is off by several 1e-4 (measured
on CPU), and so is every vector normalized with it; pieces of 65,536 keep 1e-6.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

_PIECE = 1 << 16


def gram(a: Float[Tensor, "m dim"], b: Float[Tensor, "n dim"]) -> Float[Tensor, "m n"]:
    """Return the inner products of the rows of a with those of b, in float64."""
    if _short(a):
        return (a @ b.T).double()
    total = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    for part in _pieces(a.shape[1]):
        total += a[:, part] @ b[:, part].T
    return total


def coefficients(
    rows: Float[Tensor, "m dim"], v: Float[Tensor, " dim"]
) -> Float[Tensor, " m"]:
    """Return the inner products of the rows with v, in float64."""
    if _short(rows):
        return (rows @ v).double()
    total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for part in _pieces(len(v)):
        total += rows[:, part] @ v[part]
    return total


def inner(a: Float[Tensor, " dim"], b: Float[Tensor, " dim"]) -> float:
    """Return a.b, every term in float64."""
    return sum(float(a[part].double() @ b[part].double()) for part in _pieces(len(a)))


def norm(v: Float[Tensor, " dim"]) -> float:
    """Return |v|."""
    if _short(v):
        return float(v.norm())
    return math.sqrt(sum(float(v[part].norm()) ** 2 for part in _pieces(len(v))))


def against_columns(
    vectors: Float[Tensor, "*batch dim"], basis: Float[Tensor, "dim k"]
) -> Float[Tensor, "*batch k"]:
    """Return basisᵀ v for vectors (..., dim), in their dtype.

    The columns of a basis are strided: BLAS then adds float32 entries one by one, and
    over 10 million of them was off by 2 %.
    """
    if vectors.dtype == torch.float64:
        return vectors @ basis.to(vectors)
    parts = [
        vectors[..., part].double() @ basis[part].to(vectors.device, torch.float64)
        for part in _pieces(basis.shape[0])
    ]
    return torch.stack(parts).sum(0).to(vectors.dtype)


def _short(x: Tensor) -> bool:
    return x.dtype == torch.float64 or x.shape[-1] <= _PIECE


def _pieces(length: int) -> Iterator[slice]:
    return (slice(i, i + _PIECE) for i in range(0, length, _PIECE))
