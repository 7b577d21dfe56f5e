"""The hierarchy of minima as the student widens: where one more neuron leads."""

from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg.solvable.two_layer_relu.descent import Descents, find_minima
from thalweg.solvable.two_layer_relu.splitting import (
    split_neuron,
    split_stability,
    steepest_birth,
)

_NULL = 1e-8
_NEWBORN = 1e-3


@dataclass(frozen=True)
class Growth:
    """What becomes of a minimum of width K at width K + 1.

    Attributes:
        split: For each neuron, the curvature that splitting it adds, (K,).
        birth: Slope of the loss along the best new neuron, from a local search.
        ends: Where descents from the unstable splits, in the order of the neurons, and
            from the new neuron end, W of (n, K + 1, d); None where neither helps.
    """

    split: Tensor
    birth: float
    ends: Descents | None

    @property
    def survives(self) -> bool:
        """Return whether no split and no new neuron leads down."""
        return self.ends is None

    def __repr__(self) -> str:
        if self.ends is None:
            return "Growth(survives one neuron more)"
        losses = self.ends.loss
        return (
            f"Growth({len(losses)} ways down, to losses from {float(losses.min()):.6g} "
            f"to {float(losses.max()):.6g})"
        )


def grow(W: Tensor, V: Tensor, d: int, seed: int = 0) -> Growth:
    """Add a neuron to a minimum W (K, d) in each way that lowers the loss, and descend.

    A neuron of negative `split_stability` is split in halves: a saddle, which the
    descent leaves downhill. A negative `steepest_birth` starts a neuron of norm 1e-3
    of the largest teacher. Cost: up to K + 1 descents at width K + 1.
    """
    values = split_stability(W, V, d)
    slope, u = steepest_birth(W, V, seed)
    starts = [split_neuron(W, i, 0.5) for i, x in enumerate(values) if x < -_NULL]
    if slope < -_NULL:
        newborn = _NEWBORN * V.norm(dim=1).max() * u
        starts.append(torch.cat([W, newborn[None]]))
    if not starts:
        return Growth(values, slope, None)
    # Global minima of wide students are flat to third order: the loss says when.
    wide = len(W) + 1 > len(V)
    ends = find_minima(
        V,
        len(W) + 1,
        len(starts),
        init=torch.stack(starts),
        d=d,
        loss_tol=1e-12 if wide else None,
    )
    return Growth(values, slope, ends)
