"""Exact dimension reduction: what a student in R^d is in the span of the teacher.

The loss sees the part of W inside span(V) and the Gram matrix of the rest; the
Hessian in any dimension is H_E on E = span(V, W) and copies of S outside.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg.errors import InputError
from thalweg.solvable.two_layer_relu.derivatives import Curvature

RANK_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Reduction:
    """A student read in an orthonormal basis of span(V).

    Attributes:
        coefficients: C = W basis, (..., K, r).
        gram: G = W_⊥ W_⊥ᵀ, (..., K, K).
        basis: Orthonormal columns, (d, r).
    """

    coefficients: Tensor
    gram: Tensor
    basis: Tensor

    @property
    def rank(self) -> int:
        """Return r = rank V."""
        return self.basis.shape[1]


@dataclass(frozen=True)
class Spectrum:
    """The spectrum of the Hessian in dimension d, from two small matrices.

    Attributes:
        inside: Eigenvalues of H_E, ascending, (K r',), r' = dim span(V, W).
        outside: Eigenvalues of S, ascending, (K,), each `multiplicity` times.
        multiplicity: d - r'.
        coordinates: W in a basis of E, (K, r'), and `teacher` V in it, (M, r').
    """

    inside: Tensor
    outside: Tensor
    multiplicity: int
    coordinates: Tensor
    teacher: Tensor

    @property
    def values(self) -> Tensor:
        """Return all K d eigenvalues, ascending."""
        parts = [self.inside, self.outside.repeat(self.multiplicity)]
        return torch.cat(parts).sort().values

    @property
    def smallest(self) -> float:
        """Return the smallest eigenvalue."""
        inside = float(self.inside[0])
        return min(inside, float(self.outside[0])) if self.multiplicity else inside

    @property
    def largest(self) -> float:
        """Return the largest eigenvalue."""
        inside = float(self.inside[-1])
        return max(inside, float(self.outside[-1])) if self.multiplicity else inside


def span(rows: Tensor) -> Tensor:
    """Return an orthonormal basis (d, r) of the span of rows (n, d).

    r counts the singular values above 1e-12 of the largest.
    """
    _, values, right = torch.linalg.svd(rows, full_matrices=False)
    rank = int((values > RANK_TOLERANCE * values[0]).sum())
    return right[:rank].mT.contiguous()


def reduce(W: Tensor, V: Tensor) -> Reduction:
    """Return the coefficients of W in span(V) and the Gram matrix of the rest."""
    basis = span(V)
    coefficients = W @ basis
    rest = W - coefficients @ basis.mT
    return Reduction(coefficients, rest @ rest.mT, basis)


def lift(coefficients: Tensor, gram: Tensor, basis: Tensor, d: int) -> Tensor:
    """Return some W (K, d) with the given coefficients and Gram matrix outside.

    Args:
        coefficients: C, (K, r), in the columns of `basis`.
        gram: G, (K, K), positive semi-definite.
        basis: Orthonormal, (d0, r) with d0 <= d; further axes are zero on it.
        d: Input dimension of W.

    Raises:
        InputError: G has an eigenvalue below -1e-8 of its trace, or
            d < rank V + rank G.
    """
    d0, r = basis.shape
    values, vectors = torch.linalg.eigh((gram + gram.mT) / 2)
    if float(values[0]) < -1e-8 * float(values.sum().abs()):
        raise InputError(
            "gram must be positive semi-definite, its smallest eigenvalue is "
            f"{float(values[0]):.1e}"
        )
    floor = RANK_TOLERANCE * float(values[-1])
    keep = values > max(floor, 0.0)
    factor = vectors[:, keep] * values[keep].sqrt()
    if d < r + factor.shape[1] or d < d0:
        needed = max(r + factor.shape[1], d0)
        raise InputError(
            f"d must be at least rank V + rank G = {r} + {factor.shape[1]} and the "
            f"teacher's dimension {d0}, together {needed}, got {d}"
        )
    padded = basis.new_zeros(d, r)
    padded[:d0] = basis
    full, _ = torch.linalg.qr(padded, mode="complete")
    outside = full[:, r : r + factor.shape[1]]
    return coefficients @ padded.mT + factor @ outside.mT


def spectrum(W: Tensor, V: Tensor, d: int) -> Spectrum:
    """Return the Hessian's spectrum at W (K, d0) in dimension d, never forming it.

    spec(H) = spec(H_E) ∪ spec(S) with multiplicity d - dim E each. Cost O((K r')³).

    Raises:
        InputError: d < dim span(V, W).
    """
    basis = span(torch.cat([V, W]))
    rank = basis.shape[1]
    if d < rank:
        raise InputError(f"d must be at least dim span(V, W) = {rank}, got {d}")
    w, v = W @ basis, V @ basis
    curvature = Curvature(w, v)
    return Spectrum(
        torch.linalg.eigvalsh(curvature.dense()),
        torch.linalg.eigvalsh(curvature.S),
        d - rank,
        w,
        v,
    )
