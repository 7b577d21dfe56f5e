"""Students that keep part of the teacher's symmetry: few numbers for any width.

For an orthonormal teacher and K = M = k the loss is invariant under W -> ΠWΠ'ᵀ. A
student with isotropy S_{p_1} x ... x S_{p_m}, Σ p_a = k, is constant on blocks: α_a on
the diagonal of block a, β_a off it (where p_a > 1), γ_ab between blocks. A critical
point of the loss on these students is one of the loss. Families of such minima:
Safran and Shamir, 2018; Arjevani and Field, "Analytic Study of Families of Spurious
Minima in Two-Layer ReLU Neural Networks", 2021.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg.errors import InputError
from thalweg.seeding import normal
from thalweg.solvable.two_layer_relu.kernel import TWO_PI
from thalweg.solvable.two_layer_relu.polish import trust_region

_NEWTON_STEPS = 100
_STARTS = 64


@dataclass(frozen=True)
class SymmetricPoint:
    """A critical point of the loss among students of one isotropy.

    Attributes:
        p: Sizes of the blocks, real numbers.
        values: (α_1.., β_a for p_a > 1.., γ_12, γ_13.., γ_21..).
        loss: Loss there.
        grad_norm: Norm of the restricted gradient in weight space.
        W: The student (k, k), or None where p is not made of integers.
    """

    p: tuple[float, ...]
    values: Tensor
    loss: float
    grad_norm: float
    W: Tensor | None


def _checked(p: Sequence[float]) -> tuple[float, ...]:
    if not p or not all(math.isfinite(size) and size > 0 for size in p):
        raise InputError(f"p must be positive block sizes, got {tuple(p)}")
    return tuple(float(size) for size in p)


def count_unknowns(p: Sequence[float]) -> int:
    """Return m + #{p_a > 1} + m (m - 1)."""
    m = len(p)
    return m + sum(size > 1 for size in p) + m * (m - 1)


