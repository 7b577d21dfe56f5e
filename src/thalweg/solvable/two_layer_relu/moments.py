"""Gaussian moments of two indicators and two ReLUs, in closed form up to one integral.

J(i, j; a, b) = E[1(u_i > 0) 1(u_j > 0) ReLU(u_a) ReLU(u_b)], u ~ N(0, Σ): the noise of
one-pass SGD is made of them. By integration by parts everything reduces to orthant
probabilities of two and three variables, which are elementary, and of four, which are
one smooth integral (R. Plackett, "A Reduction Formula for Normal Multivariate
Integrals", 1954).

Conditioning is done on vectors, by projection, not on Σ: rank-deficient Σ is the rule
here (students in the span of the teacher), and variances would lose half the digits.
"""

import functools
import math

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import InputError
from thalweg.solvable.two_layer_relu.checks import Array, as_real
from thalweg.solvable.two_layer_relu.kernel import TWO_PI

_DENSITY = 1 / math.sqrt(TWO_PI)  # of N(0, 1) at 0
_COLLINEAR = 1e-8
_FIRST_NODES = 16
_LAST_NODES = 512
_CHANGE = 1e-11


def orthant_moments(Sigma: Array, indicators: int | None = None) -> Tensor:
    """Return J (..., m, m, n, n): J[i, j, a, b], i and j among the first m variables.

    Args:
        Sigma: Covariance matrices (..., n, n).
        indicators: m, all n by default.

    Raises:
        InputError: Sigma is not symmetric to 1e-10, or not positive semi-definite.

    Cost O(m² n² nodes) with 32 nodes for well-conditioned Σ, up to 512 near aligned
    variables; accurate to about 1e-10, and to 1e-8 next to exact collinearity.
    """
    given = as_real("Sigma", Sigma)
    sigma = given.double()
    n = sigma.shape[-1]
    m = n if indicators is None else indicators
    if sigma.ndim < 2 or sigma.shape[-2] != n or not 1 <= m <= n:
        raise InputError(
            f"Sigma must be (..., n, n) with 1 <= indicators <= n, got "
            f"{tuple(sigma.shape)} and {m}"
        )
    gap = float((sigma - sigma.mT).abs().max()) if sigma.numel() else 0.0
    if gap > 1e-10:
        raise InputError(f"Sigma must be symmetric, it differs by {gap:.1e}")
    flat = sigma.reshape(-1, n, n)
    values, vectors = torch.linalg.eigh(flat)
    worst = values[:, 0] / values.sum(-1).clamp_min(1e-300)
    if len(worst) and float(worst.min()) < -1e-8:
        raise InputError(
            "Sigma must be positive semi-definite, its smallest eigenvalue is "
            f"{float(worst.min()):.1e} of its trace"
        )
    J = _moments(_factor(values, vectors), m)
    return J.reshape(*sigma.shape[:-2], m, m, n, n).to(given.dtype)


def moments(sigma: Tensor, m: int) -> Tensor:
    """Return J (m, m, n, n) of one checked covariance matrix."""
    return _moments(_factor(*torch.linalg.eigh(sigma[None])), m)[0]


def _factor(values: Tensor, vectors: Tensor) -> Tensor:
    """Return X (B, n, n) with XXᵀ = Σ, directions of rounding size left out."""
    floor = 1e-15 * values.shape[-1] * values[:, -1:]
    return vectors * torch.where(values > floor, values, 0.0).sqrt()[:, None]


