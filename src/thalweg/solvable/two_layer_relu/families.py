"""Families of minima: the ends of many descents up to symmetry, with frequencies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from thalweg.errors import InputError
from thalweg.solvable.two_layer_relu.classification import (
    GLOBAL_LOSS,
    Classification,
    classify,
)
from thalweg.solvable.two_layer_relu.descent import KIND, Descents
from thalweg.solvable.two_layer_relu.orbits import merged, same_function, same_orbit
from thalweg.solvable.two_layer_relu.reduction import spectrum
from thalweg.solvable.two_layer_relu.symmetry import detect_blocks
from thalweg.solvable.two_layer_relu.zero_loss import distinct_teachers, snapped

_SAME_LOSS = 1e-8


@dataclass(frozen=True)
class Family:
    """Ends of descents that are one minimum up to symmetry.

    Attributes:
        W: A representative, the member of smallest gradient, (K, d).
        members: Which starts ended here.
        fraction: Share of all starts, with its Wilson 95 % interval `low`, `high`.
        what: Classification of the representative.
        isotropy: Block sizes (p_1, ..) of its symmetry for an orthonormal teacher and
            K = M, else None.
        functions: Number of different functions in the orbit, M! / Π p_a!, or None.
    """

    W: Tensor
    members: tuple[int, ...]
    fraction: float
    low: float
    high: float
    what: Classification
    isotropy: tuple[int, ...] | None
    functions: int | None

    @property
    def count(self) -> int:
        """Return how many starts ended here."""
        return len(self.members)

    @property
    def loss(self) -> float:
        """Return the loss of the representative."""
        return self.what.loss

    def __repr__(self) -> str:
        p = "" if self.isotropy is None else f", isotropy {self.isotropy}"
        return (
            f"Family({self.what.level} {self.what.kind}, loss {self.loss:.8g}, "
            f"{100 * self.fraction:.3g} % [{100 * self.low:.3g}, "
            f"{100 * self.high:.3g}] of starts{p})"
        )


def wilson(count: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the Wilson 95 % interval of a fraction count / n.

    Raises:
        InputError: n < 1 or count is not in 0..n.
    """
    if n < 1 or not 0 <= count <= n:
        raise InputError(f"count must be in 0..n with n >= 1, got {count} of {n}")
    p = count / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


def families(
    ends: Descents, V: Tensor, d: int, *, level: str = "orbit", tol: float = 1e-6
) -> tuple[Family, ...]:
    """Group the converged descents into families, sorted by loss.

    Args:
        ends: The descents; those that did not converge are left out, and count in the
            denominator of the fractions.
        V: Teacher (M, d).
        d: Input dimension, for the classification.
        level: "orbit" (up to permutations that the teacher does not notice) or
            "function" (the same student function).
        tol: Largest difference of two members; enlarged to what a member's gradient
            allows, 10 |∇L| / λ_min, or its root at degenerate minima.

    Raises:
        InputError: `level` is neither.
    """
    if level not in ("orbit", "function"):
        raise InputError(f'level must be "orbit" or "function", got {level!r}')
    teachers = distinct_teachers(V)
    groups: list[_Group] = []
    order = ends.converged.nonzero()[:, 0]
    order = order[ends.loss[order].argsort()]
    for i in order.tolist():
        value, norm = float(ends.loss[i]), float(ends.grad_norm[i])
        degenerate = int(ends.kind[i]) == KIND.index("degenerate")
        slack = _slack(value, norm, tol) if degenerate else tol
        student = _student(ends.W[i], value, teachers, slack)
        home = None
        for group in reversed(groups):
            if value - group.loss > _SAME_LOSS:
                break
            if group.holds(
                student, V, max(slack, group.slack, group.reach * norm), level
            ):
                home = group
                break
        if home is None:
            reach = 0.0 if degenerate else _reach(ends.W[i], V, d)
            slack = max(slack, reach * norm)
            groups.append(_Group(student, value, slack, reach, [i]))
        else:
            home.members.append(i)
    built = [_family(g.members, ends, V, d) for g in groups]
    return _ranked(sorted(built, key=lambda family: family.loss))


def _student(W: Tensor, value: float, teachers: Tensor, slack: float) -> Tensor:
    """Return the merged student; next to the set of zero loss, the one on it."""
    if value <= GLOBAL_LOSS and len(W) > len(teachers):
        W = snapped(W, teachers)
    return merged(W, angle=max(1e-6, slack))


@dataclass
class _Group:
    student: Tensor
    loss: float
    slack: float
    reach: float  # distance to the minimum that a unit of gradient allows, times ten
    members: list[int]

    def holds(self, student: Tensor, V: Tensor, slack: float, level: str) -> bool:
        if student.shape != self.student.shape:
            return False
        norms = student.norm(dim=1).sort().values
        if float((norms - self.student.norm(dim=1).sort().values).abs().max()) > slack:
            return False
        if level == "function":
            return same_function(self.student, student, slack)
        return same_orbit(self.student, student, V, slack)


def _slack(value: float, norm: float, tol: float) -> float:
    """Return how far a degenerate end may be from the minimum it belongs to.

    There the gradient is quadratic and the loss cubic in the distance.
    """
    return max(tol, 3 * math.sqrt(norm), 3 * max(value, 0.0) ** (1 / 3))


def _reach(W: Tensor, V: Tensor, d: int) -> float:
    return 10 / max(float(spectrum(W, V, d).values.abs().min()), 1e-8)


def _family(members: list[int], ends: Descents, V: Tensor, d: int) -> Family:
    best = min(members, key=lambda i: float(ends.grad_norm[i]))
    W = ends.W[best]
    low, high = wilson(len(members), len(ends))
    isotropy = None
    M = len(V)
    gram = V @ V.T
    eye = torch.eye(M, dtype=V.dtype, device=V.device)
    if len(W) == M and float((gram - gram[0, 0] * eye).abs().max()) < 1e-12:
        found = detect_blocks(W @ V.T / gram[0, 0])
        isotropy = None if found is None else found[0]
    return Family(
        W,
        tuple(members),
        len(members) / len(ends),
        low,
        high,
        classify(W, V, d),
        isotropy,
        None if isotropy is None else _multinomial(isotropy),
    )


def _multinomial(p: Sequence[int]) -> int:
    return math.factorial(sum(p)) // math.prod(math.factorial(size) for size in p)


def _ranked(found: list[Family]) -> tuple[Family, ...]:
    """Where no level is certain (K < M), say which family is the lowest."""
    ranked = []
    for rank, family in enumerate(found):
        what = family.what
        if what.level == "unranked":
            what = replace(what, level="above_lowest" if rank else "lowest_found")
        ranked.append(replace(family, what=what))
    return tuple(ranked)
