"""The set of zero loss when students outnumber teachers: cells, paths, flat directions.

For teachers of which no two are parallel, and linearly independent, a student of zero
loss is an assignment σ of students onto teachers with masses: w_k = a_k v_σ(k),
a_k >= 0, Σ_{σ(k) = r} a_k = 1. (Dependent teachers admit more, as
ReLU(z) - ReLU(-z) = z.) Cells are products of simplices of dimension K - M, glued where
a neuron is zero; for K > M the set is connected (B. Şimşek et al., "Geometry of the
Loss Landscape in Overparameterized Neural Networks", 2021).
"""

import math
import warnings
from itertools import pairwise

import torch
from torch import Tensor

from thalweg.errors import DataWarning, InputError
from thalweg.solvable.two_layer_relu.angles import pairs
from thalweg.solvable.two_layer_relu.kernel import loss

_PARALLEL = 1e-10
_ZERO_LOSS = 1e-12


def distinct_teachers(V: Tensor) -> Tensor:
    """Return V with parallel rows of one orientation added into one.

    Warns:
        DataWarning: Rows were merged; their sum is the same function.
    """
    same = pairs(V, V).theta <= _PARALLEL
    first = [int(row.nonzero()[0]) for row in same]
    kept = sorted(set(first))
    if len(kept) == len(V):
        return V
    warnings.warn(
        f"teacher rows {[i for i, j in enumerate(first) if i != j]} are parallel to "
        "earlier ones and were added to them",
        DataWarning,
        stacklevel=3,
    )
    merged = V.new_zeros(len(kept), V.shape[1])
    target = torch.tensor([kept.index(j) for j in first], device=V.device)
    return merged.index_add(0, target, V)


def count_cells(K: int, M: int) -> int:
    """Return M! S(K, M): how many maps of K students onto M teachers there are."""
    return sum((-1) ** i * math.comb(M, i) * (M - i) ** K for i in range(M + 1))


def assignment(W: Tensor, V: Tensor, tol: float = 1e-3) -> tuple[Tensor, Tensor] | None:
    """Return (σ, a) of the zero-loss student next to W (K, d), or None.

    σ_k is the teacher nearest in angle (0 for a zero neuron), a the masses, scaled to
    sum to one for each teacher. None where a neuron is further than `tol` in angle,
    relative to its mass, a teacher has no student, or masses miss one by over `tol`.
    """
    g = pairs(W, V)
    mass = W.norm(dim=1)
    theta, sigma = g.theta.min(1)
    a = mass / V.norm(dim=1)[sigma]
    if bool((a * theta > tol).any()):
        return None
    total = torch.zeros(len(V), dtype=W.dtype, device=W.device).index_add(0, sigma, a)
    if bool(((total - 1).abs() > tol).any()):
        return None
    return sigma, a / total[sigma]


def zero_path(W0: Tensor, W1: Tensor, V: Tensor) -> Tensor:
    """Return the corners (n, K, d) of a piecewise linear path of zero loss.

    All mass of each teacher goes to one holder, holders are moved one by one by way of
    empty neurons, and the mass is spread as in W1: at most 2 M + 2 pieces.

    Raises:
        InputError: An end has loss above 1e-12 or is no assignment of students to
            teachers, or K = M and the ends differ: those zeros are isolated.
    """
    V = distinct_teachers(V)
    K, M = len(W0), len(V)
    ends = []
    for name, W in (("W0", W0), ("W1", W1)):
        value = float(loss(W, V))
        if value > _ZERO_LOSS:
            raise InputError(f"{name} must have zero loss, got {value:.1e}")
        found = assignment(W, V)
        if found is None:
            raise InputError(
                f"{name} must assign each student to one teacher, as all zero-loss "
                "students of linearly independent teachers do"
            )
        ends.append(found)
    if float((W0 - W1).abs().max()) <= 1e-6:
        return torch.stack([W0, W1])
    if K <= M:
        raise InputError(f"K = {K} and M = {M}: the zeros of the loss are isolated")
    (sigma0, a0), (sigma1, a1) = ends
    holder, goal = _holders(sigma0, a0, M), _holders(sigma1, a1, M)
    corners = [W0, _held(holder, V, K)]
    for r in range(M):
        if holder[r] == goal[r]:
            continue
        if goal[r] in holder:  # it holds another teacher: that one moves out first
            other = holder.index(goal[r])
            holder[other] = next(k for k in range(K) if k not in holder)
            corners.append(_held(holder, V, K))
        holder[r] = goal[r]
        corners.append(_held(holder, V, K))
    corners.append(W1)
    apart = [b for a, b in pairwise(corners) if not torch.equal(a, b)]
    return torch.stack([W0, *apart])


def _holders(sigma: Tensor, a: Tensor, M: int) -> list[int]:
    """Return for each teacher its student of largest mass."""
    return [int(torch.where(sigma == r, a, -1.0).argmax()) for r in range(M)]


def _held(holder: list[int], V: Tensor, K: int) -> Tensor:
    W = V.new_zeros(K, V.shape[1])
    W[holder] = V
    return W


def snapped(W: Tensor, V: Tensor) -> Tensor:
    """Return the exact zero-loss student next to W, or W where there is none."""
    found = assignment(W, V)
    if found is None:
        return W
    sigma, a = found
    return a[:, None] * V[sigma]


def transfers(W: Tensor, tol: float = 1e-6) -> Tensor:
    """Return orthonormal columns (K d, n) along which mass moves between neurons.

    Neurons of one direction form a group; moving norm within it leaves the function
    unchanged. n = Σ (group size - 1).
    """
    K, d = W.shape
    same = pairs(W, W).theta <= tol
    columns = []
    for i in range(K):
        j = int(same[i].nonzero()[0])
        if j != i:
            direction = W.new_zeros(K, d)
            unit = W[j] / W[j].norm()
            direction[i], direction[j] = unit, -unit
            columns.append(direction.reshape(-1))
    if not columns:
        return W.new_zeros(K * d, 0)
    return torch.linalg.qr(torch.stack(columns, 1)).Q
