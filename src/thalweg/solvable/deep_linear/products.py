"""Products of the layers, partial products and their first-order variations."""

from collections.abc import Sequence

import torch
from torch import Tensor

Weights = Sequence[Tensor]


def identity(size: int, like: Tensor) -> Tensor:
    """Return the identity, broadcast over the leading axes of a layer."""
    eye = torch.eye(size, dtype=like.dtype, device=like.device)
    return eye.expand(*like.shape[:-2], size, size)


def product(weights: Weights) -> Tensor:
    """Return W_L ... W_1 (..., d_L, d_0)."""
    result = weights[0]
    for layer in weights[1:]:
        result = layer @ result
    return result


def right_products(weights: Weights) -> list[Tensor]:
    """Return B_l = W_{l-1} ... W_1 for l = 1..L; B_1 is the identity."""
    result = [identity(weights[0].shape[-1], weights[0])]
    for layer in weights[:-1]:
        result.append(layer @ result[-1])
    return result


def left_products(weights: Weights) -> list[Tensor]:
    """Return A_l = W_L ... W_{l+1} for l = 1..L; A_L is the identity."""
    result = [identity(weights[-1].shape[-2], weights[-1])]
    for layer in reversed(weights[1:]):
        result.append(result[-1] @ layer)
    return result[::-1]


def vary_right(weights: Weights, step: Weights, right: Weights) -> list[Tensor]:
    """Return the variation of every B_l along `step`."""
    result = [torch.zeros_like(step[0].mT @ step[0])]
    for layer, moved, before in zip(weights[:-1], step[:-1], right[:-1], strict=True):
        result.append(moved @ before + layer @ result[-1])
    return result


def vary_left(weights: Weights, step: Weights, left: Weights) -> list[Tensor]:
    """Return the variation of every A_l along `step`."""
    result = [torch.zeros_like(step[-1] @ step[-1].mT)]
    for layer, moved, after in zip(
        reversed(weights[1:]), reversed(step[1:]), reversed(left[1:]), strict=True
    ):
        result.append(result[-1] @ layer + after @ moved)
    return result[::-1]


def spread(left: Weights, G: Tensor, right: Weights) -> list[Tensor]:
    """Return A_lᵀ G B_lᵀ for every layer: a gradient of the product, pulled back."""
    return [a.mT @ G @ b.mT for a, b in zip(left, right, strict=True)]


def gather(left: Weights, step: Weights, right: Weights) -> Tensor:
    """Return Σ_l A_l Δ_l B_l, the variation of the product along `step`."""
    terms = [a @ d @ b for a, d, b in zip(left, step, right, strict=True)]
    return torch.stack(torch.broadcast_tensors(*terms)).sum(0)
