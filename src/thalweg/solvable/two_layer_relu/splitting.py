"""Does a minimum of width K survive at width K + 1? Splitting and new neurons.

Replacing w_i by (a w_i, (1 - a) w_i) keeps the function and a zero gradient; along
(δ, -δ) the new quadratic form is δᵀ(H_ii - ½I)δ (1/a + 1/(1-a)). H_ii - ½I annihilates
w_i. Compare Safran, Yehudai and Shamir, "The Effects of Mild Over-parameterization on
the Optimization Landscape of Shallow ReLU Neural Networks", 2021.
"""

import torch
from torch import Tensor

from thalweg.errors import InputError
from thalweg.seeding import normal
from thalweg.solvable.two_layer_relu.angles import pairs
from thalweg.solvable.two_layer_relu.derivatives import Curvature
from thalweg.solvable.two_layer_relu.kernel import TWO_PI
from thalweg.solvable.two_layer_relu.reduction import span

_STEPS = 500
_RANDOM = 32


def split_neuron(W: Tensor, index: int, share: float) -> Tensor:
    """Return (K + 1, d): w_index becomes share w_index, the rest is the last row.

    Raises:
        InputError: `share` is not strictly between 0 and 1, or no such index.
    """
    if not 0 < share < 1:
        raise InputError(f"share must be between 0 and 1, got {share}")
    if not 0 <= index < len(W):
        raise InputError(f"index must be in 0..{len(W) - 1}, got {index}")
    result = torch.cat([W, (1 - share) * W[index : index + 1]])
    result[index] *= share
    return result


def split_stability(W: Tensor, V: Tensor, d: int) -> Tensor:
    """Return λ_min of H_ii - ½I on the complement of w_i, for each neuron (K,).

    In dimension d above dim span(V, W) it includes c_i, the value along fresh
    directions. At a minimum, the split point of neuron i is a saddle iff its value is
    negative, and stays a (degenerate) minimum iff all are positive. In one dimension
    there is nothing but w_i, and the value is +inf.
    """
    basis = span(torch.cat([V, W]))
    curvature = Curvature(W @ basis, V @ basis)
    r = basis.shape[1]
    u = curvature.geometry.unit_x
    blocks = curvature.diagonal_blocks()
    blocks = blocks - torch.eye(r, dtype=W.dtype, device=W.device) / 2
    # Lift the eigenvalue 0 of w_i itself above all others.
    lift = 1 + 2 * blocks.abs().sum((-2, -1))
    blocks = blocks + lift[:, None, None] * u[:, :, None] * u[:, None, :]
    lowest = torch.linalg.eigvalsh(blocks)[:, 0]
    if r == 1:
        lowest = torch.full_like(lowest, torch.inf)
    if d > r:
        lowest = torch.minimum(lowest, curvature.c)
    return lowest


def dead_direction(W: Tensor, V: Tensor, u: Tensor) -> Tensor:
    """Return E[(f - g) ReLU(u·x)] = Σ h(w, u) - Σ h(v, u) for u (..., d).

    The slope of the loss when a neuron grows out of zero along u.
    """
    return _slope_and_gradient(W, V, u)[0]


def _slope_and_gradient(W: Tensor, V: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    flat = u.reshape(-1, u.shape[-1])
    total = flat.new_zeros(len(flat))
    gradient = torch.zeros_like(flat)
    for sign, X in ((1, W), (-1, V)):
        g = pairs(flat, X)
        angle = torch.pi - g.theta
        total += sign * (g.products * (g.sin + angle * g.cos)).sum(1) / TWO_PI
        along = (g.sin * g.norm_y).sum(1, keepdim=True) * g.unit_x
        gradient += sign * (angle @ X + along) / TWO_PI
    return total.reshape(u.shape[:-1]), gradient.reshape(u.shape)


def steepest_birth(W: Tensor, V: Tensor, seed: int = 0) -> tuple[float, Tensor]:
    """Return (min over unit u of `dead_direction`, u): negative iff a new neuron helps.

    Local search on the sphere, by projected gradient steps with halving, from ±ŵ, ±v̂
    and 32 random directions; a global minimum is likely, not certified.
    """
    random = normal((_RANDOM, W.shape[1]), seed, "birth", like=W)
    u = torch.cat([W, -W, V, -V, random])
    u = u / u.norm(dim=1, keepdim=True)
    step = u.new_ones(len(u))
    value, gradient = _slope_and_gradient(W, V, u)
    for _ in range(_STEPS):
        tangent = gradient - (gradient * u).sum(1, keepdim=True) * u
        if float((tangent.norm(dim=1) * (step > 1e-12)).max()) < 1e-10:
            break
        trial = u - step[:, None] * tangent
        trial = trial / trial.norm(dim=1, keepdim=True)
        new, new_gradient = _slope_and_gradient(W, V, trial)
        better = new < value
        rows = better[:, None]
        u, gradient = (
            torch.where(rows, trial, u),
            torch.where(rows, new_gradient, gradient),
        )
        value = torch.where(better, new, value)
        step = torch.where(better, step * 1.5, step / 2)
    best = int(value.argmin())
    return float(value[best]), u[best]
