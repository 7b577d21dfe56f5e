"""Many small two-layer ReLU networks trained at once, by their own gradients."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thalweg.errors import InputError, StructureError

_LOSSES = ("mse", "logistic")


@dataclass(frozen=True)
class EnsembleRun:
    """Where the networks of an ensemble ended, and how they got there.

    Attributes:
        w1: Hidden weights at the end.
        w2: Output weights at the end.
        loss: Training loss at the end.
        steps: Steps at which the losses below were taken, from 0 to the last.
        losses: Training losses at these steps.
        lowest: Lowest training loss met before any step.
        flips: How often the sign of each output weight changed from step to step.
    """

    w1: Float[Tensor, "replicas neurons entries"]
    w2: Float[Tensor, "replicas neurons"]
    loss: Float[Tensor, " replicas"]
    steps: tuple[int, ...]
    losses: Float[Tensor, "records replicas"]
    lowest: Float[Tensor, " replicas"]
    flips: Int[Tensor, "replicas neurons"]


def train_ensemble(
    w1: Float[Tensor, "replicas neurons entries"],
    w2: Float[Tensor, "replicas outer"],  # equal to neurons: checked below, by name
    x: Float[Tensor, "n inputs"],
    y: Float[Tensor, " targets"],
    *,
    lr: float,
    steps: int,
    bias: bool = False,
    loss: str = "mse",
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    record: int | Sequence[int] = (),
    tol: float = 0.0,
) -> EnsembleRun:
    """Train networks f(x) = <w2, relu(w1 x)> of one shape by full-batch descent.

    Each as torch's SGD would train it alone, with relu'(0) = 0. The gradients are
    written out: a step is two matrix products of the whole ensemble, O(replicas ·
    neurons · n · entries), without a graph and without a loop over networks.

    Args:
        w1: Hidden weights; with `bias` the last entry of each neuron is its bias.
        w2: Output weights.
        x: Inputs, shared by all networks.
        y: Targets; labels of -1 and +1 for "logistic".
        lr: Learning rate.
        steps: Number of steps.
        bias: Whether hidden neurons have a bias.
        loss: "mse" is ½ mean (f - y)², "logistic" mean log(1 + exp(-y f)).
        momentum: Heavy-ball momentum.
        weight_decay: λ of a coupled decay of all weights; not part of the losses.
        record: Steps at which to keep the losses, or how many of them, evenly.
        tol: Stop when all losses are at most this.

    Raises:
        StructureError: Shapes do not fit each other.
        InputError: An unknown loss, or lr, steps, momentum or decay out of range.
    """
    w1, w2 = w1.clone(), w2.clone()
    inputs = torch.nn.functional.pad(x, (0, 1), value=1.0) if bias else x
    _check(w1, w2, inputs, y, loss)
    if not lr > 0 or steps < 0 or not 0 <= momentum < 1 or weight_decay < 0:
        raise InputError(
            "lr must be positive, steps and weight_decay at least 0 and momentum in "
            f"[0, 1), got {lr}, {steps}, {weight_decay} and {momentum}"
        )
    replicas, neurons, entries = w1.shape
    kept = _record_steps(record, steps)
    losses, taken = [], []
    flips = torch.zeros_like(w2, dtype=torch.long)
    velocity = torch.zeros_like(w1), torch.zeros_like(w2)
    lowest = torch.full_like(w2[:, 0], torch.inf)
    value = lowest
    for k in range(steps + 1):
        z = (w1.reshape(-1, entries) @ inputs.T).view(replicas, neurons, -1)
        a = z.clamp_min(0)
        f = torch.bmm(w2[:, None], a)[:, 0]
        value, pull = _loss(f, y, loss)
        lowest = torch.minimum(lowest, value)
        last = k == steps or (tol > 0 and bool((value <= tol).all()))
        if k in kept or last:
            taken.append(k)
            losses.append(value)
        if last:
            break
        g2 = torch.bmm(a, pull[:, :, None])[..., 0]
        back = torch.where(z > 0, pull[:, None], 0.0).view(replicas * neurons, -1)
        g1 = w2[..., None] * (back @ inputs).view(w1.shape)
        for w, v, g in ((w1, velocity[0], g1), (w2, velocity[1], g2)):
            if weight_decay:
                g = g.add_(w, alpha=weight_decay)
            if momentum:
                g = v.mul_(momentum).add_(g)
            if w is w2:
                flips += (w2 * torch.sub(w2, g, alpha=lr)) < 0
            w.sub_(g, alpha=lr)
    return EnsembleRun(w1, w2, value, tuple(taken), torch.stack(losses), lowest, flips)


def _loss(f: Tensor, y: Tensor, loss: str) -> tuple[Tensor, Tensor]:
    """Return the losses and their derivatives by the outputs."""
    n = y.shape[0]
    if loss == "mse":
        rest = f - y
        return rest.square().mean(1) / 2, rest / n
    margin = y * f
    value = torch.nn.functional.softplus(-margin).mean(1)
    return value, -y * torch.sigmoid(-margin) / n


def _record_steps(record: int | Sequence[int], steps: int) -> set[int]:
    if isinstance(record, int):
        if record < 1:
            raise InputError(f"record must be at least 1 or steps, got {record}")
        even = torch.linspace(0, steps, max(record, 2)).round().long().tolist()
        return set(even)
    return set(record)


def _check(w1: Tensor, w2: Tensor, inputs: Tensor, y: Tensor, loss: str) -> None:
    if loss not in _LOSSES:
        raise InputError(f"loss must be one of {_LOSSES}, got {loss!r}")
    if w1.shape[:2] != w2.shape or w1.shape[2] != inputs.shape[1]:
        raise StructureError(
            "w1 must have shape (replicas, neurons, entries), w2 (replicas, neurons) "
            f"and the entries fit the {inputs.shape[1]} inputs (bias included), got "
            f"{tuple(w1.shape)} and {tuple(w2.shape)}"
        )
    if len(y) != len(inputs):
        raise StructureError(f"y must have {len(inputs)} rows as x has, got {len(y)}")
