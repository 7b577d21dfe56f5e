"""Eigenpairs at the ends of a symmetric operator's spectrum, with honest residuals."""

import math
import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thalweg.errors import ConvergenceWarning, InputError, PrecisionWarning
from thalweg.instruments.lanczos import Lanczos
from thalweg.instruments.lobpcg import Preconditioner, lobpcg
from thalweg.instruments.sketches import vectors_within
from thalweg.landscapes import LinearOperator
from thalweg.landscapes import norm as length
from thalweg.seeding import normal

Which = Literal["LA", "SA", "LM", "BE"]
ONE_START = (
    "one random start finds one copy of an exactly multiple eigenvalue: more copies, "
    "if there are any, need block="
)
DEFAULT_MEMORY = 1 << 30


@dataclass(frozen=True)
class Eigenpairs:
    """k eigenpairs of a symmetric operator, and how far each can be trusted.

    Args:
        values: Eigenvalues in float64: descending for "LA" and "BE", ascending for
            "SA", by descending modulus for "LM".
        vectors: Unit eigenvectors as columns, in the operator's dtype.
        residuals: |A v - value v|, recomputed with one product each; some eigenvalue
            of A lies within it of the value.
        converged: Whether the residual meets the tolerance.
        products: Products spent, those of the residuals among them.
        note: What a reader should know (restarts, exhausted budget), or "".
    """

    values: Float[Tensor, " k"]
    vectors: Float[Tensor, "dim k"]
    residuals: Float[Tensor, " k"]
    converged: Bool[Tensor, " k"]
    products: int
    note: str = ""


