"""A small network on the digits, and its loss without a landscape."""

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F


def mlp(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).to(dtype)


def reference(model, x, y, point):
    """The loss at a point by functional_call, sharing nothing with the landscape."""
    tensors, offset = {}, 0
    for name, p in model.named_parameters():
        tensors[name] = point[offset : offset + p.numel()].reshape(p.shape)
        offset += p.numel()
    return F.cross_entropy(functional_call(model, tensors, (x,)), y)
