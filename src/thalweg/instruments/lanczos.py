"""The one Lanczos process: a Krylov basis of a symmetric operator, kept orthogonal.

It makes the basis and the projected matrix; what they are good for (eigenpairs,
spectral densities) is decided by the callers.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError
from thalweg.landscapes import LinearOperator, coefficients, norm
from thalweg.seeding import normal

_COLUMNS = 1 << 16  # columns of the basis that a restart rotates at a time


class Lanczos:
    r"""Lanczos with full reorthogonalization, one product a step.

    Started with one vector it is the three-term process; started with b vectors it is
    Ruhe's band form of block Lanczos, which finds up to b copies of a multiple
    eigenvalue. The first `processed` basis vectors (rows of `basis`) have been
    multiplied, so that with Q those rows and F the others

        A Qᵀ = Qᵀ T + Fᵀ C,        T = QAQᵀ,  C = FAQᵀ.

    Only the lower triangle of `projected` = [[T, ·], [C, ·]] is kept.

    A step orthogonalizes w = A q against the few vectors it is coupled to, then
    against the whole basis, and once more where the norm fell below 0.7 of what it was
    ("twice is enough"). A vanishing remainder narrows the band; once the band is
    empty the subspace is invariant and the process goes on with a random vector
    orthogonal to it.

    Args:
        A: Symmetric operator of shape (dim, dim).
        starts: Start vectors as columns; orthonormalized here, dependent ones dropped.
        rows: Vectors that the basis may hold; `restart` makes room.
        seed: Seed of the vectors drawn on an invariant subspace.
        buffer: Memory of an earlier process to use again, at least (rows, dim).

    Raises:
        InputError: A product is not finite.

    Sources: Paige, "The computation of eigenvalues and eigenvectors of very large
    sparse matrices", 1971; Ruhe, "Implementation aspects of band Lanczos algorithms
    for computation of eigenvalues of large sparse symmetric matrices", 1979; Wu and
    Simon, "Thick-restart Lanczos method for large symmetric eigenvalue problems", 2000.
    """

    def __init__(
        self,
        A: LinearOperator,
        starts: Float[Tensor, "dim s"],
        *,
        rows: int,
        seed: int = 0,
        buffer: Float[Tensor, "capacity dim"] | None = None,
    ) -> None:
        self.A, self.seed = A, seed
        self.rows = min(rows, A.dim)
        self.basis = (
            torch.empty(self.rows, A.dim, dtype=A.dtype, device=A.device)
            if buffer is None
            else buffer
        )
        self.projected = np.zeros((self.rows, self.rows))
        self.size = 0  # vectors in the basis
        self.processed = 0  # of them, already multiplied
        self.scale = 0.0  # largest entry of `projected` so far
        self.invariant = False  # the start vectors' Krylov space is exhausted
        self._first = np.zeros(self.rows, dtype=int)  # first vector each couples to
        self._drawn = 0
        self._eps = torch.finfo(A.dtype).eps
        for start in starts.unbind(1):
            start = start.to(dtype=A.dtype, device=A.device)
            length = norm(start)
            rest, left = self._against(start, 0)[0::2]
            if length > 0 and left > 10 * self._eps * length and self.size < self.rows:
                self._append(rest / left, first=0)
        if self.size == 0:
            self._draw()

    @property
    def full(self) -> bool:
        """Whether a step would need more rows than there are."""
        return self.size == self.rows and self.rows < self.A.dim

    @property
    def complete(self) -> bool:
        """Whether the whole space is spanned and multiplied: T is similar to A."""
        return self.processed == self.A.dim

    def step(self) -> None:
        """Multiply the next basis vector and append what is new in the product."""
        j, n = self.processed, self.size
        w = (self.A @ self.basis[j]).detach()
        w, h, length = self._against(w, int(self._first[j]), j)
        if not np.isfinite(length):
            raise InputError(
                f"product {self.A.products} of the {type(self.A).__name__} is not "
                "finite: there is no spectrum here"
            )
        self.projected[j:n, j] = h
        self.processed = j + 1
        self.scale = max(self.scale, float(np.abs(h).max()))
        if length > self._eps * max(self.scale, length):
            if n < self.rows:
                self.scale = max(self.scale, length)
                self.projected[n, j] = length
                self._append(w.div_(length), first=j)
        elif self.processed == self.size < self.A.dim:
            self.invariant = True
            if n < self.rows:
                self._draw()

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return Ritz values (ascending), their coordinates, estimated residuals."""
        m, n = self.processed, self.size
        values, S = np.linalg.eigh(self.projected[:m, :m], UPLO="L")
        return values, S, np.linalg.norm(self.projected[m:n, :m] @ S, axis=0)

    def rectangle(self) -> np.ndarray:
        """Return [T; C], the multiplied basis' images in the whole basis."""
        m, n = self.processed, self.size
        whole = self.projected[:n, :m].copy()
        whole[:m] = np.tril(whole[:m]) + np.tril(whole[:m], -1).T
        return whole

    def vectors(self, S: np.ndarray) -> Float[Tensor, "dim k"]:
        """Return the vectors with coordinates S (columns) in the multiplied basis."""
        small = torch.from_numpy(np.ascontiguousarray(S.T)).to(self.basis)
        return (small @ self.basis[: self.processed]).T

    def restart(self, values: np.ndarray, S: np.ndarray) -> None:
        """Keep the Ritz vectors with coordinates S and the unmultiplied vectors."""
        m, n, k = self.processed, self.size, S.shape[1]
        rest = n - m
        small = torch.from_numpy(np.ascontiguousarray(S.T)).to(self.basis)
        for start in range(0, self.A.dim, _COLUMNS):
            part = self.basis[:, start : start + _COLUMNS]
            part[:k] = small @ part[:m]
            part[k : k + rest] = part[m:n].clone()
        coupling = self.projected[m:n, :m] @ S
        self.projected[:] = 0
        self.projected[:k, :k] = np.diag(values)
        self.projected[k : k + rest, :k] = coupling
        self._first[:] = 0
        self.processed, self.size = k, k + rest

    def _against(
        self, w: Tensor, first: int, j: int = 0
    ) -> tuple[Tensor, np.ndarray, float]:
        """Orthogonalize w; return it, its coefficients from vector j on, its norm."""
        Q = self.basis[: self.size]
        near = Q[first:]
        h = coefficients(near, w)
        w = torch.addmv(w, near.T, h.to(w), alpha=-1)  # a copy: w may be the caller's
        total = h[j - first :].clone()
        length = norm(w)
        for _ in range(3):
            h = coefficients(Q, w)
            w.addmv_(Q.T, h.to(w), alpha=-1)
            total += h[j:]
            before, length = length, norm(w)
            if not length < 0.7 * before:  # a NaN ends it too
                break
        else:
            length = 0.0  # nothing but rounding was left
        return w, total.cpu().numpy(), length

    def _append(self, q: Tensor, first: int) -> None:
        self.basis[self.size] = q
        self._first[self.size] = first
        self.size += 1

    def _draw(self) -> None:
        """Append a random vector orthogonal to the basis."""
        q = normal((self.A.dim,), self.seed, "lanczos", self._drawn, like=self.basis)
        self._drawn += 1
        q, _, length = self._against(q / norm(q), 0)
        q, _, length = self._against(q / length, 0)
        self._append(q / length, first=self.size)