def top_eigenpairs(
    A: LinearOperator,
    k: int = 1,
    *,
    which: Which = "LA",
    tol: float | None = None,
    max_products: int | None = None,
    block: int = 1,
    start: Float[Tensor, "dim *s"] | None = None,
    max_basis: int | None = None,
    memory: int = DEFAULT_MEMORY,
    preconditioner: Preconditioner | None = None,
    seed: int = 0,
) -> Eigenpairs:
    r"""Find k eigenpairs at an end of the spectrum by thick-restart Lanczos.

    The iteration stops once the estimated residuals |C s_i| of all k pairs are within
    tolerance; then |A v - θ v| is recomputed, and `converged` is judged on that: in
    float32 the estimate goes on falling long after the truth has stopped. The target of
    a pair is tol·|θ|, for "SA" and the lower half of "BE" tol·|T| with |T| the largest
    Ritz value in modulus; a value that is zero to working precision is held to that.

    One start vector finds one copy of a multiple eigenvalue, and the note says so;
    `block=b` finds b.

    Args:
        A: Symmetric operator of shape (dim, dim).
        k: Number of pairs, less than dim.
        which: "LA" largest, "SA" smallest (negative curvature), "LM" largest in
            modulus (mixes signs), "BE" both ends (the odd one at the upper).
        tol: Relative residual; 1e-6 in float64, 1e-4 below.
        max_products: Most products to spend, the k of the residuals among them; 1000 or
            20 k, whichever is more, by default.
        block: Number of random start vectors.
        start: Vectors (dim,) or (dim, s) near the wanted ones. Lanczos begins with
            their sum and a random vector of equal length, and makes 1 + ln(dim)
            products at least: with fewer, a larger eigenvalue that they lack would
            still be hidden (Kuczynski, Wozniakowski, "Estimating the largest eigenvalue
            by the power and Lanczos algorithms with a random start", 1992).
        max_basis: Vectors held at most; a thick restart keeps the k + 5 best. By
            default as many as the memory holds, at most 300 or 8 k.
        memory: Bytes that the basis and the vectors returned may take.
        preconditioner: With one (positive numbers (dim,), or a function of columns)
            LOBPCG is used instead, for "LA" and "SA": worth it for many pairs (k > 20)
            whose inverse gaps a preconditioner shrinks. It holds six blocks of k + 5
            vectors, whatever `max_basis` and `memory` say.
        seed: Seed of the start vectors.

    Raises:
        InputError: k >= dim, or an argument out of range.

    Warns:
        ConvergenceWarning: A pair is not within tolerance.
        PrecisionWarning: The dtype cannot reach the tolerance.

    Cost: at least 2k products and k for the residuals; 4 m dim flops a product for the
    orthogonalization against m vectors.

    Examples:
        >>> from thalweg import Quadratic
        >>> land = Quadratic(torch.diag(torch.tensor([4.0, 2.0, 1.0, -1.0])))
        >>> pairs = top_eigenpairs(land.hessian(land.origin), 2)
        >>> [round(value, 4) for value in pairs.values.tolist()]
        [4.0, 2.0]
    """
    tol = (1e-6 if A.dtype == torch.float64 else 1e-4) if tol is None else tol
    limit = max(1000, 20 * k) if max_products is None else max_products
    _check(A, k, which, tol, limit, block)
    before = A.products
    starts = _starts(A, block, start, seed)
    if preconditioner is None:
        starts = _mixed(starts, block)
        rows, limited = _rows(A, k, starts.shape[1], max_basis, memory)
        process = Lanczos(A, starts, rows=rows, seed=seed)
        least = 2 * k if start is None else max(2 * k, 1 + math.ceil(math.log(A.dim)))
        values, S, norm, restarts = _iterate(process, k, which, tol, least, limit - k)
        restarted = f"{restarts} thick restarts with {rows} vectors" if restarts else ""
        single = ONE_START if block == 1 and not process.complete else ""
        note = "; ".join(filter(None, [restarted, limited, single]))
        vectors = process.vectors(S)
        del process  # its basis is the memory
    else:
        note = "LOBPCG"
        values, vectors, norm = lobpcg(
            A,
            k,
            largest=_is_upper(which),
            preconditioner=preconditioner,
            met=lambda v, r, norm: r <= _targets(v, norm, which, tol, A.dtype)[0],
            limit=limit - k,
            starts=starts,
            seed=seed,
        )
    residuals = np.array(
        [
            length(A @ v - value * v)
            for value, v in zip(values.tolist(), vectors.unbind(1), strict=True)
        ]
    )
    targets, reachable = _targets(values, norm, which, tol, A.dtype)
    converged = residuals <= targets
    if not reachable.all():
        warnings.warn(
            f"tol={tol:.1e} is below what {A.dtype} can reach for eigenvalues "
            f"{_some(values[~reachable])} of an operator of norm {norm:.3g}",
            PrecisionWarning,
            stacklevel=2,
        )
    if not converged.all():
        warnings.warn(
            f"{int((~converged).sum())} of {k} eigenpairs are not within tol={tol:.1e} "
            f"after {A.products - before} products (eigenvalues "
            f"{_some(values[~converged])}, residuals {_some(residuals[~converged])}): "
            "raise max_products, or tol",
            ConvergenceWarning,
            stacklevel=2,
        )
    return Eigenpairs(
        values=torch.from_numpy(values),
        vectors=vectors,
        residuals=torch.from_numpy(residuals),
        converged=torch.from_numpy(converged),
        products=A.products - before,
        note=note,
    )


def _check(
    A: LinearOperator, k: int, which: str, tol: float, limit: int, block: int
) -> None:
    if which not in get_args(Which):
        raise InputError(f"which must be one of {get_args(Which)}, got {which!r}")
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    if k >= A.dim:
        raise InputError(
            f"k must be less than the dimension {A.dim}, got {k}; for the whole "
            "spectrum use torch.linalg.eigh(A.dense())"
        )
    if not tol > 0:
        raise InputError(f"tol must be positive, got {tol}")
    if limit < 2 * k:
        raise InputError(
            f"max_products must be at least 2 k = {2 * k} (k to find the pairs, k to "
            f"recompute their residuals), got {limit}"
        )
    if block < 1:
        raise InputError(f"block must be at least 1, got {block}")


def _is_upper(which: Which) -> bool:
    if which not in ("LA", "SA"):
        raise InputError(
            f"a preconditioner goes with which 'LA' or 'SA', got {which!r}"
        )
    return which == "LA"


def _starts(A: LinearOperator, block: int, start: Tensor | None, seed: int) -> Tensor:
    like = torch.empty(0, dtype=A.dtype, device=A.device)
    drawn = [normal((A.dim,), seed, "start", i, like=like) for i in range(block)]
    if start is None:
        return torch.stack(drawn, dim=1)
    given = start[:, None] if start.ndim == 1 else start
    if given.ndim != 2 or given.shape[0] != A.dim:
        raise InputError(
            f"start must have shape ({A.dim},) or ({A.dim}, s), got "
            f"{tuple(start.shape)}"
        )
    if not bool(torch.isfinite(given).all()):
        raise InputError("start must be finite")
    return torch.cat([given.to(like), torch.stack(drawn, dim=1)], dim=1)