# What is kept must be ordinary tensors, also if an integration asks first.
@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)
def _indices(m: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the quadruples i <= j, a <= b, (L, 4), and where they belong in J."""
    i, j = torch.triu_indices(m, m)
    a, b = torch.triu_indices(n, n)
    L, N = len(i), len(a)
    quads = torch.stack(
        [i.repeat_interleave(N), j.repeat_interleave(N), a.repeat(L), b.repeat(L)]
    )
    first = torch.zeros(m, m, dtype=torch.long)
    first[i, j] = first[j, i] = torch.arange(L)
    second = torch.zeros(n, n, dtype=torch.long)
    second[a, b] = second[b, a] = torch.arange(N)
    return quads, first, second


def _probability(cos: Tensor) -> Tensor:
    """Return P(u > 0, v > 0) for the cosine between two variables."""
    return 0.25 + torch.asin(cos.clamp(-1.0, 1.0)) / TWO_PI


def _normalized(x: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.vector_norm(x, dim=-1)  # a third of the cost of x.norm
    usable = norm > floor
    return norm * usable, x / torch.where(usable, norm, math.inf)[..., None]


def _moments(X: Tensor, m: int) -> Tensor:
    B, n, _ = X.shape
    norm, u = _normalized(X, 0.0)
    quads, first, second = (t.to(X.device) for t in _indices(m, n))
    tables = _Tables(u)
    rows = torch.arange(B, device=X.device)[:, None]
    i, j, a, b = tables.representative[:, quads].unbind(1)
    # An indicator of a variable that stands in a ReLU is already there.
    i_free, j_free = (i != a) & (i != b), (j != a) & (j != b) & (j != i)
    two, none = i_free & j_free, ~i_free & ~j_free
    one = torch.where(i_free, i, j)
    equal = a == b
    J = torch.where(
        two,
        tables.two_indicators_one_square(rows, i, j, a),
        torch.where(
            none,
            torch.where(equal, 0.5, tables.kernel[rows, a, b]),
            torch.where(
                equal, tables.square[rows, one, a], tables.three(rows, one, a, b)
            ),
        ),
    )
    full = (two & ~equal).nonzero(as_tuple=True)
    if len(full[0]):
        J[full] = tables.four(full[0], i[full], j[full], a[full], b[full])
    if bool(tables.opposed.any()):
        J = torch.where(tables.any_opposed(quads), 0.0, J)
    a0, b0 = quads[2], quads[3]
    J = J * norm[:, a0] * norm[:, b0]
    N = len(second) * (len(second) + 1) // 2
    J = J.view(B, m * (m + 1) // 2, N)[:, first.reshape(-1)][:, :, second.reshape(-1)]
    return J.view(B, m, m, n, n)


class _Tables:
    """Cosines of n unit vectors, given that none, one or two others are zero.

    Index order: conditions first. A vector that a condition fixes is the zero vector.
    """

    def __init__(self, u: Tensor) -> None:
        self.cos = (u @ u.mT).clamp(-1.0, 1.0)
        given = u[:, None] - self.cos[..., None] * u[:, :, None]  # (B, c, x, dim)
        # Projected twice: what is left is orthogonal to rounding.
        given = given - (given * u[:, :, None]).sum(-1, keepdim=True) * u[:, :, None]
        self.sin, unit = _normalized(given, _COLLINEAR)
        self.unit = unit
        aligned = self.sin == 0
        same = aligned & (self.cos > 0)
        self.opposed = aligned & (self.cos < 0)
        self.representative = same.int().argmax(-1)
        theta = torch.atan2(self.sin, self.cos)
        self.pair = (math.pi - theta) / TWO_PI
        self.kernel = (self.sin + (math.pi - theta) * self.cos) / TWO_PI
        self.square = (math.pi - theta + self.sin * self.cos) / TWO_PI
        self.cos1 = (unit @ unit.mT).clamp(-1.0, 1.0)
        left = unit[:, :, None] - self.cos1[..., None] * unit[:, :, :, None]
        size, unit2 = _normalized(left, _COLLINEAR)  # (B, c, e, x, dim)
        aligned = size == 0
        self.same1 = aligned & (self.cos1 > 0)
        self.opposed1 = aligned & (self.cos1 < 0)
        self.pair2 = _probability(unit2 @ unit2.mT)

    def any_opposed(self, quads: Tensor) -> Tensor:
        """Return which quadruples hold two opposite vectors: their moment is zero."""
        i, j, a, b = quads
        first = torch.cat([i, a, i, i, j, j]).view(6, -1)
        second = torch.cat([j, b, a, b, a, b]).view(6, -1)
        return self.opposed[:, first, second].any(1)

    def first_order(self, rows: Tensor, c: Tensor, b: Tensor, i: Tensor) -> Tensor:
        """Return E[ReLU(u_b) 1_i | u_c = 0]."""
        return _DENSITY / 2 * self.sin[rows, c, b] * (1 + self.cos1[rows, c, b, i])

    def triple(self, rows: Tensor, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Return P(u_x, u_y, u_z > 0)."""
        first, second = torch.stack([x, x, y]), torch.stack([y, z, z])
        return self.pair[rows, first, second].sum(0) / 2 - 0.25

    def three(self, rows: Tensor, i: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return E[1_i ReLU(u_a) ReLU(u_b)], three different variables."""
        given, other = torch.stack([a, i]), torch.stack([i, a])
        ends = self.first_order(rows, given, b.expand_as(given), other)
        return self.cos[rows, a, b] * self.triple(rows, i, a, b) + _DENSITY * (
            ends[0] + self.cos[rows, a, i] * ends[1]
        )

    def two_indicators_one_square(
        self, rows: Tensor, i: Tensor, j: Tensor, a: Tensor
    ) -> Tensor:
        """Return E[1_i 1_j ReLU(u_a)²], three different variables."""
        given, other = torch.stack([i, j]), torch.stack([j, i])
        ends = self.first_order(rows, given, a.expand_as(given), other)
        ends = self.cos[rows, a, given] * ends
        return self.triple(rows, i, j, a) + _DENSITY * ends.sum(0)

    def second_order(
        self, rows: Tensor, c: Tensor, b: Tensor, i: Tensor, j: Tensor
    ) -> Tensor:
        """Return E[ReLU(u_b) 1_i 1_j | u_c = 0]."""
        x, y, z = torch.stack([b, i, j]), torch.stack([i, b, b]), torch.stack([j, j, i])
        pair = self.pair2[rows, c, x, y, z]  # given u_c = u_x = 0
        first, second = torch.stack([b, b, i]), torch.stack([i, j, j])
        cos = self.cos1[rows, c, first, second]
        same = self.same1[rows, c, first, second]
        opposed = self.opposed1[rows, c, first, second].any(0)
        size = _DENSITY * self.sin[rows, c, b]
        # Aligned given u_c = 0: an indicator is redundant.
        value = torch.where(
            same[0],
            (1 + cos[1]) / 2,
            torch.where(
                same[1] | same[2],
                (1 + cos[0]) / 2,
                pair[0] + cos[0] * pair[1] + cos[1] * pair[2],
            ),
        )
        return torch.where(opposed, 0.0, size * value)

    def four(self, rows: Tensor, i: Tensor, j: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return E[1_i 1_j ReLU(u_a) ReLU(u_b)], four different variables."""
        given = torch.stack([a, i, j])
        ends = self.second_order(
            rows,
            given,
            b.expand_as(given),
            torch.stack([i, a, a]),
            torch.stack([j, j, i]),
        )
        ends = self.cos[rows, a, given] * ends  # cos(a, a) = 1
        return self.cos[rows, a, b] * self.orthant(
            rows, i, j, a, b
        ) + _DENSITY * ends.sum(0)

    def orthant(
        self, rows: Tensor, i: Tensor, j: Tensor, a: Tensor, b: Tensor
    ) -> Tensor:
        """Return P(u_i, u_j, u_a, u_b > 0) by scaling the cross covariances from 0."""
        base = self.pair[rows, i, j] * self.pair[rows, a, b]
        # One row a pair (c, e) across; c' and e' are the others of their blocks.
        c, e = torch.stack([i, i, j, j]), torch.stack([a, b, a, b])
        c_, e_ = torch.stack([j, j, i, i]), torch.stack([b, a, b, a])
        cross = torch.stack(
            [
                self.cos[rows, c, e],
                self.sin[rows, c, e],
                self.cos1[rows, c, c_, e],
                self.cos1[rows, e, e_, c],
                (self.unit[rows, c, c_] * self.unit[rows, e, e_]).sum(-1),
            ]
        )
        coarse, value = _quadrature(cross, _FIRST_NODES)
        todo = ((value - coarse).abs() > _CHANGE).nonzero()[:, 0]
        nodes = 2 * _FIRST_NODES
        while len(todo) and nodes < _LAST_NODES:
            coarse, finer = _quadrature(cross[:, :, todo], nodes)
            value[todo] = finer
            todo = todo[(finer - coarse).abs() > _CHANGE]
            nodes *= 2
        return base + value


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)
def _rule(nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return 1 - t = (1 - x)², t and two columns of weights, smooth in √(1 - t).

    The points of the rules with `nodes` and twice as many, one column each.
    """
    lefts, columns = [], []
    for at, n in enumerate((nodes, 2 * nodes)):
        x, w = np.polynomial.legendre.leggauss(n)
        lefts.append((1 - x) / 2)
        columns.append(np.zeros((n, 2)))
        columns[-1][:, at] = lefts[-1] * w
    left = torch.from_numpy(np.concatenate(lefts))
    return left**2, 1 - left**2, torch.from_numpy(np.concatenate(columns))


def _quadrature(cross: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Integrate dP/dt over the scale t of the covariances across the blocks.

    Returns the integral by `nodes` Gauss-Legendre nodes and by twice as many.

    With ĉ' the unit remainder of c' given c, and ê' of e' given e, dP/dt is the sum
    over pairs (c, e) of cos / (2π √Δ) P(ĉ', ê' > 0 | c = e = 0), Δ = 1 - t² cos². Given
    c = e = 0 they have variances 1 - α²/Δ, 1 - β²/Δ and covariance tm + t cos αβ/Δ:
    nothing here cancels when two of the variables are nearly aligned.

    Args:
        cross: cos and sin of (c, e), k = cos(ĉ', e | c), l = cos(ê', c | e), m = ĉ'·ê',
            with α = t sin k and β = t sin l, (5, 4, N).
        nodes: Number of nodes of the coarser rule.
    """
    below, t, weights = (x.to(cross) for x in _rule(nodes))
    cos, sin, k, last, m = cross[..., None].unbind(0)  # (4, N, 1)
    rest, square = below * (1 + t), (t * sin).square()
    delta = rest + square
    # Variances and covariance times Δ.
    var_c = rest + square * (1 - k) * (1 + k)
    var_e = rest + square * (1 - last) * (1 + last)
    cov = t * (m * delta + cos * square * k * last)
    sine = (var_c * var_e - cov * cov).clamp_min(0).sqrt()
    pair = (math.pi - torch.atan2(sine, cov)) / TWO_PI
    integrand = cos / (TWO_PI * delta.sqrt()) * pair
    coarse, fine = (integrand.sum(0) @ weights).unbind(-1)
    return coarse, fine
