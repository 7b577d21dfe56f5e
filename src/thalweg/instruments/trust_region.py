"""Maxima of a quadratic model in a ball, in a Krylov space of its Hessian."""

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.instruments.lanczos import Lanczos
from thalweg.landscapes import LinearOperator, norm, pull_back
from thalweg.seeding import normal

KRYLOV = 40  # most products


def quadratic_maximizers(
    A: LinearOperator, b: Float[Tensor, " dim"], radius: float, seed: int = 0
) -> Float[Tensor, "3 dim"]:
    """Maximize ½ δᵀAδ + bᵀδ over |δ| <= radius, and along the top eigenvector.

    Solves (μ I - A) δ = b, |δ| = radius, μ >= max(λ_max, 0) (δ inside of the ball
    where A is negative definite and its maximum lies there) in the Krylov space of b
    and one random vector: exact where that space is everything or invariant, else an
    admissible point. Cost: at most `KRYLOV` products.

    Returns:
        The maximizer, and the top Ritz vector with both signs at length `radius`.

    Source: Gould, Lucidi, Roma, Toint, "Solving the trust-region subproblem using the
    Lanczos method", 1999.
    """
    b = b.to(dtype=A.dtype, device=A.device)
    drawn = normal((A.dim,), seed, "trust region", like=b)
    starts = torch.stack([b, drawn], dim=1) if bool(b.any()) else drawn[:, None]
    process = Lanczos(A, starts, rows=min(A.dim, KRYLOV), seed=seed)
    while process.processed < process.rows:
        process.step()
    values, S, _ = process.ritz()
    vectors = process.vectors(S)
    slopes = pull_back(vectors, b).double().cpu()
    spectrum = torch.from_numpy(values)
    best = vectors @ solve_diagonal(spectrum, slopes, radius).to(vectors)
    top = radius * vectors[:, -1] / norm(vectors[:, -1])
    return torch.stack([best, top, -top])


def solve_diagonal(
    values: Float[Tensor, " k"], slopes: Float[Tensor, " k"], radius: float
) -> Float[Tensor, " k"]:
    """Maximize Σ ½ λ_i y_i² + c_i y_i over |y| <= radius, with λ ascending."""
    top = float(values[-1])
    if top < 0:
        inside = -slopes / values
        if float(inside.norm()) <= radius:
            return inside
    below = top - values  # μ - λ_i = τ + below_i with τ = μ - λ_max
    low, high = max(0.0, -top), max(0.0, -top) + float(slopes.norm()) / radius
    for _ in range(200):
        middle = (low + high) / 2
        if float(_step(slopes, middle + below).norm()) > radius:
            low = middle
        else:
            high = middle
    y = _step(slopes, high + below)
    # What is missing lies along the top eigenvector (the hard case).
    missing = max(0.0, radius**2 - float(y.square().sum()) + float(y[-1]) ** 2)
    y[-1] = missing**0.5 * (1.0 if float(slopes[-1]) >= 0 else -1.0)
    return y


def _step(slopes: Tensor, gaps: Tensor) -> Tensor:
    return torch.where(gaps > 0, slopes / gaps, torch.zeros_like(slopes))