def _mixed(starts: Tensor, block: int) -> Tensor:
    """Return `block` columns: the random ones, the others' sum added to the first."""
    given, drawn = starts[:, :-block], starts[:, -block:].clone()
    if given.shape[1] == 0:
        return drawn
    total = (given / torch.linalg.vector_norm(given, dim=0).clamp_min(1e-30)).sum(1)
    length = torch.linalg.vector_norm(total).clamp_min(1e-30)
    drawn[:, 0] += torch.linalg.vector_norm(drawn[:, 0]) / length * total
    return drawn


def _rows(
    A: LinearOperator, k: int, width: int, max_basis: int | None, memory: int
) -> tuple[int, str]:
    """Return how many vectors the basis may hold, and a note where memory says it."""
    least = min(A.dim, k + width + 2)
    if max_basis is not None and max_basis < least:
        raise InputError(
            f"max_basis must be at least k + starts + 2 = {least}, got {max_basis}"
        )
    wanted = max(300, 8 * k, least) if max_basis is None else max_basis
    fits = vectors_within(A, memory) - k  # the vectors returned are beside the basis
    rows = min(wanted, A.dim, max(fits, least))
    if fits >= min(wanted, A.dim):
        return rows, ""
    return rows, f"the basis is limited to {rows} vectors by memory={memory}"


def _iterate(
    process: Lanczos, k: int, which: Which, tol: float, least: int, limit: int
) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Run until the wanted pairs converge, `least` products or more, at most `limit`.

    Returns their values and coordinates, |T| and the number of restarts.
    """
    dtype = process.A.dtype
    spent = restarts = 0
    norm = 0.0
    check = min(least, limit)
    while True:
        process.step()
        spent += 1
        last = spent == limit or process.complete
        if not (spent >= check or last or process.full):
            continue
        values, S, estimates = process.ritz()
        norm = max(norm, float(np.abs(values).max()))
        chosen = _select(values, k, which)
        targets, _ = _targets(values[chosen], norm, which, tol, dtype)
        floor = torch.finfo(dtype).eps * norm
        done = (
            spent >= least and (estimates[chosen] <= np.maximum(targets, floor)).all()
        )
        if done or last:
            return values[chosen], S[:, chosen], norm, restarts
        check = spent + max(1, process.processed // 10)
        if process.full:
            room = process.rows - (process.size - process.processed) - 1
            keep = _select(values, min(k + 5, room, len(values)), which)
            process.restart(values[keep], S[:, keep])
            restarts += 1


def _select(values: np.ndarray, k: int, which: Which) -> np.ndarray:
    """Return the positions of the k wanted of ascending values, in result order."""
    n = len(values)
    if which == "LM":
        return np.argsort(-np.abs(values), kind="stable")[:k]
    ascending = np.arange(n)
    if which == "SA":
        return ascending[:k]
    if which == "LA" or k >= n:
        return ascending[::-1][:k]
    low = k // 2
    return np.concatenate([ascending[::-1][: k - low], ascending[:low][::-1]])


def _targets(
    values: np.ndarray, norm: float, which: Which, tol: float, dtype: torch.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Return the residual that each pair must meet, and whether the dtype can."""
    eps = torch.finfo(dtype).eps
    size = np.abs(values)
    zero = size <= 32 * eps * norm
    if which == "SA":
        size = np.full_like(size, norm)
    elif which == "BE":
        size = np.where(np.arange(len(size)) >= len(size) - len(size) // 2, norm, size)
    targets = tol * np.maximum(size, 1e-12 * norm)
    reachable = (targets >= 4 * eps * norm) | zero
    return np.where(zero, np.maximum(targets, 32 * eps * norm), targets), reachable


def _some(values: np.ndarray) -> str:
    shown = ", ".join(f"{value:.3g}" for value in values[:5])
    return f"[{shown}, …]" if len(values) > 5 else f"[{shown}]"
