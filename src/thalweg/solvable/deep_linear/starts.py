"""Where SGD on the matrices starts: Gaussian weights, and balanced ones."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import InputError
from thalweg.seeding import normal
from thalweg.solvable.deep_linear.checks import at_least_one, positive

_LIKE = torch.empty(0, dtype=torch.float64)


def gaussian_stds(
    widths: tuple[int, ...],
    std: float | Sequence[float] | None,
    gamma: float | None,
) -> np.ndarray:
    """Return the standard deviation of every layer.

    Raises:
        InputError: Not exactly one of std and gamma, another number of standard
            deviations than layers, or one that is not positive.
    """
    L = len(widths) - 1
    if (std is None) == (gamma is None):
        raise InputError("give exactly one of std and gamma")
    if gamma is not None:
        width = max(widths[1:-1]) if L > 1 else widths[0]
        return np.full(L, float(width) ** (-gamma / 2))
    stds = np.atleast_1d(positive("std", std if std is not None else 0.0))
    if stds.shape not in ((1,), (L,)):
        raise InputError(
            f"std must be a number or one of each of the {L} layers, got shape "
            f"{stds.shape}"
        )
    return np.broadcast_to(stds, (L,))


def gaussian(
    widths: tuple[int, ...], stds: np.ndarray, seed: int, n: int
) -> list[Tensor]:
    """Return W_l (n, d_l, d_{l-1}) of independent Gaussian entries."""
    shapes = zip(widths[1:], widths[:-1], stds, strict=True)
    return [
        std * _normals((rows, columns), n, seed, layer)
        for layer, (rows, columns, std) in enumerate(shapes)
    ]


def balanced(widths: tuple[int, ...], scale: float, seed: int, n: int) -> list[Tensor]:
    """Return W_l = R_l D R_{l-1}ᵀ with random orthonormal R_l and one random D."""
    k = min(widths)
    D = scale * _normals((1, k), n, seed, "values").abs()
    frames = [
        torch.linalg.qr(_normals((d, k), n, seed, side)).Q
        for side, d in enumerate(widths)
    ]
    return [
        (upper * D) @ lower.mT
        for lower, upper in zip(frames[:-1], frames[1:], strict=True)
    ]


def _normals(shape: tuple[int, int], n: int, seed: int, part: int | str) -> Tensor:
    at_least_one("n", n)
    draws = [normal(shape, seed, "start", i, part, like=_LIKE) for i in range(n)]
    return torch.stack(draws)
