"""What the room accepts: real finite weights, teachers and overlap matrices."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import InputError, StructureError

Array: TypeAlias = Tensor | np.ndarray

ZERO_NEURON = 1e-12


def as_real(name: str, value: Array) -> Tensor:
    """Return `value` as a tensor of its own real dtype.

    Raises:
        InputError: It is complex or integer, or has an entry that is not finite.
    """
    tensor = torch.as_tensor(value)
    if not tensor.is_floating_point():
        raise InputError(f"{name} must have a real floating dtype, got {tensor.dtype}")
    if not bool(torch.isfinite(tensor).all()):
        bad = tensor[~torch.isfinite(tensor)][0].item()
        raise InputError(f"{name} must be finite, got an entry {bad}")
    return tensor


def as_teacher(V: Array) -> Tensor:
    """Return the teacher V (..., M, d) in float64.

    Raises:
        InputError: M < 1, a row is zero, or see `as_real`.
    """
    V = as_real("V", V)
    if V.ndim < 2 or V.shape[-2] < 1 or V.shape[-1] < 1:
        raise InputError(
            f"V must have shape (M, d) with M >= 1 and d >= 1, got {tuple(V.shape)}"
        )
    V = V.double()
    zero = (V.norm(dim=-1) == 0).nonzero()
    if len(zero):
        raise InputError(f"V must have no zero row, row {zero[0, -1].item()} is zero")
    return V


def as_weights(W: Array, V: Tensor) -> Tensor:
    """Return the student W (..., K, d) in float64 and on V's device.

    Raises:
        InputError: K < 1 or see `as_real`.
        StructureError: W and V differ in their last axis.
    """
    W = as_real("W", W)
    if W.ndim < 2 or W.shape[-2] < 1:
        raise InputError(
            f"W must have shape (..., K, d) with K >= 1, got {tuple(W.shape)}"
        )
    if W.shape[-1] != V.shape[-1]:
        raise StructureError(
            f"W and V must have one input dimension, got {W.shape[-1]} and "
            f"{V.shape[-1]}"
        )
    return W.double().to(V.device)


def check_neurons(W: Tensor, V: Tensor) -> None:
    """Refuse a neuron of norm below 1e-12 max|v|: the loss is not smooth there.

    Raises:
        InputError: Names the index of the first such neuron.
    """
    small = zero_neurons(W, V).nonzero()
    if len(small):
        raise InputError(
            f"W has a zero neuron, index {small[0, -1].item()}: gradient and Hessian "
            'do not exist there (drop it with zero_neuron="drop")'
        )


def zero_neurons(W: Tensor, V: Tensor) -> Tensor:
    """Return which neurons (..., K) have a norm below 1e-12 max|v|."""
    floor = ZERO_NEURON * V.norm(dim=-1).amax(-1)
    return W.norm(dim=-1) < floor[..., None]


def as_overlaps(Q: Array, R: Array, P: Array) -> tuple[Tensor, Tensor, Tensor]:
    """Return the overlap matrices (..., K, K), (..., K, M), (..., M, M) in float64.

    Raises:
        StructureError: Shapes do not fit each other.
        InputError: Q or P is not symmetric to 1e-10, or the joint matrix
            [[Q, R], [Rᵀ, P]] has an eigenvalue below -1e-8 of its trace.
    """
    Q, R, P = (as_real(n, x) for n, x in (("Q", Q), ("R", R), ("P", P)))
    if min(Q.ndim, R.ndim, P.ndim) < 2:
        raise StructureError("Q, R and P must be matrices or batches of matrices")
    K, M = R.shape[-2:]
    if K < 1 or M < 1:
        raise InputError(f"R must have K >= 1 rows and M >= 1 columns, got {K} and {M}")
    if Q.shape[-2:] != (K, K) or P.shape[-2:] != (M, M):
        raise StructureError(
            f"R of shape {(K, M)} needs Q {(K, K)} and P {(M, M)}, got "
            f"{tuple(Q.shape[-2:])} and {tuple(P.shape[-2:])}"
        )
    Q, R, P = Q.double(), R.double(), P.double()
    for name, matrix in (("Q", Q), ("P", P)):
        gap = _largest((matrix - matrix.mT).abs())
        if gap > 1e-10:
            raise InputError(f"{name} must be symmetric, it differs by {gap:.1e}")
    sigma = joint(Q, R, P)
    if sigma.numel():
        eigenvalues = torch.linalg.eigvalsh(sigma)
        relative = eigenvalues[..., 0] / eigenvalues.sum(-1).clamp_min(1e-300)
        if float(relative.min()) < -1e-8:
            raise InputError(
                "[[Q, R], [Rᵀ, P]] must be positive semi-definite, its smallest "
                f"eigenvalue is {float(relative.min()):.1e} of its trace"
            )
    return Q, R, P


def joint(Q: Tensor, R: Tensor, P: Tensor) -> Tensor:
    """Return [[Q, R], [Rᵀ, P]] of shape (..., K + M, K + M)."""
    if max(Q.ndim, R.ndim, P.ndim) > 2:
        batch = torch.broadcast_shapes(Q.shape[:-2], R.shape[:-2], P.shape[:-2])
        Q, R, P = (x.expand(*batch, *x.shape[-2:]) for x in (Q, R, P))
    return torch.cat([torch.cat([Q, R], -1), torch.cat([R.mT, P], -1)], -2)


def check_positive(name: str, value: float, accepts: Callable[[float], bool]) -> None:
    """Raise InputError unless `accepts(value)`; the name says what is accepted."""
    if not accepts(value):
        raise InputError(f"{name}, got {value}")


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0
