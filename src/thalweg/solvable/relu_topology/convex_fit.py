"""The best convex fit of data, as a quadratic program with a dual certificate."""

import numpy as np

_ITERATIONS = 100


def convex_fit(
    x: np.ndarray, y: np.ndarray, *, nonnegative: bool
) -> tuple[float, float]:
    """Return a lower bound on ½ mean (z - y)² over convex homogeneous z, and its gap.

    Minimizes over slopes g_i, with z_i = <g_i, x_i>, under z_j >= <g_i, x_j> and, if
    asked, z >= 0, by a primal-dual interior-point method (Mehrotra). The value is that
    of the dual; the gap to the primal is relative to the loss of z = 0. With a last
    column of ones in x, z is any convex function. O((n d)³) a step.
    """
    program = _Program(x, y, nonnegative)
    primal, dual = _solve(program)
    zero = 0.5 * float(np.mean(y**2))
    if zero == 0:
        return 0.0, 0.0
    return max(dual, 0.0), max(primal - dual, 0.0) / zero


class _Program:
    """Constraints A g >= 0 of the fit, kept as their n x n structure.

    Slack [i, j] is <g_j, x_j> - <g_i, x_j>; its diagonal, zero otherwise, serves the
    constraints z_j >= 0.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, nonnegative: bool):
        self.x, self.y, self.n = x, y, len(y)
        self.active = ~np.eye(self.n, dtype=bool)
        if nonnegative:
            self.active |= np.eye(self.n, dtype=bool)

    def slack(self, g: np.ndarray) -> np.ndarray:
        values = g @ self.x.T
        diagonal = np.diag(values)
        return diagonal[None] - values + np.diag(diagonal)

    def adjoint(self, duals: np.ndarray) -> np.ndarray:
        own = duals.sum(0) + np.diag(duals)
        return own[:, None] * self.x - duals @ self.x

    def normal(self, weights: np.ndarray) -> np.ndarray:
        """Return x xᵀ / n on the diagonal blocks + Aᵀ diag(weights) A."""
        n, d = self.x.shape
        outer = self.x[:, :, None] * self.x[:, None]
        off = weights * ~np.eye(n, dtype=bool)
        blocks = np.zeros((n, d, n, d))
        pairs = off[:, :, None, None] * outer[None]
        blocks -= pairs.transpose(0, 2, 1, 3)
        blocks -= pairs.transpose(1, 2, 0, 3)
        own = (1 / n + off.sum(0) + np.diag(weights))[:, None, None] * outer
        own += np.einsum("ij,jab->iab", off, outer)
        rows = np.arange(n)
        blocks[rows, :, rows] += own
        return blocks.reshape(n * d, n * d)


def _solve(program: _Program) -> tuple[float, float]:
    """Return the best primal value and the best certified dual value."""
    x, y, n, active = program.x, program.y, program.n, program.active
    scale = max(float(np.abs(y).max()), 1e-300)
    g = np.zeros_like(x)
    s = np.where(active, scale, 1.0)
    m = np.where(active, scale / n**2, 0.0)
    count = int(active.sum())
    best, primal = -np.inf, np.inf
    for _ in range(_ITERATIONS):
        z = np.sum(g * x, 1)
        gradient = (z - y)[:, None] * x / n - program.adjoint(m)
        error = np.where(active, program.slack(g) - s, 0.0)
        mu = float(np.sum(s * m)) / max(count, 1)
        feasible = np.abs(gradient).max() * n <= 1e-9 * scale
        if feasible:
            best = max(best, float(np.mean(y**2 - z**2)) / 2)
        primal = float(np.mean((z - y) ** 2)) / 2
        if feasible and primal - best <= 1e-11 * scale**2:
            break
        weights = np.where(active, m / s, 0.0)
        factor = _factor(program.normal(weights))
        # Predictor without centering, then the corrector with its second-order term.
        ds, dm, dg = _step(program, factor, gradient, error, s, m, s * m)
        a = min(_reach(s, ds, active), _reach(m, dm, active))
        after = float(np.sum(((s + a * ds) * (m + a * dm))[active])) / max(count, 1)
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
    from scipy.linalg import cho_factor, cho_solve

    size = float(np.trace(matrix)) / len(matrix)
    shift = 1e-14 * size
    while True:
        try:
            factors = cho_factor(matrix + shift * np.eye(len(matrix)))
            return lambda right: cho_solve(factors, right)
        except np.linalg.LinAlgError:
            shift *= 100


def _reach(values: np.ndarray, steps: np.ndarray, active: np.ndarray) -> float:
    """Return the longest step, up to 1, that keeps the values positive."""
    falling = active & (steps < 0)
    if not falling.any():
        return 1.0
    return min(1.0, float(np.min(-values[falling] / steps[falling])))
