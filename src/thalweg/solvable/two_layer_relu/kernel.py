"""The ReLU kernel of Gaussian inputs and the population loss made of it.

h(a, b) = E[ReLU(a·x) ReLU(b·x)], x ~ N(0, I): the arc-cosine kernel of order one
(Cho and Saul, "Kernel Methods for Deep Learning", 2009). The loss is
L = ½ E[(Σ ReLU(w·x) - Σ ReLU(v·x))²] (Safran and Shamir, 2018).
"""

import math

import torch
from torch import Tensor

from thalweg.solvable.two_layer_relu.angles import Pairs, kink, overlap_angles, pairs
from thalweg.solvable.two_layer_relu.checks import (
    Array,
    as_overlaps,
    as_real,
    as_teacher,
    as_weights,
    joint,
)

TWO_PI = 2 * math.pi


def student_loss(W: Array, V: Array, *, compensated: bool = True) -> Tensor:
    """Return L(W) = ½ E[(f - g)²], in W's dtype.

    With `compensated` the loss is written as a linear part and a kink part,
    L = ¼|Σw - Σv|² + (1/2π)[½Σ|w||w|χ - Σ|w||v|χ + ½Σ|v||v|χ], χ = sin θ - θ cos θ,
    which removes the cancellation between the three sums of h near zero loss: its
    floor is about 1e-16 Σ|w||v|χ instead of 1e-16 Σh. Cost O(K(K+M)d).

    Args:
        W: Student of shape (..., K, d); zero neurons count nothing.
        V: Teacher of shape (..., M, d).
        compensated: Use the second form.
    """
    teacher = as_teacher(V)
    weights = as_weights(W, teacher)
    value = loss(weights, teacher, compensated=compensated)
    return value.to(torch.as_tensor(W).dtype)


def loss(W: Tensor, V: Tensor, *, compensated: bool = True) -> Tensor:
    """Return the loss of checked float64 weights; see `student_loss`."""
    between_students = pairs(W, W)
    between_both = pairs(W, V)
    between_teachers = pairs(V, V)
    parts = between_students, between_both, between_teachers
    if not compensated:
        ww, wv, vv = (_kernel(p).sum((-2, -1)) for p in parts)
        return ww / 2 - wv + vv / 2
    ww, wv, vv = ((p.products * kink(p.theta)).sum((-2, -1)) for p in parts)
    linear = (W.sum(-2) - V.sum(-2)).square().sum(-1) / 4
    return linear + (ww / 2 - wv + vv / 2) / TWO_PI


def _kernel(p: Pairs) -> Tensor:
    return p.products * (p.sin + (math.pi - p.theta) * p.cos) / TWO_PI


def kernel_of_overlaps(sigma: Tensor) -> Tensor:
    """Return h of all pairs from one overlap matrix (..., n, n)."""
    a = sigma.diagonal(dim1=-2, dim2=-1)
    s, theta = overlap_angles(a, a, sigma)
    h = (s + (math.pi - theta) * sigma) / TWO_PI
    return h - torch.diag_embed(h.diagonal(dim1=-2, dim2=-1) - a / 2)


def relu_kernel(Q: Array, R: Array, P: Array) -> Tensor:
    """Return h of all pairs of students and teachers, (..., K + M, K + M).

    From overlaps Q = WWᵀ, R = WVᵀ, P = VVᵀ alone; rows are students, then teachers.

    Raises:
        InputError: See `as_overlaps`.
    """
    dtype = torch.as_tensor(Q).dtype
    return kernel_of_overlaps(joint(*as_overlaps(Q, R, P))).to(dtype)


def relu_loss(Q: Array, R: Array, P: Array) -> Tensor:
    """Return the loss from the overlaps Q = WWᵀ, R = WVᵀ, P = VVᵀ alone.

    Raises:
        InputError: See `as_overlaps`.

    Examples:
        >>> I = torch.eye(2, dtype=torch.float64)
        >>> float(relu_loss(I, I, I))
        0.0
    """
    dtype = as_real("Q", Q).dtype
    return loss_of_overlaps(*as_overlaps(Q, R, P)).to(dtype)


def loss_of_overlaps(Q: Tensor, R: Tensor, P: Tensor) -> Tensor:
    """Return the loss of checked float64 overlaps; see `relu_loss`."""
    h = kernel_of_overlaps(joint(Q, R, P))
    K = Q.shape[-1]
    sign = torch.ones(h.shape[-1], dtype=h.dtype, device=h.device)
    sign[K:] = -1
    return (h * sign * sign[:, None]).sum((-2, -1)) / 2
