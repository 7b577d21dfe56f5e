"""The ordinary differential equations of one-pass SGD in high dimension.

With w_i ← w_i - (η/d) e 1[w_i·x > 0] x and time t = step / d, the overlaps Q = WWᵀ and
R = WVᵀ follow, as d → ∞ at fixed K and M,

    dR/dt = -η (SR - BP),  dQ/dt = -η (Γ + Γᵀ) + η² N,  Γ = SQ - BRᵀ,
    N_ij = E[e² 1_i 1_j] = Δ A_ij + Σ_ab ± J(i, j; a, b).

Sources: D. Saad and S. Solla, "On-line learning in soft committee machines", 1995;
S. Goldt et al., "Dynamics of stochastic gradient descent for two-layer neural networks
in the teacher-student setup", 2019; M. Straat and M. Biehl, "On-line learning dynamics
of ReLU neural networks using statistical physics techniques", 2019.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from thalweg.errors import InputError
from thalweg.solvable.two_layer_relu.angles import overlap_angles
from thalweg.solvable.two_layer_relu.checks import joint
from thalweg.solvable.two_layer_relu.kernel import TWO_PI, loss_of_overlaps
from thalweg.solvable.two_layer_relu.moments import moments

Method = Literal["rk4", "rk45"]

_PSD = 1e-8
_RTOL, _ATOL = 1e-8, 1e-11
_SHORTEST = 1e-12
# Dormand and Prince, "A family of embedded Runge-Kutta formulae", 1980.
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)

State = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class OverlapTrajectory:
    """Overlaps and test loss at the recorded times.

    Attributes:
        times: (n,), in units of step / d; of gradient-flow time without noise.
        Q: (..., n, K, K); R: (..., n, K, M); P: (M, M).
        loss: L(Q, R, P), without the label noise's Δ/2, (..., n).
    """

    times: Tensor
    Q: Tensor
    R: Tensor
    P: Tensor
    loss: Tensor


@dataclass(frozen=True)
class OverlapFlow:
    """The right-hand side of the equations.

    Args:
        P: Teacher overlaps (M, M).
        eta: Learning rate η.
        delta: Variance Δ of the label noise.
        noise: Keep the η² N term; without it time is rescaled by η and the flow is
            the gradient flow dW/dt = -∇L.
    """

    P: Tensor
    eta: float = 1.0
    delta: float = 0.0
    noise: bool = True

    def __call__(self, Q: Tensor, R: Tensor) -> State:
        """Return (dQ/dt, dR/dt).

        Raises:
            InputError: The overlaps are not finite.
        """
        K = len(Q)
        sigma = joint(Q, R, self.P)
        if not bool(torch.isfinite(sigma).all()):
            raise InputError("step is too long: the overlaps are no longer finite")
        square = sigma.diagonal()
        s, theta = overlap_angles(square[:K], square, sigma[:K])
        angular = (math.pi - theta) / TWO_PI
        A, B = angular[:, :K], angular[:, K:]
        c = (s[:, :K].sum(1) - s[:, K:].sum(1)) / (TWO_PI * square[:K])
        S = A + torch.diag(c)
        gamma = S @ Q - B @ R.mT
        dQ, dR = -(gamma + gamma.mT), B @ self.P - S @ R
        if not self.noise:
            return dQ, dR
        return self.eta * dQ + self.eta**2 * self.noise_term(sigma, A), self.eta * dR

    def noise_term(self, sigma: Tensor, A: Tensor) -> Tensor:
        """Return N = E[e² 1_i 1_j] of shape (K, K)."""
        K = len(A)
        sign = torch.ones(len(sigma), dtype=sigma.dtype, device=sigma.device)
        sign[K:] = -1
        return self.delta * A + moments(sigma, K) @ sign @ sign


def check_rates(eta: float, delta: float, t_max: float) -> None:
    """Refuse a learning rate, a noise or a time that makes no sense.

    Raises:
        InputError: eta <= 0, delta < 0, t_max <= 0, or one of them is not finite.
    """
    if not 0 < eta < math.inf:
        raise InputError(f"eta must be positive and finite, got {eta}")
    if not 0 <= delta < math.inf:
        raise InputError(f"delta must be finite and not negative, got {delta}")
    if not 0 < t_max < math.inf:
        raise InputError(f"t_max must be positive and finite, got {t_max}")


def record_times(record: int | Iterable[float], t_max: float) -> Tensor:
    """Return sorted distinct times in [0, t_max]; a number means that many, evenly.

    Raises:
        InputError: A time is outside, or fewer than two evenly spaced are asked for.
    """
    if isinstance(record, int):
        if record < 2:
            raise InputError(f"record must be at least 2 times, got {record}")
        return torch.linspace(0, t_max, record, dtype=torch.float64)
    times = torch.as_tensor(sorted(set(map(float, record))), dtype=torch.float64)
    if not len(times) or float(times[0]) < 0 or float(times[-1]) > t_max:
        raise InputError(f"record must be times in [0, {t_max}], got {times.tolist()}")
    return times


def integrate(
    flow: OverlapFlow,
    Q: Tensor,
    R: Tensor,
    t_max: float,
    *,
    record: int | Iterable[float] = 101,
    method: Method = "rk4",
    step: float | None = None,
) -> OverlapTrajectory:
    """Integrate the overlaps to `t_max`, recording at `record`.

    Args:
        flow: Right-hand side.
        Q: Initial student overlaps (K, K).
        R: Initial student-teacher overlaps (K, M).
        t_max: Final time.
        record: Times, or how many evenly spaced ones; duplicates are merged.
        method: "rk4" with a fixed step, 0.05 / η by default (0.05 without noise), or
            "rk45", Dormand-Prince with relative tolerance 1e-8.
        step: Fixed step, or the first one of "rk45".

    Raises:
        InputError: The state left the cone of overlaps: Q - R P⁺ Rᵀ has an eigenvalue
            below -1e-8 (the step is too long), or an option cannot be used.
    """
    if method not in ("rk4", "rk45"):
        raise InputError(f'method must be "rk4" or "rk45", got {method!r}')
    rate = flow.eta if flow.noise else 1.0
    step = 0.05 / rate if step is None else step
    if not step > 0:
        raise InputError(f"step must be positive, got {step}")
    times = record_times(record, t_max)
    pseudo = torch.linalg.pinv(flow.P)
    advance = _Fixed(flow, step) if method == "rk4" else _Adaptive(flow, step)
    now, state = 0.0, (Q, R)
    kept: list[State] = []
    with torch.inference_mode():  # a fifth faster: these tensors are small
        for target in times.tolist():
            while target - now > _SHORTEST * max(1.0, target):
                done, state = advance(state, target - now)
                now += done
                state = _projected(state, pseudo, now)
            kept.append(state)
    Qs, Rs = (torch.stack(part) for part in zip(*kept, strict=True))
    return OverlapTrajectory(
        times, Qs, Rs, flow.P, loss_of_overlaps(Qs, Rs, flow.P.expand(len(Qs), -1, -1))
    )


def _projected(state: State, pseudo: Tensor, now: float) -> State:
    """Symmetrize Q and clip what is negative of Q - R P⁺ Rᵀ by rounding."""
    Q, R = state
    Q = (Q + Q.mT) / 2
    inside = R @ pseudo @ R.mT
    inside = (inside + inside.mT) / 2
    values, vectors = torch.linalg.eigh(Q - inside)
    lowest = float(values[0])
    if not lowest >= -_PSD:
        raise InputError(
            f"step is too long: at t = {now:.4g} Q - R P⁺ Rᵀ has the eigenvalue "
            f"{lowest:.1e} and is no Gram matrix"
        )
    if lowest < 0:
        Q = inside + (vectors * values.clamp_min(0.0)) @ vectors.mT
        Q = (Q + Q.mT) / 2
    return Q, R


def _moved(state: State, slopes: list[State], weights: Iterable[float]) -> State:
    """Return state + Σ weight slope."""
    Q, R = state
    for (dQ, dR), weight in zip(slopes, weights, strict=True):
        if weight:
            Q, R = Q + weight * dQ, R + weight * dR
    return Q, R


@dataclass
class _Fixed:
    """Classical Runge-Kutta steps of one length, shortened to end at the target."""

    flow: Callable[[Tensor, Tensor], State]
    step: float

    def __call__(self, state: State, left: float) -> tuple[float, State]:
        h = left / math.ceil(left / self.step - 1e-9)
        slopes = [self.flow(*state)]
        for part in (h / 2, h / 2, h):
            slopes.append(self.flow(*_moved(state, slopes[-1:], [part])))
        return h, _moved(state, slopes, [h / 6, h / 3, h / 3, h / 6])


@dataclass
class _Adaptive:
    """Dormand-Prince steps whose error estimate stays below the tolerance."""

    flow: Callable[[Tensor, Tensor], State]
    step: float

    def __call__(self, state: State, left: float) -> tuple[float, State]:
        first = self.flow(*state)
        while True:
            h = min(self.step, left)
            slopes = [first]
            for stage in _STAGES:
                new = _moved(state, slopes, [h * weight for weight in stage])
                slopes.append(self.flow(*new))
            zero = torch.zeros_like(state[0]), torch.zeros_like(state[1])
            error = _moved(zero, slopes, [h * weight for weight in _ERROR])
            ratio = max(
                float(
                    (e.abs() / (_ATOL + _RTOL * torch.maximum(x.abs(), y.abs()))).max()
                )
                for e, x, y in zip(error, state, new, strict=True)
            )
            factor = 0.9 * max(ratio, 1e-10) ** -0.2 if math.isfinite(ratio) else 0.2
            factor = min(5.0, max(0.2, factor))
            if ratio <= 1:
                # A step cut short by the target says nothing about the next one.
                self.step = max(self.step, h * factor) if h < self.step else h * factor
                return h, new
            self.step = h * factor
            if self.step < _SHORTEST:
                raise InputError(
                    "step fell below 1e-12: the flow is not smooth here (a neuron "
                    "reaches zero)"
                )
