"""What is measured: a tanh network 64-128-96-10 on the 1,797 digits."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from thalweg import NetworkLandscape
from thalweg.data import digits
from thalweg.models import mlp


@dataclass(frozen=True)
class Subject:
    """The network, its data and its landscape."""

    model: nn.Module
    x: Tensor
    y: Tensor
    land: NetworkLandscape


def subject(dtype: torch.dtype) -> Subject:
    """Return the network after 100 steps of Adam on all digits."""
    data = digits()
    x, y = data.inputs.flatten(1).float(), data.targets
    model = mlp((64, 128, 96, 10), seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    model, x = model.to(dtype).eval(), x.to(dtype)
    land = NetworkLandscape(model, functional.cross_entropy, (x, y))
    return Subject(model, x, y, land)
