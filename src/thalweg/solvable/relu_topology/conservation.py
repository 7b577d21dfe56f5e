"""Conserved quantities of two-layer networks with homogeneous activations."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int8
from torch import Tensor

from thalweg.errors import InputError, StructureError, ThalwegError

Array: TypeAlias = Tensor | np.ndarray


class ComplexWeightsError(ThalwegError, TypeError):
    """The weights are complex; the invariants are those of real networks."""


@dataclass(frozen=True)
class Invariants:
    """The conserved quantity of each hidden neuron.

    Attributes:
        c: ‖w1‖² - kappa ‖w2‖², in float64.
        scale: ‖w1‖² + ‖w2‖², what a tolerance on `c` is relative to.
        kind: Sign of `c` up to the tolerance: +1, -1, or 0 for a marginal neuron.
    """

    c: Float[np.ndarray, " neurons"]
    scale: Float[np.ndarray, " neurons"]
    kind: Int8[np.ndarray, " neurons"]


def invariants(
    w1: Array,
    w2: Array,
    bias: Array | None = None,
    kappa: float = 1.0,
    *,
    rtol: float | None = None,
) -> Invariants:
    """Return c_k = ‖w1_k‖² + b_k² - kappa ‖w2_k‖² of each hidden neuron.

    c is constant under gradient flow of any loss, because the gradients of each
    minibatch satisfy <w1, ∂w1> = kappa <w2, ∂w2>. Computed in float64; O(l (d + e)).
    Source: S. Du, W. Hu, J. Lee, "Algorithmic regularization in learning deep
    homogeneous models: layers are automatically balanced" (2018).

    Args:
        w1: Hidden weights (l, d), as in `nn.Linear`.
        w2: Output weights (e, l).
        bias: Hidden biases (l,); they count as one more entry of w1.
        kappa: Degree of homogeneity of the activation: 1 for ReLU, 2 for ReLU².
        rtol: |c| <= rtol · scale is marginal; 1e-6 in float64 and 1e-4 below.

    Raises:
        StructureError: Shapes do not fit each other.
        InputError: NaN or infinite weights, kappa or rtol out of range.
        ComplexWeightsError: Complex weights (a TypeError).

    Examples:
        >>> import torch
        >>> invariants(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0]])).c
        array([21.])
    """
    single = any(torch.as_tensor(w).dtype != torch.float64 for w in (w1, w2))
    w1, w2 = as_layers(w1, w2, bias)
    if not (kappa > 0 and np.isfinite(kappa)):
        raise InputError(f"kappa must be positive and finite, got {kappa}")
    if rtol is None:
        rtol = 1e-4 if single else 1e-6
    if not rtol >= 0:
        raise InputError(f"rtol must be at least 0, got {rtol}")
    inner = np.einsum("kd,kd->k", w1, w1)
    outer = np.einsum("ek,ek->k", w2, w2)
    c, scale = inner - kappa * outer, inner + outer
    kind = (np.sign(c) * (np.abs(c) > rtol * scale)).astype(np.int8)
    return Invariants(c, scale, kind)


def conserved_matrix(
    w1: Array, w2: Array, bias: Array | None = None
) -> Float[np.ndarray, "neurons neurons"]:
    """Return W1 W1ᵀ - W2ᵀ W2, conserved whole where the activation is the identity.

    With ReLU or leaky ReLU only its diagonal is conserved. A hidden bias is one more
    column of W1. Raises what `invariants` raises; O(l² (d + e)).
    """
    w1, w2 = as_layers(w1, w2, bias)
    return w1 @ w1.T - w2.T @ w2


def as_layers(
    w1: Array, w2: Array, bias: Array | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return (l, d) and (e, l) weights in float64, the bias as last column of w1."""
    w1, w2 = _as_double("w1", w1), _as_double("w2", w2)
    if w1.ndim != 2 or w2.ndim != 2 or w2.shape[1] != w1.shape[0]:
        raise StructureError(
            "w1 must have shape (l, d) and w2 (e, l), as in nn.Linear, got "
            f"{w1.shape} and {w2.shape}"
        )
    if not w1.shape[1] or not w2.shape[0]:
        raise StructureError(
            f"w1 and w2 need inputs and outputs, got {w1.shape} and {w2.shape}"
        )
    if bias is not None:
        b = _as_double("bias", bias)
        if b.shape != w1.shape[:1]:
            raise StructureError(
                f"bias must have shape {w1.shape[:1]}, one a neuron, got {b.shape}"
            )
        w1 = np.concatenate([w1, b[:, None]], 1)
    return w1, w2


def as_kinds(c: Invariants | Array, atol: float) -> np.ndarray:
    """Return +1, 0 or -1 of each neuron; a bare c is 0 where |c| <= atol."""
    if isinstance(c, Invariants):
        return c.kind
    values = _as_double("c", c)
    if values.ndim != 1:
        raise StructureError(f"c must have shape (neurons,), got {values.shape}")
    if not atol >= 0:
        raise InputError(f"atol must be at least 0, got {atol}")
    return (np.sign(values) * (np.abs(values) > atol)).astype(np.int8)


def _as_double(name: str, value: Array) -> np.ndarray:
    tensor = torch.as_tensor(value).detach()
    if tensor.is_complex():
        raise ComplexWeightsError(f"{name} must be real, got {tensor.dtype}")
    array = tensor.to("cpu", torch.float64).numpy()
    if not np.isfinite(array).all():
        bad = array[~np.isfinite(array)][0]
        raise InputError(f"{name} must be finite, got an entry {bad}")
    return array
