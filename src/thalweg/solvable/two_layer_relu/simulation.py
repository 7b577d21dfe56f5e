"""One-pass SGD itself, in dimension d, for many seeds at once."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from thalweg.errors import InputError
from thalweg.seeding import normal
from thalweg.solvable.two_layer_relu.dynamics import (
    OverlapTrajectory,
    check_rates,
    record_times,
)
from thalweg.solvable.two_layer_relu.kernel import loss_of_overlaps

_BLOCK = 64  # steps whose samples are drawn together


def simulate_sgd(
    W: Tensor,
    V: Tensor,
    *,
    eta: float,
    delta: float,
    t_max: float,
    seeds: Sequence[int],
    record: int | Iterable[float] = 101,
) -> OverlapTrajectory:
    """Run w_i ← w_i - (η/d) e 1[w_i·x > 0] x with a fresh x ~ N(0, I_d) every step.

    e = Σ ReLU(w·x) - Σ ReLU(v·x) - √Δ ξ, and time is step / d. Only overlaps are kept.
    Cost 2 K d flops a step and seed, t_max d steps.

    Args:
        W: Start (K, d), the same for all seeds.
        V: Teacher (M, d).
        eta: Learning rate η.
        delta: Variance of the label noise.
        t_max: Final time.
        seeds: One run each; run s depends on s only.
        record: Times, or how many evenly spaced ones, rounded to whole steps;
            duplicates are merged.

    Raises:
        InputError: No seeds, or eta, delta, t_max or record cannot be used.
    """
    check_rates(eta, delta, t_max)
    if not len(seeds):
        raise InputError("seeds must hold at least one seed, got none")
    d = V.shape[1]
    steps = (record_times(record, t_max) * d).round().long().unique()
    wanted = set(steps.tolist())
    x = W.expand(len(seeds), *W.shape).clone()
    kept = []
    for step in range(int(steps[-1]) + 1):
        if step in wanted:
            kept.append((x @ x.mT, x @ V.mT))
        if step % _BLOCK == 0:
            draws = torch.stack(
                [normal((_BLOCK, d + 1), s, "sgd", step, like=V) for s in seeds], 1
            )
        sample, xi = draws[step % _BLOCK, :, :d], draws[step % _BLOCK, :, d]
        fields = torch.bmm(x, sample[..., None])[..., 0]
        error = fields.relu().sum(1) - (sample @ V.mT).relu().sum(1) - delta**0.5 * xi
        weights = (-eta / d) * error[:, None] * (fields > 0)
        x.baddbmm_(weights[..., None], sample[:, None])
    Q, R = (torch.stack(part, 1) for part in zip(*kept, strict=True))
    P = V @ V.mT
    M = len(V)
    return OverlapTrajectory(
        steps.double() / d,
        Q,
        R,
        P,
        loss_of_overlaps(Q, R, P.expand(*Q.shape[:2], M, M)),
    )
