"""How much each size of the study does."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scale:
    """Numbers of replicas and paths for each seed."""

    replicas: int  # of SGD on the matrices
    kicks: int  # of one step, at each strength
    paths: int  # of modes
    starts: int  # small and random


SCALES = {
    "quick": Scale(200, 20_000, 4000, 30),
    "default": Scale(400, 100_000, 20_000, 60),
    "full": Scale(1000, 400_000, 100_000, 200),
}


def diagonal(S: tuple[float, ...]) -> Tensor:
    """Return the teacher diag(S)."""
    return torch.diag(torch.tensor(S, dtype=torch.float64))
