"""The best convex fit of data, as a convex program with a dual certificate."""

from dataclasses import dataclass

import numpy as np

_ITERATIONS = 60


@dataclass(frozen=True)
class Squares:
    """½ (z - y)²."""

    y: np.ndarray

    def value(self, z: np.ndarray) -> np.ndarray:
        """Return the loss of each output."""
        return (z - self.y) ** 2 / 2

    def slope(self, z: np.ndarray) -> np.ndarray:
        """Return its derivative."""
        return z - self.y

    def curvature(self, z: np.ndarray) -> np.ndarray:
        """Return its second derivative."""
        return np.ones_like(z)

    def least(self, slope: np.ndarray) -> np.ndarray:
        """Return min over z of loss(z) - slope z."""
        return -(slope**2) / 2 - slope * self.y

    def scale(self, slope: np.ndarray) -> float:
        """Return the largest factor, up to 1, at which `least` is finite."""
        return 1.0


@dataclass(frozen=True)
class Logistic:
    """log(1 + exp(-y z)) of labels y = -1 and +1."""

    y: np.ndarray

    def value(self, z: np.ndarray) -> np.ndarray:
        """Return the loss of each output."""
        return np.logaddexp(0, -self.y * z)

    def slope(self, z: np.ndarray) -> np.ndarray:
        """Return its derivative."""
        return -self.y * np.exp(-np.logaddexp(0, self.y * z))

    def curvature(self, z: np.ndarray) -> np.ndarray:
        """Return its second derivative."""
        p = np.abs(self.slope(z))
        return p * (1 - p)

    def least(self, slope: np.ndarray) -> np.ndarray:
        """Return min over z of loss(z) - slope z: the entropy of -y slope."""
        from scipy.special import entr

        t = np.clip(-self.y * slope, 0.0, 1.0)
        return np.where(self.y * slope > 0, -np.inf, entr(t) + entr(1 - t))

    def scale(self, slope: np.ndarray) -> float:
        """Return the largest factor, up to 1, at which `least` is finite."""
        return min(1.0, 1.0 / max(float(np.max(-self.y * slope)), 1e-300))


Loss = Squares | Logistic


def convex_fit(x: np.ndarray, loss: Loss, *, nonnegative: bool) -> tuple[float, float]:
    """Return a lower bound on the mean loss of convex homogeneous z, and its gap.

    Minimizes over slopes g_i, with z_i = <g_i, x_i>, under z_j >= <g_i, x_j> and, if
    asked, z >= 0, by a primal-dual interior-point method (Mehrotra). The value is that
    of the dual, at multipliers corrected to be feasible to rounding; the gap to the
    primal is relative to the loss of z = 0. With a last column of ones in x, z is any
    convex function. O((n d)³) a step.
    """
    zero = float(np.mean(loss.value(np.zeros(len(x)))))
    if zero == 0:
        return 0.0, 0.0
    primal, dual = _solve(_Program(x, loss, nonnegative), zero)
    return max(dual, 0.0), max(primal - dual, 0.0) / zero


