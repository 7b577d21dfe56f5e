"""Weights into and out of the hidden neurons of two layers, convolutions included."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from thalweg.errors import StructureError


@dataclass(frozen=True)
class NeuronWeights:
    """The weights of two layers, neuron by neuron.

    Attributes:
        inner: Weights into each neuron (l, d), its bias last where there is one.
        outer: Weights out of each (l, e).
        ins: Entries of `inner` that pruning leaves, for each neuron.
        outs: Likewise those of `outer`.
    """

    inner: Tensor
    outer: Tensor
    ins: Tensor
    outs: Tensor


def neuron_weights(first: nn.Module, second: nn.Module) -> NeuronWeights:
    """Return what goes into and out of each hidden neuron of two layers.

    A channel of a convolution is one neuron with all the entries of its kernels; a
    Linear after a flattened map has one weight for each position. Masks of
    `torch.nn.utils.prune` are respected.

    Raises:
        StructureError: The second layer does not read the outputs of the first.
    """
    inner, outer = by_neuron(first, second, lambda p: p)
    kept_in, kept_out = by_neuron(first, second, torch.ones_like)
    return NeuronWeights(inner, outer, (kept_in != 0).sum(1), (kept_out != 0).sum(1))


def by_neuron(
    first: nn.Module, second: nn.Module, values: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return rows (l, d) in and (l, e) out of what belongs to the layers' parameters.

    Args:
        first: The layer into the neurons.
        second: The layer out of them.
        values: Maps a parameter to a tensor of its shape: itself, or its gradient.

    Raises:
        StructureError: The second layer does not read the outputs of the first.
    """
    inner = _masked(first, values).flatten(1)
    if isinstance(first.bias, Tensor):
        inner = torch.cat([inner, values(first.bias)[:, None]], 1)
    return inner, _outgoing(second, _masked(second, values), len(inner))


def replace_by_neuron(
    first: nn.Module, second: nn.Module, inner: Tensor, outer: Tensor
) -> None:
    """Write rows as `by_neuron` returns them into the layers, in place."""
    weight, counter = weight_parameter(first), weight_parameter(second)
    groups = int(getattr(second, "groups", 1))
    reads = counter.shape[1] * groups
    split = outer.reshape(reads, -1).reshape(
        groups, counter.shape[1], counter.shape[0] // groups, -1
    )
    with torch.no_grad():
        if isinstance(first.bias, Tensor):
            first.bias.copy_(inner[:, -1])
            inner = inner[:, :-1]
        weight.copy_(inner.reshape(weight.shape))
        counter.copy_(split.transpose(1, 2).reshape(counter.shape))
        for layer in (first, second):
            if getattr(layer, "weight_mask", None) is not None:
                layer.weight = _masked(layer, lambda p: p)


def squared_norms(first: nn.Module, second: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Return |w1|², |w2|² and the sum of w2 of each neuron, in the model's dtype.

    One pass over the weights, without a copy of the first layer's.
    """
    weight = _masked(first, lambda p: p)
    inner = torch.linalg.vector_norm(weight.flatten(1), dim=1).square_()
    if isinstance(first.bias, Tensor):
        inner.addcmul_(first.bias, first.bias)
    outer = _outgoing(second, _masked(second, lambda p: p), len(weight))
    total = outer.sum(1)
    if outer.shape[1] == 1:
        return inner, total * total, total
    return inner, torch.linalg.vector_norm(outer, dim=1).square_(), total


def weight_parameter(layer: nn.Module) -> Tensor:
    """Return the parameter behind a layer's weight, pruned or not."""
    weight = getattr(layer, "weight_orig", layer.weight)
    assert isinstance(weight, Tensor)
    return weight


def _masked(layer: nn.Module, values: Callable[[Tensor], Tensor]) -> Tensor:
    result = values(weight_parameter(layer))
    mask = getattr(layer, "weight_mask", None)
    return result if mask is None else result * mask


def _outgoing(layer: nn.Module, weight: Tensor, neurons: int) -> Tensor:
    """Return (neurons, e) from a weight (out, in / groups, *kernel)."""
    groups = int(getattr(layer, "groups", 1))
    reads = weight.shape[1] * groups
    if reads % neurons or (reads != neurons and not isinstance(layer, nn.Linear)):
        raise StructureError(
            f"the second layer reads {reads} inputs and the first has {neurons} outputs"
        )
    split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    rows = split.transpose(1, 2).reshape(reads, -1)
    return rows.reshape(neurons, -1)
