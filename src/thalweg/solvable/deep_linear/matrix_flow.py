"""Gradient flow of the matrices: exact at depth 2 from a balanced start, else an ODE.

Source of the exact solution: L. Braun, C. Dominé, J. Fitzgerald, A. Saxe, "Exact
learning dynamics of deep linear networks with prior knowledge" (2022).
"""

import math

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import InputError
from thalweg.solvable.deep_linear.checks import Reals, as_matrix, nonnegative

_LONGEST = 1.5  # of lam_max dt; one long step would lose all digits


def two_layer_flow(W1: Tensor, W2: Tensor, teacher: Tensor, times: Reals) -> Tensor:
    """Return the product W(t) (times, d_2, d_0) of a balanced two-layer network.

    For Sigma = I and any orientation, rank or teacher. With Q = [W_1ᵀ; W_2], P = Q Qᵀ
    and F = [[0, Mᵀ], [M, 0]] the flow is dP/dt = F P + P F - P², so that

        P(t) = e^{Ft} P0 [I + J(t) P0]⁻¹ e^{Ft},   J(t) = ∫₀ᵗ e^{2Fs} ds,

    taken in substeps of lam_max dt <= 1.5, each followed by a symmetrization.

    Raises:
        InputError: Shapes do not fit, a time is negative, or the start is not balanced
            (W_2ᵀ W_2 and W_1 W_1ᵀ differ).
    """
    W1, W2, M = as_matrix("W1", W1), as_matrix("W2", W2), as_matrix("teacher", teacher)
    if W2.shape[1] != W1.shape[0] or M.shape != (W2.shape[0], W1.shape[1]):
        raise InputError(
            f"W1 {tuple(W1.shape)}, W2 {tuple(W2.shape)} and teacher {tuple(M.shape)} "
            "do not fit together"
        )
    scale = max(1e-300, float(W1.square().sum() + W2.square().sum()))
    gap = float((W2.T @ W2 - W1 @ W1.T).norm())
    if gap > 1e-9 * scale:
        raise InputError(
            f"W1 and W2 must be balanced, W_2ᵀ W_2 - W_1 W_1ᵀ has norm {gap:.1e}; use "
            "DeepLinear.gradient_flow, which integrates from any start"
        )
    d0, clock = M.shape[1], np.atleast_1d(nonnegative("times", times))
    F = M.new_zeros(sum(M.shape), sum(M.shape))
    F[d0:, :d0], F[:d0, d0:] = M, M.T
    lam, basis = torch.linalg.eigh(F)
    Q = torch.cat([W1.T, W2])
    P = basis.T @ (Q @ Q.T) @ basis
    result = M.new_empty(len(clock), *M.shape)
    now = 0.0
    for i in np.argsort(clock, kind="stable"):
        P = _advance(P, lam, float(clock[i]) - now)
        now = float(clock[i])
        result[i] = (basis @ P @ basis.T)[d0:, :d0]
    return result


def _advance(P: Tensor, lam: Tensor, duration: float) -> Tensor:
    """Return P after `duration`, in the eigenbasis of F."""
    if duration == 0:
        return P
    steps = max(1, math.ceil(float(lam.abs().max()) * duration / _LONGEST))
    dt = duration / steps
    grow = torch.exp(lam * dt)
    safe = torch.where(lam == 0, torch.ones_like(lam), lam)
    J = torch.where(
        lam == 0, torch.full_like(lam, dt), (2 * safe * dt).expm1() / (2 * safe)
    )
    eye = torch.eye(len(lam), dtype=P.dtype, device=P.device)
    for _ in range(steps):
        # P [I + J P]⁻¹ = [I + P J]⁻¹ P
        P = torch.linalg.solve(eye + P * J, P)
        P = grow[:, None] * P * grow
        P = (P + P.T) / 2
    return P
