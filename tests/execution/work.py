"""A small job and a small surface, and what makes two results one."""

import numpy as np
import torch
from torch import nn

from thalweg import NetworkLandscape
from thalweg import instruments as ti
from thalweg.execution import Item


def items(n):
    return [Item(f"i{i}", (i,)) for i in range(n)]


def recipe():
    return torch.linspace(0, 1, 1000)


def dots(constant, i):
    value = (constant.sin() * (constant + i).cos()).sum()
    return {"loss": value.numpy(), "index": np.array(i)}


def same(result, expected):
    assert list(result) == list(expected)
    for key, arrays in expected.items():
        for name, array in arrays.items():
            assert result[key][name].tobytes() == array.tobytes()


def check_surface(executor):
    """Assert that a surface has the bits of the local one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    data = torch.randn(50, 6), torch.randint(0, 3, (50,))
    land = NetworkLandscape(model, nn.functional.cross_entropy, data)
    directions = ti.random_directions(land, 2, seed=1)
    axes = [np.linspace(-1, 1, 7)] * 2
    here = ti.surface(land, directions, axes)
    there = ti.surface(land, directions, axes, executor=executor)
    for name in here.variables:
        assert here[name].values.tobytes() == there[name].values.tobytes()
