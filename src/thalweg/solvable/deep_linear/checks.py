"""What the room accepts: depths, rates, strengths, teachers and weights."""

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import InputError

Reals: TypeAlias = float | int | np.ndarray | Tensor | Sequence[float]


def array(name: str, value: Reals) -> np.ndarray:
    """Return `value` as a float64 array.

    Raises:
        InputError: An entry is not finite.
    """
    result = np.asarray(
        value.detach().cpu() if isinstance(value, Tensor) else value, dtype=np.float64
    )
    if not np.isfinite(result).all():
        bad = result[~np.isfinite(result)].flat[0]
        raise InputError(f"{name} must be finite, got {bad}")
    return result


def positive(name: str, value: Reals) -> np.ndarray:
    """Return `value` in float64.

    Raises:
        InputError: An entry is not positive and finite.
    """
    result = array(name, value)
    if not (result > 0).all():
        bad = result[~(result > 0)].flat[0]
        raise InputError(f"{name} must be positive, got {bad}")
    return result


def nonnegative(name: str, value: Reals) -> np.ndarray:
    """Return `value` in float64.

    Raises:
        InputError: An entry is negative or not finite.
    """
    result = array(name, value)
    if not (result >= 0).all():
        bad = result[~(result >= 0)].flat[0]
        raise InputError(f"{name} must be non-negative, got {bad}")
    return result


def depth(L: int) -> int:
    """Return the depth.

    Raises:
        InputError: It is no integer of at least 1.
    """
    return at_least_one("L", L)


def batch_size(B: int) -> int:
    """Return the batch size.

    Raises:
        InputError: It is no integer of at least 1.
    """
    return at_least_one("B", B)


def at_least_one(name: str, value: float) -> int:
    """Return a count.

    Raises:
        InputError: It is no integer of at least 1.
    """
    if isinstance(value, bool) or not 1 <= value < math.inf or int(value) != value:
        raise InputError(f"{name} must be an integer of at least 1, got {value!r}")
    return int(value)


def descending(name: str, value: Reals) -> np.ndarray:
    """Return positive strengths (r,) in descending order.

    Raises:
        InputError: They are not one axis, not positive or not sorted.
    """
    result = positive(name, value)
    if result.ndim != 1 or (np.diff(result) > 0).any():
        raise InputError(
            f"{name} must be one axis of strengths in descending order, got "
            f"{result.tolist()}"
        )
    return result


def widths_of(widths: Sequence[float]) -> tuple[int, ...]:
    """Return the widths (d_0, ..., d_L).

    Raises:
        InputError: There are fewer than two, or one is no integer of at least 1.
    """
    if len(widths) < 2 or any(width != int(width) or width < 1 for width in widths):
        raise InputError(
            "widths must be (d_0, ..., d_L) with L >= 1 and every width an integer of "
            f"at least 1, got {tuple(widths)}"
        )
    return tuple(int(width) for width in widths)


def as_matrix(name: str, value: Tensor | np.ndarray) -> Tensor:
    """Return a matrix of real finite entries in float64.

    Raises:
        InputError: It has another number of axes or an entry is not finite.
    """
    matrix = torch.as_tensor(value)
    if matrix.ndim != 2 or matrix.is_complex():
        raise InputError(
            f"{name} must be a real matrix, got shape {tuple(matrix.shape)} "
            f"of {matrix.dtype}"
        )
    matrix = matrix.double()
    if not bool(torch.isfinite(matrix).all()):
        raise InputError(f"{name} must be finite")
    return matrix
