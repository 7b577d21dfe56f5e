"""The end of a descent: Newton steps, and the proof that a point is a minimum.

Newton steps use Cholesky factors where the Hessian is positive definite. What this
does not settle goes to a trust-region Newton method with exact subproblems (J. Moré
and D. Sorensen, "Computing a Trust Region Step", 1983) on eigendecompositions.
"""

import math

import torch
from torch import Tensor

from thalweg.solvable.two_layer_relu.derivatives import Curvature
from thalweg.solvable.two_layer_relu.kernel import loss as exact_loss

_NEWTON_STEPS = 8
_TRUST_STEPS = 120
_CHUNK = 2**20  # entries of the Hessians that are worked on together
_NULL = 1e-8


def tolerance(largest: Tensor) -> Tensor:
    """Return τ = 1e-8 max(1, λ_max), below which an eigenvalue counts as zero."""
    return _NULL * largest.clamp_min(1.0)


def chunks(W: Tensor) -> tuple[Tensor, ...]:
    """Split (B, K, d) so that the Hessians of one part fit in about 8 MB."""
    return W.split(max(1, _CHUNK // (W.shape[1] * W.shape[2]) ** 2))


def certify(W: Tensor, V: Tensor, *, fresh: bool) -> Tensor:
    """Return which of the students (B, K, d) are proved strict minima.

    The proof is a Cholesky factor of H - τI, and of S - τI where the input space has
    directions outside span(V, W) (`fresh`), with τ = 1e-8 max(1, trace), an upper bound
    of the τ of `tolerance`. False means not proved.
    """
    proofs = [_proof(part, V, fresh) for part in chunks(W)]
    return torch.cat(proofs)


def _proof(W: Tensor, V: Tensor, fresh: bool) -> Tensor:
    curvature = Curvature(W, V)
    proved = _positive(curvature.dense())
    return proved & _positive(curvature.S) if fresh else proved


def _positive(matrix: Tensor) -> Tensor:
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    tau = tolerance(diagonal.sum(-1))
    diagonal.sub_(tau[:, None])
    return torch.linalg.cholesky_ex(matrix).info == 0


def newton_polish(
    W: Tensor, V: Tensor, tol: float, loss_tol: float
) -> tuple[Tensor, Tensor]:
    """Return (W, gradient norms) after Newton steps on each student of (B, K, d).

    First plain Newton steps as long as the Hessian is positive definite and the
    gradient norm falls; what is left, trust-region steps that are exact minimizers
    of the quadratic model in a ball, also where the Hessian is indefinite or singular.
    Those are accepted on the loss where the model predicts a decrease above 1e-13,
    else on the gradient norm. Rows stop at gradient norm `tol` or loss `loss_tol`.
    """
    parts = []
    for part in chunks(W):
        x, norm = _newton(part, V, tol)
        rest = (norm > tol).nonzero()[:, 0]
        if len(rest):
            x[rest], norm[rest] = trust_region(x[rest], V, tol, loss_tol)
        parts.append((x, norm))
    return torch.cat([x for x, _ in parts]), torch.cat([norm for _, norm in parts])


def _newton(W: Tensor, V: Tensor, tol: float) -> tuple[Tensor, Tensor]:
    x = W.clone()
    curvature = Curvature(x, V)
    gradient = curvature.gradient().flatten(1)
    norm = gradient.norm(dim=1)
    live = (norm > tol).nonzero()[:, 0]
    for _ in range(_NEWTON_STEPS):
        if not len(live):
            break
        factor, failed = torch.linalg.cholesky_ex(Curvature(x[live], V).dense())
        step = torch.cholesky_solve(gradient[live][..., None], factor)
        trial = x[live] - step.view(-1, *W.shape[1:])
        new_gradient = Curvature(trial, V).gradient().flatten(1)
        new = new_gradient.norm(dim=1)
        better = (failed == 0) & (new < norm[live])
        rows = live[better]
        x[rows], norm[rows] = trial[better], new[better]
        gradient[rows] = new_gradient[better]
        live = rows[norm[rows] > tol]
    return x, norm


def trust_region(
    W: Tensor,
    V: Tensor,
    tol: float,
    loss_tol: float = -math.inf,
    basis: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (W, gradient norms) after trust-region Newton steps from (B, K, d).

    With `basis`, orthonormal columns (K d, n), the steps stay in W + span(basis) and
    the gradient is the projected one.
    """
    K, d = W.shape[1:]

    def gradient_of(curvature: Curvature) -> Tensor:
        full = curvature.gradient().flatten(1)
        return full if basis is None else full @ basis

    def eigen_of(curvature: Curvature) -> tuple[Tensor, Tensor]:
        H = curvature.dense()
        return torch.linalg.eigh(H if basis is None else basis.mT @ H @ basis)

    x = W.flatten(1).clone()
    value = exact_loss(W, V)
    here = Curvature(W, V)
    gradient = gradient_of(here)
    eigenvalues, vectors = eigen_of(here)
    radius = torch.full_like(value, 0.1)
    for _ in range(_TRUST_STEPS):
        norm = gradient.norm(dim=-1)
        live = ((norm > tol) & (value > loss_tol)).nonzero()[:, 0]
        if not len(live):
            break
        slope = (vectors[live].mT @ gradient[live][..., None])[..., 0]
        lam, bound = eigenvalues[live], radius[live]
        coefficients = _ball_step(lam, slope, bound)
        predicted = (coefficients * (slope + lam * coefficients / 2)).sum(-1)
        step = (vectors[live] @ coefficients[..., None])[..., 0]
        trial = x[live] + (step if basis is None else step @ basis.mT)
        weights = trial.view(-1, K, d)
        curvature = Curvature(weights, V)
        new_gradient = gradient_of(curvature)
        new_value = exact_loss(weights, V)
        ratio = (new_value - value[live]) / predicted.clamp_max(-1e-300)
        tiny = predicted > -1e-13
        smaller = new_gradient.norm(dim=-1) <= norm[live]
        accepted = torch.where(tiny, smaller, ratio > 1e-3)
        good = torch.where(tiny, smaller, ratio > 0.75)
        length = coefficients.norm(dim=-1)
        radius[live] = torch.where(
            good,
            torch.maximum(bound, 2 * length),
            torch.where(accepted & (ratio > 0.25), bound, length / 4),
        )
        rows = live[accepted]
        if not len(rows):
            if bool((radius[live] < 1e-14).all()):
                break
            continue
        x[rows], value[rows] = trial[accepted], new_value[accepted]
        gradient[rows] = new_gradient[accepted]
        eigenvalues[rows], vectors[rows] = eigen_of(Curvature(weights[accepted], V))
    return x.view(-1, K, d), gradient.norm(dim=-1)


def _ball_step(lam: Tensor, slope: Tensor, radius: Tensor) -> Tensor:
    """Minimize slope·c + ½ Σ λ c² over |c| <= radius, by rows.

    c = -slope / (λ + μ) with μ >= max(0, -λ_min) the root of |c(μ)| = radius, found by
    safeguarded Newton steps on 1/|c|. In the hard case the lowest eigenvector fills
    the ball.
    """
    null = 1e-11 * lam[:, -1:].clamp_min(1.0)
    floor = (-lam[:, 0]).clamp_min(0.0)

    def solve(mu: Tensor) -> Tensor:
        bottom = lam + mu[:, None]
        # In the null space of a semi-definite Hessian there is nothing to gain.
        return torch.where(bottom > null, -slope / bottom.clamp_min(null), 0.0)

    step = solve(floor)
    inside = (step.norm(dim=1) <= radius) & (lam[:, 0] > -null[:, 0])
    low, high = floor, floor + slope.norm(dim=1) / radius + null[:, 0]
    mu = high.clone()
    for _ in range(60):
        step = solve(mu)
        norm = step.norm(dim=1).clamp_min(1e-300)
        low = torch.where(norm > radius, torch.maximum(low, mu), low)
        high = torch.where(norm <= radius, torch.minimum(high, mu), high)
        weight = (step.square() / (lam + mu[:, None]).clamp_min(null)).sum(1)
        newton = mu + (norm - radius) / radius * norm.square() / weight.clamp_min(
            1e-300
        )
        usable = (newton > low) & (newton < high)
        mu = torch.where(usable, newton, (low + high) / 2)
    boundary = solve(mu)
    missing = (radius.square() - boundary.square().sum(1)).clamp_min(0.0).sqrt()
    hard = (missing > 1e-3 * radius) & (lam[:, 0] < -null[:, 0])
    toward = torch.where(slope[:, 0] > 0, -1.0, 1.0)
    boundary[:, 0] += torch.where(hard, toward * missing, 0.0)
    return torch.where(inside[:, None], solve(torch.zeros_like(mu)), boundary)
