"""Which ends are the same: as functions, and up to the symmetry of the teacher."""

import torch
from torch import Tensor

from thalweg.solvable.two_layer_relu.angles import pairs

_NODES = 20_000  # search nodes after which two students count as different


def merged(W: Tensor, angle: float = 1e-6, floor: float = 1e-8) -> Tensor:
    """Return W with neurons of one direction added and empty ones dropped."""
    W = W[W.norm(dim=1) >= floor]
    if not len(W):
        return W
    same = pairs(W, W).theta <= angle
    # Groups are the connected components of "same direction".
    for _ in range(len(W).bit_length()):
        same = (same.double() @ same.double()) > 0
    first = same.double().argmax(1)
    groups = first.unique()
    return torch.stack([W[first == g].sum(0) for g in groups])


def same_function(A: Tensor, B: Tensor, tol: float = 1e-6) -> bool:
    """Return whether two merged students are equal as multisets, to `tol`."""
    return A.shape == B.shape and _matched((A[:, None] - B).norm(dim=-1), tol)


def _matched(distance: Tensor, tol: float) -> bool:
    """Return whether rows and columns can be paired with every distance <= tol."""
    from scipy.optimize import linear_sum_assignment

    if not distance.numel():
        return True
    far = (distance > tol).double().cpu().numpy()
    rows, columns = linear_sum_assignment(far)
    return not far[rows, columns].any()


def same_orbit(A: Tensor, B: Tensor, V: Tensor, tol: float = 1e-6) -> bool:
    """Return whether B is A after permutations that the teacher does not notice.

    There must be a permutation σ of teachers with P_σσ = P and one of the students
    that carry the overlaps WVᵀ and WWᵀ of A into those of B, to `tol`. Teachers are
    assigned one by one, most constrained first; after each, the students restricted to
    the teachers assigned so far must still be matched. Never enumerates M!.

    Args:
        A: Merged student (K, d).
        B: Merged student (K, d).
        V: Teacher (M, d).
        tol: Largest difference of overlaps, relative to the norms of the teachers.
    """
    if A.shape != B.shape:
        return False
    scale = V.norm(dim=1)
    R, T = (A @ V.T) / scale, (B @ V.T) / scale
    P = (V @ V.T) / torch.outer(scale, scale)
    strict = 1e-9
    gap = (R.sort(0).values.T[:, None] - T.sort(0).values.T).abs().amax(-1)
    spread = (P.sort(1).values[:, None] - P.sort(1).values).abs().amax(-1)
    length = (scale[:, None] - scale).abs() / scale.max()
    allowed = (gap <= tol) & (spread <= strict) & (length <= strict)
    if not bool(allowed.any(1).all()):
        return False
    order = allowed.sum(1).argsort().tolist()
    budget = [_NODES]

    def extend(chosen: list[int]) -> bool:
        budget[0] -= 1
        if budget[0] < 0:
            return False
        depth = len(chosen)
        if depth == len(order):
            return _students_match(A, B, R[:, order], T[:, chosen], tol)
        r = order[depth]
        for s in allowed[r].nonzero()[:, 0].tolist():
            if s in chosen:
                continue
            fits = (P[r, order[:depth]] - P[s, chosen]).abs() <= strict
            if not bool(fits.all()):
                continue
            now = [*chosen, s]
            rows = R[:, order[: depth + 1]][:, None] - T[:, now]
            if _matched(rows.abs().amax(-1), tol) and extend(now):
                return True
        return False

    return extend([])


def _students_match(A: Tensor, B: Tensor, R: Tensor, T: Tensor, tol: float) -> bool:
    """Return whether one permutation of students carries R into T and AAᵀ into BBᵀ."""
    from scipy.optimize import linear_sum_assignment

    distance = (R[:, None] - T).abs().amax(-1)
    rows, columns = linear_sum_assignment(distance.cpu().numpy())
    if float(distance[rows, columns].max()) > tol:
        return False
    gap = A @ A.T - (B @ B.T)[columns][:, columns]
    return float(gap.abs().max()) <= 4 * tol * max(1.0, float(A.norm(dim=1).max()))