class _Program:
    """Constraints A g >= 0 of the fit, kept as their n x n structure.

    Slack [i, j] is <g_j, x_j> - <g_i, x_j>; its diagonal, zero otherwise, serves the
    constraints z_j >= 0.
    """

    def __init__(self, x: np.ndarray, loss: Loss, nonnegative: bool):
        self.x, self.loss, self.n = x, loss, len(x)
        self.active = ~np.eye(self.n, dtype=bool)
        if nonnegative:
            self.active |= np.eye(self.n, dtype=bool)
        size = np.sum(x**2, 1, keepdims=True)
        self.along = np.divide(x, size, out=np.zeros_like(x), where=size > 0)

    def slack(self, g: np.ndarray) -> np.ndarray:
        values = g @ self.x.T
        diagonal = np.diag(values)
        return diagonal[None] - values + np.diag(diagonal)

    def adjoint(self, duals: np.ndarray) -> np.ndarray:
        own = duals.sum(0) + np.diag(duals)
        return own[:, None] * self.x - duals @ self.x

    def across(self, rows: np.ndarray) -> np.ndarray:
        """Return what of each row is orthogonal to its example."""
        return rows - np.sum(rows * self.along, 1)[:, None] * self.x

    def normal(self, weights: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Return own x xᵀ on the diagonal blocks + Aᵀ diag(weights) A."""
        n, d = self.x.shape
        outer = self.x[:, :, None] * self.x[:, None]
        off = weights * ~np.eye(n, dtype=bool)
        blocks = np.zeros((n, d, n, d))
        pairs = off[:, :, None, None] * outer[None]
        blocks -= pairs.transpose(0, 2, 1, 3)
        blocks -= pairs.transpose(1, 2, 0, 3)
        first = (own + off.sum(0) + np.diag(weights))[:, None, None] * outer
        first += np.einsum("ij,jab->iab", off, outer)
        rows = np.arange(n)
        blocks[rows, :, rows] += first
        return blocks.reshape(n * d, n * d)

    def bound(self, m: np.ndarray, g: np.ndarray) -> float:
        """Return the dual value at multipliers near m, a lower bound.

        For m >= 0 whose adjoint has rows along the examples, slope_i x_i / n, the
        Lagrangian is at least mean_i min_z loss_i(z) - slope_i z. What is across them
        is removed by the smallest change of m relative to m, a few times over; what
        rounding leaves of it, at most 1e-11, is charged with the slopes g.
        """
        for power in (2, 1, 1, 1):
            rest = self.across(self.adjoint(m))
            if np.abs(rest).max() <= 1e-16 * np.abs(m).sum():
                break
            weights = np.where(self.active, m, 0.0) ** power
            factor = _factor(self._across_normal(weights))
            for _ in range(3):
                shift = self.across(factor(rest.ravel()).reshape(rest.shape))
                m = m - weights * np.where(self.active, self.slack(shift), 0.0)
                rest = self.across(self.adjoint(m))
            m = np.maximum(m, 0.0)
        rows = self.adjoint(m)
        rest = self.across(rows)
        if np.abs(rest).max() > 1e-11 * np.abs(m).sum() * np.abs(self.x).max():
            return -np.inf
        slope = self.n * np.sum(rows * self.along, 1)
        value = np.mean(self.loss.least(self.loss.scale(slope) * slope))
        return float(value - np.abs(np.sum(rest * g, 1)).sum())

    def _across_normal(self, weights: np.ndarray) -> np.ndarray:
        """Return P Aᵀ diag(weights) A P + (1 - P), P taking what is across."""
        n, d = self.x.shape
        parallel = self.along[:, :, None] * self.x[:, None]
        across = np.eye(d) - parallel
        blocks = self.normal(weights, np.zeros(n)).reshape(n, d, n, d)
        blocks = np.einsum("iab,ibjc,jcd->iajd", across, blocks, across, optimize=True)
        rows = np.arange(n)
        size = np.einsum("iaia->i", blocks)
        size = np.maximum(size, 1e-30 * max(size.max(), 1e-200))
        blocks[rows, :, rows] += size[:, None, None] * parallel
        return blocks.reshape(n * d, n * d)


def _solve(program: _Program, zero: float) -> tuple[float, float]:
    """Return the best primal value and the best dual value."""
    x, loss, n, active = program.x, program.loss, program.n, program.active
    scale = np.sqrt(2 * zero)
    g = np.zeros_like(x)
    s = np.where(active, scale, 1.0)
    m = np.where(active, scale / n**2, 0.0)
    count = max(int(active.sum()), 1)
    best, primal, idle = -np.inf, np.inf, 0
    for _ in range(_ITERATIONS):
        z = np.sum(g * x, 1)
        gradient = loss.slope(z)[:, None] * x / n - program.adjoint(m)
        error = np.where(active, program.slack(g) - s, 0.0)
        mu = float(np.sum(s * m)) / count
        primal = float(np.mean(loss.value(z)))
        if mu * count <= 1e-3 * zero:
            found = program.bound(m, g)
            idle = 0 if found > best + 1e-12 * zero else idle + 1
            best = max(best, found)
            if primal - best <= 1e-11 * zero or idle == 6:
                break
        factor = _factor(
            program.normal(np.where(active, m / s, 0.0), loss.curvature(z) / n)
        )
        # Predictor without centering, then the corrector with its second-order term.
        ds, dm, dg = _step(program, factor, gradient, error, s, m, s * m)
        a = min(_reach(s, ds, active), _reach(m, dm, active))
        after = float(np.sum(((s + a * ds) * (m + a * dm))[active])) / count
        target = s * m + ds * dm - (after / mu) ** 3 * mu if mu > 0 else s * m
        ds, dm, dg = _step(program, factor, gradient, error, s, m, target)
        a = 0.995 * min(_reach(s, ds, active), _reach(m, dm, active))
        g, s, m = g + a * dg, s + a * ds, m + a * dm
    return primal, best


def _step(program, factor, gradient, error, s, m, complementarity):  # type: ignore[no-untyped-def]  # arrays of the loop above
    active = program.active
    weights = np.where(active, m / s, 0.0)
    pull = np.where(active, complementarity / s, 0.0)
    right = -gradient - program.adjoint(pull + weights * error)
    dg = factor(right.ravel()).reshape(gradient.shape)
    ds = np.where(active, program.slack(dg) + error, 0.0)
    return ds, -pull - weights * ds, dg


def _factor(matrix: np.ndarray):  # type: ignore[no-untyped-def]  # a solve: vector -> vector
    """Return a solve by Cholesky, equilibrated, shifted where it is singular."""
    from scipy.linalg import cho_factor, cho_solve

    diagonal = np.diag(matrix)
    scale = 1 / np.sqrt(np.maximum(diagonal, 1e-40 * diagonal.max()))
    matrix = scale[:, None] * matrix * scale
    shift = 1e-15
    while True:
        try:
            factors = cho_factor(matrix + shift * np.eye(len(matrix)))
            return lambda right: scale * cho_solve(factors, scale * right)
        except np.linalg.LinAlgError:
            shift *= 100


def _reach(values: np.ndarray, steps: np.ndarray, active: np.ndarray) -> float:
    """Return the longest step, up to 1, that keeps the values positive."""
    falling = active & (steps < 0)
    if not falling.any():
        return 1.0
    return min(1.0, float(np.min(-values[falling] / steps[falling])))