def _split(values: Tensor, p: tuple[float, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Return α (m,), β (m,) with zeros where p_a <= 1, γ (m, m) with zero diagonal."""
    m = len(p)
    if values.shape != (count_unknowns(p),):
        raise InputError(
            f"values must have shape ({count_unknowns(p)},) for p = {p}, got "
            f"{tuple(values.shape)}"
        )
    has_off = [a for a in range(m) if p[a] > 1]
    beta = values.new_zeros(m)
    beta[has_off] = values[m : m + len(has_off)]
    gamma = values.new_zeros(m, m)
    gamma[~torch.eye(m, dtype=torch.bool)] = values[m + len(has_off) :]
    return values[:m], beta, gamma


def orbit_sizes(p: Sequence[float]) -> Tensor:
    """Return how many entries of W each value stands for."""
    p = _checked(p)
    off = [size * (size - 1) for size in p if size > 1]
    between = [x * y for a, x in enumerate(p) for b, y in enumerate(p) if a != b]
    return torch.tensor([*p, *off, *between], dtype=torch.float64)


def block_embed(values: Tensor, p: Sequence[float]) -> Tensor:
    """Return the student W (k, k) of the block values.

    Raises:
        InputError: p is not made of positive integers, or `values` has another length.
    """
    p = _checked(p)
    if not all(size.is_integer() for size in p):
        raise InputError(f"block_embed needs integer block sizes, got {p}")
    alpha, beta, gamma = _split(values, p)
    block = torch.repeat_interleave(torch.arange(len(p)), torch.tensor(p).long())
    same = block[:, None] == block
    W = torch.where(same, beta[block][:, None], gamma[block[:, None], block])
    W.diagonal().copy_(alpha[block])
    return W


def block_basis(p: Sequence[float]) -> Tensor:
    """Return orthonormal columns (k², n) that span the block-constant students."""
    n = count_unknowns(p)
    columns = [block_embed(row, p).reshape(-1) for row in torch.eye(n).double()]
    return torch.stack(columns, 1) / orbit_sizes(p).sqrt()


def block_loss(values: Tensor, p: Sequence[float]) -> Tensor:
    """Return the loss of block-constant students, also for real block sizes.

    Overlaps are polynomials in p, so that the loss has a meaning in fractional
    dimension. Differentiable by torch in `values` where no student is collinear with a
    teacher or another student.
    """
    p = _checked(p)
    alpha, beta, gamma = _split(values, p)
    size = torch.tensor(p, dtype=values.dtype)
    own = alpha.square() + (size - 1) * beta.square() + (gamma.square() @ size)
    inside = 2 * alpha * beta + (size - 2) * beta.square() + gamma.square() @ size
    # Between blocks a != b: columns in a, in b, and in the third blocks.
    mean = alpha + (size - 1) * beta
    third = (gamma * size) @ gamma.T
    across = mean[:, None] * gamma.T + gamma * mean
    across = across + third
    one = torch.ones((), dtype=values.dtype)
    students = (size * own / 2).sum()
    students = students + (size * (size - 1) * _kernel(own, own, inside)).sum()
    off = 1 - torch.eye(len(p), dtype=values.dtype)
    pairs = torch.outer(size, size) * off
    students = students + (pairs * _kernel(own[:, None], own, across)).sum()
    mixed = (size * _kernel(own, one, alpha)).sum()
    mixed = mixed + (size * (size - 1) * _kernel(own, one, beta)).sum()
    mixed = mixed + (pairs * _kernel(own[:, None], one, gamma)).sum()
    k = size.sum()
    students = students - (size * own / 4).sum()  # h(w, w) = |w|²/2 enters with ½
    teachers = (k / 2 + k * (k - 1) / TWO_PI) / 2
    return _halved(students, size, own) - mixed + teachers


def _halved(students: Tensor, size: Tensor, own: Tensor) -> Tensor:
    """Return ½ Σ h(w, w) from the sum in which the diagonal is already halved."""
    diagonal = (size * own / 4).sum()
    return (students - diagonal) / 2 + diagonal


def _kernel(a: Tensor, b: Tensor, q: Tensor) -> Tensor:
    """Return h from squared norms and overlap; its derivatives stay finite."""
    s = (a * b - q * q).clamp_min(1e-300).sqrt()
    return (s + (math.pi - torch.atan2(s, q)) * q) / TWO_PI


def solve_blocks(values: Tensor, p: Sequence[float]) -> SymmetricPoint:
    """Return the critical point that damped Newton steps reach from `values`.

    Steps are halved until the scaled gradient (each component over the root of its
    orbit's size) falls. Works at real p; not at points with collinear neurons, where
    the second derivatives in overlaps do not exist.

    Raises:
        InputError: p or the number of values cannot be used.
    """
    p = _checked(p)
    scale = orbit_sizes(p).rsqrt()
    gradient_of = torch.func.grad(lambda v: block_loss(v, p))
    hessian_of = torch.func.hessian(lambda v: block_loss(v, p))
    x = torch.as_tensor(values, dtype=torch.float64)
    gradient = gradient_of(x) * scale
    for _ in range(_NEWTON_STEPS):
        norm = gradient.norm()
        if norm < 1e-14:
            break
        H = hessian_of(x) * torch.outer(scale, scale)
        step = -torch.linalg.lstsq(H, gradient[:, None]).solution[:, 0] * scale
        length = 1.0
        while length > 1e-10:
            new = gradient_of(x + length * step) * scale
            if new.norm() < norm:
                break
            length /= 2
        else:
            break
        x, gradient = x + length * step, new
    return _point(x, p, float(gradient.norm()))


def _point(values: Tensor, p: tuple[float, ...], norm: float) -> SymmetricPoint:
    integer = all(size.is_integer() for size in p)
    W = block_embed(values, p) if integer else None
    return SymmetricPoint(p, values, float(block_loss(values, p)), norm, W)


def continue_blocks(
    point: SymmetricPoint, p: Sequence[float], steps: int = 8
) -> SymmetricPoint:
    """Follow a critical point to other block sizes, by way of real ones.

    Args:
        point: Where to begin.
        p: Block sizes to reach; as many blocks as before.
        steps: Number of Newton solves on the way.

    Raises:
        InputError: The number of blocks, or of values, changes on the way.
    """
    target = _checked(p)
    if len(target) != len(point.p) or count_unknowns(target) != count_unknowns(point.p):
        raise InputError(f"p must have the blocks of {point.p}, got {target}")
    for i in range(1, steps + 1):
        t = i / steps
        sizes = [(1 - t) * a + t * b for a, b in zip(point.p, target, strict=True)]
        values = solve_blocks(point.values, sizes).values
        if i < steps:
            point = SymmetricPoint(point.p, values, math.nan, math.nan, None)
    return solve_blocks(values, target)


def symmetric_minimum(p: Sequence[float], seed: int = 0) -> SymmetricPoint:
    """Return the lowest minimum among students of isotropy p that is not global.

    It is a minimum among the block-constant students, and a critical point of the loss:
    a minimum there only if its Hessian says so (the (4, 1) point is a saddle, (5, 1) a
    minimum). Found by trust-region descents from 64 block-constant random starts.

    Raises:
        InputError: p is not made of positive integers, or no such point was found.
    """
    p = _checked(p)
    basis = block_basis(p)
    k = int(sum(p))
    n = basis.shape[1]
    start = normal((_STARTS, n), seed, "blocks", like=basis)
    start = start * (orbit_sizes(p) / k).sqrt() / math.sqrt(k) ** 0.5
    W = (start @ basis.T).view(-1, k, k)
    V = torch.eye(k, dtype=torch.float64)
    ends, norms = trust_region(W, V, 1e-12, basis=basis)
    best: SymmetricPoint | None = None
    for end, norm in zip(ends, norms, strict=True):
        values = (end.reshape(-1) @ basis) / orbit_sizes(p).sqrt()
        point = _point(values, p, float(norm))
        if point.loss < 1e-10 or norm > 1e-11 or not _exact(values, p):
            continue
        if best is None or point.loss < best.loss - 1e-12:
            best = point
    if best is None:
        raise InputError(f"no minimum of isotropy p = {p} was found apart from W = V")
    return best


def _exact(values: Tensor, p: tuple[float, ...]) -> bool:
    """Return whether the student has no more symmetry than p."""
    found = detect_blocks(block_embed(values, p))
    return found is not None and sorted(found[0]) == sorted(int(size) for size in p)


def detect_blocks(
    W: Tensor, tol: float = 1e-6
) -> tuple[tuple[int, ...], Tensor] | None:
    """Return (p, values) of a student in an orthonormal teacher's basis, or None.

    Neurons are matched to teachers by the assignment of largest Σ|w|, or of entries
    that occur most rarely in their row and column, then grouped by equal (diagonal
    entry, sorted row, sorted column); the grouping is checked against the block
    structure. Blocks are sorted by size, largest first.
    """
    from scipy.optimize import linear_sum_assignment

    k = W.shape[0]
    if W.shape != (k, k):
        return None
    repeats = (W[:, :, None] - W[:, None]).abs().le(tol).sum(-1)
    repeats = repeats + (W[:, None] - W[None]).abs().le(tol).sum(1)
    found = None
    for cost in (-W.abs(), repeats - W.abs() / W.abs().max().clamp_min(1e-300)):
        _, columns = linear_sum_assignment(cost.cpu().numpy())
        blocks = _group(W[:, torch.as_tensor(columns)], tol)
        if blocks is not None and (found is None or len(blocks[0]) < len(found[0])):
            found = blocks
    return found


def _group(W: Tensor, tol: float) -> tuple[tuple[int, ...], Tensor] | None:
    """Return (p, values) of a student whose diagonal is matched, or None."""
    k = len(W)
    signature = torch.cat(
        [W.diagonal()[:, None], W.sort(1).values, W.sort(0).values.T], 1
    )
    distance = (signature[:, None] - signature).abs().amax(-1)
    groups: list[list[int]] = []
    for i in range(k):
        home = next((g for g in groups if distance[i, g[0]] <= tol), None)
        if home is None:
            groups.append([i])
        else:
            home.append(i)
    groups.sort(key=lambda g: (-len(g), float(W[g[0], g[0]])))
    order = [i for g in groups for i in g]
    W = W[order][:, order]
    p = tuple(len(g) for g in groups)
    basis = block_basis(p)
    values = (W.reshape(-1) @ basis) / orbit_sizes(p).sqrt()
    if float((block_embed(values, p) - W).abs().max()) > 10 * tol:
        return None
    return p, values
