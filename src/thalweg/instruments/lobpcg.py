"""Many eigenpairs at one end of the spectrum with a preconditioner: LOBPCG."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.instruments.sketches import multiply
from thalweg.landscapes import LinearOperator, gram
from thalweg.landscapes import norm as length
from thalweg.seeding import normal

Preconditioner = Tensor | Callable[[Tensor], Tensor]
_GUARDS = 5  # further vectors, which set the rate of the last wanted one


def lobpcg(
    A: LinearOperator,
    k: int,
    *,
    largest: bool,
    preconditioner: Preconditioner,
    met: Callable[[np.ndarray, np.ndarray, float], np.ndarray],
    limit: int,
    starts: Float[Tensor, "dim s"],
    seed: int,
) -> tuple[np.ndarray, Float[Tensor, "dim k"], float]:
    """Run the locally optimal block preconditioned conjugate gradient method.

    Rayleigh-Ritz on the span of [X, P, W], X the Ritz vectors, W their preconditioned
    residuals and P the last directions. The basis is kept orthonormal (P by coordinates
    and W by block Gram-Schmidt, done twice), so that no Gram matrix need be inverted.
    Vectors that have converged stay in X but get no new direction (soft locking).

    Args:
        A: Symmetric operator.
        k: Number of pairs; k + 5 vectors are iterated.
        largest: The upper end of the spectrum, else the lower.
        preconditioner: Positive diagonal (dim,), or a function of columns (dim, b): an
            approximation of (A - λ I)⁻¹ for λ at the wanted end, up to sign and scale.
        met: (values, residuals, |T|) -> which are within tolerance.
        limit: Most products to spend.
        starts: Vectors near the wanted ones.
        seed: Seed of the random ones that complete the block.

    Returns:
        Values in the order wanted, vectors, and the largest Ritz value in modulus.

    Sources: Knyazev, "Toward the optimal preconditioned eigensolver: locally optimal
    block preconditioned conjugate gradient method", 2001; Duersch, Shao, Yang, Gu, "A
    robust and efficient implementation of LOBPCG", 2018.
    """
    width = min(k + _GUARDS, A.dim, limit)
    drawn = [
        normal((A.dim,), seed, "lobpcg", i, like=starts)
        for i in range(width - min(starts.shape[1], width))
    ]
    S = orthonormal(torch.cat([starts.T[:width], *(d[None] for d in drawn)]))
    spent = len(S)
    AS = multiply(A, S)
    keep = np.arange(0)
    norm = 0.0
    while True:
        T = gram(S, AS).cpu().numpy()
        values, Y = np.linalg.eigh((T + T.T) / 2)
        norm = max(norm, float(np.abs(values).max()))
        order = np.argsort(-values if largest else values, kind="stable")[:width]
        values, Y = values[order], Y[:, order]
        X, AX = _rotate(Y, S), _rotate(Y, AS)
        R = AX - torch.from_numpy(values).to(X)[:, None] * X
        residuals = np.array([length(r) for r in R])
        done = met(values, residuals, norm)
        active = np.flatnonzero(~done)[: limit - spent]
        if done[:k].all() or len(active) == 0:
            return values[:k], X[:k].T, norm
        Z = Y[:, active].copy()
        Z[keep] = 0  # what the last step added to X
        for _ in range(2):
            Z -= Y @ (Y.T @ Z)
        Z, D, _ = np.linalg.svd(Z, full_matrices=False)
        Z = Z[:, D > 1e-8] if len(keep) else Z[:, :0]
        Q, AQ = torch.cat([X, _rotate(Z, S)]), torch.cat([AX, _rotate(Z, AS)])
        W = orthonormal(_precondition(preconditioner, R[active]), Q)
        if len(W) == 0:
            return values[:k], X[:k].T, norm
        spent += len(W)
        S, AS = torch.cat([Q, W]), torch.cat([AQ, multiply(A, W)])
        keep = np.arange(width)


def orthonormal(
    rows: Float[Tensor, "b dim"], against: Float[Tensor, "a dim"] | None = None
) -> Float[Tensor, "c dim"]:
    """Return an orthonormal basis of the rows less their part in `against`.

    Directions that are dependent to rounding are dropped.
    """
    tiny = torch.finfo(rows.dtype).tiny
    rows = torch.stack([row / max(length(row), tiny) for row in rows])
    for _ in range(2):
        if against is not None:
            rows = rows - gram(rows, against).to(rows) @ against
        Q, D, _ = torch.linalg.svd(rows.T, full_matrices=False)
        rows = Q.T[D > 100 * torch.finfo(rows.dtype).eps]
    return rows.contiguous()


def _rotate(Y: np.ndarray, rows: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(Y.T)).to(rows) @ rows


def _precondition(preconditioner: Preconditioner, rows: Tensor) -> Tensor:
    if isinstance(preconditioner, Tensor):
        return rows * preconditioner.to(rows)
    return preconditioner(rows.T).T
