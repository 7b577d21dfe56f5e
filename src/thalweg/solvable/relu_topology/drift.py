"""How discrete steps, momentum, decay and noise move what gradient flow conserves."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from thalweg.errors import InputError
from thalweg.solvable.relu_topology.conservation import Array


@dataclass(frozen=True)
class DriftHistory:
    """What SGD did to the two layers of a network, step by step.

    Δ<a, b> stands for <a1, b1> - kappa <a2, b2>, neuron by neuron, the hidden bias
    among the entries of a1; g is the gradient of the loss without decay, v torch's
    momentum buffer after the step. `Monitor(..., drift=True)` records one.

    Attributes:
        c: Observed invariants before the first step and after each.
        gradient: Δ|g|² of each step.
        velocity: Δ|v|² of each step; equal to `gradient` without momentum.
        mixed: Δ<g, v> of each step.
        lr: Learning rate of each step.
        momentum: Its momentum.
        dampening: Its dampening.
        weight_decay: Its coupled (L2) decay, the same for both layers.
        nesterov: Whether the momentum is Nesterov's.
    """

    c: Float[np.ndarray, "times neurons"]
    gradient: Float[np.ndarray, "steps neurons"]
    velocity: Float[np.ndarray, "steps neurons"]
    mixed: Float[np.ndarray, "steps neurons"]
    lr: Float[np.ndarray, " steps"]
    momentum: Float[np.ndarray, " steps"]
    dampening: Float[np.ndarray, " steps"]
    weight_decay: Float[np.ndarray, " steps"]
    nesterov: bool = False


def predict_drift(history: DriftHistory) -> Float[np.ndarray, "times neurons"]:
    """Return the invariants that the steps lead to, from c before the first alone.

    Δ<w, g> = 0 turns every step into a recursion of its squared norms:
    c' = (1 - eta lambda)² c + eta² Δ|g|² without momentum; with it
    c' = c - 2 eta a + eta² Δ|v|², where a = Δ<w, v'> follows from its value before.
    Exact: what differs from `history.c` is rounding, or the law does not hold (a
    gradient of something else than a function of the network's output, an activation
    that is not homogeneous, another optimizer). O(steps · neurons).
    Source: D. Kunin et al., "Neural mechanics: symmetry and broken conservation laws
    in deep learning dynamics" (2021), for the steps; the recursion is our own.
    """
    c = np.empty_like(history.c)
    c[0] = history.c[0]
    inner = np.zeros_like(c[0])  # Δ<w, v> at the weights before the step
    for k, eta in enumerate(history.lr):
        beta, decay = history.momentum[k], history.weight_decay[k]
        g, v, mixed = history.gradient[k], history.velocity[k], history.mixed[k]
        if beta == 0:
            c[k + 1] = (1 - eta * decay) ** 2 * c[k] + eta**2 * g
            continue
        share = 1.0 if k == 0 else 1 - history.dampening[k]  # torch starts at v = g
        a = beta * inner + share * decay * c[k]
        along, length, with_v = a, v, v  # of the step u: Δ<w, u>, Δ|u|², Δ<u, v>
        if history.nesterov:  # u = g + decay w + beta v
            with_v = mixed + decay * a + beta * v
            along = decay * c[k] + beta * a
            length = g + decay**2 * c[k] + beta * (mixed + decay * a + with_v)
        c[k + 1] = c[k] - 2 * eta * along + eta**2 * length
        inner = a - eta * with_v
    return c


def drift_rate(
    gradient: Array,
    noise: Array | None = None,
    *,
    lr: float,
    momentum: float = 0.0,
    batch_size: int = 1,
) -> np.ndarray:
    """Return dc/dt of SGD to leading order in the step, at t = lr · k / (1 - momentum).

    lr ((1 + b) / (1 - b)² Δ|g|² + Δ tr Cov g / ((1 - b) B)) with momentum b: the mean
    gradient is amplified by 190 at b = 0.9, the noise by 10.

    Args:
        gradient: Δ|g|² = |g1|² - kappa |g2|² of the mean gradient, by neuron.
        noise: Δ tr Cov g of the gradients of single examples; None for full batches.
        lr: Learning rate.
        momentum: Heavy-ball momentum, without dampening.
        batch_size: B, of examples drawn independently.

    Raises:
        InputError: lr not positive, momentum not in [0, 1), or batch_size below 1.
    """
    if not lr > 0 or not 0 <= momentum < 1 or batch_size < 1:
        raise InputError(
            "lr must be positive, momentum in [0, 1) and batch_size at least 1, got "
            f"{lr}, {momentum} and {batch_size}"
        )
    rate = (1 + momentum) / (1 - momentum) ** 2 * np.asarray(gradient, np.float64)
    if noise is not None:
        rate = rate + np.asarray(noise, np.float64) / ((1 - momentum) * batch_size)
    return np.asarray(lr * rate)


def decayed(c: Array, weight_decay: float, time: float) -> np.ndarray:
    """Return c e^(-2 λ t): the invariants under gradient flow with weight decay λ.

    The sign of c stays, and |w2| >= sqrt(|c|) e^(-λ t) > 0 on a sign-locked neuron:
    decay makes the barrier exponentially thin and never removes it. Discrete steps
    then take over, see `decay_time`. Holds where both layers have the same decay.

    Raises:
        InputError: weight_decay or time negative.
    """
    if weight_decay < 0 or time < 0:
        raise InputError(
            f"weight_decay and time must be at least 0, got {weight_decay} and {time}"
        )
    return np.asarray(np.asarray(c, np.float64) * math.exp(-2 * weight_decay * time))


def decay_time(c: Array, *, lr: float, weight_decay: float) -> np.ndarray:
    """Return log(|c| / lr) / (2 λ): when decay has thinned |c| to the step's drift.

    From about then on the O(lr) drift of discrete steps, or noise, decides the class
    of the neuron, and c may even change its sign. Time is lr times steps; 0 where |c|
    is below lr already.

    Raises:
        InputError: lr or weight_decay not positive.
    """
    if not lr > 0 or not weight_decay > 0:
        raise InputError(
            f"lr and weight_decay must be positive, got {lr} and {weight_decay}"
        )
    ratio = np.abs(np.asarray(c, np.float64)) / lr
    return np.log(np.maximum(ratio, 1.0)) / (2 * weight_decay)
