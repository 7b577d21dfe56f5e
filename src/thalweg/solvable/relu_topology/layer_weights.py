"""Weights into and out of the hidden neurons of two layers, convolutions included."""

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
        biased: Whether the last column of `inner` is a bias.
    """

    inner: Tensor
    outer: Tensor
    ins: Tensor
    outs: Tensor
    biased: bool


def neuron_weights(first: nn.Module, second: nn.Module) -> NeuronWeights:
    """Return what goes into and out of each hidden neuron of two layers.

    A channel of a convolution is one neuron with all the entries of its kernels; a
    Linear after a flattened map has one weight for each position. Masks of
    `torch.nn.utils.prune` are respected. Shares memory with the layers; O(1).

    Raises:
        StructureError: The second layer does not read the outputs of the first.
    """
    inner, ins = _weight(first).flatten(1), _mask(first).flatten(1)
    bias = first.bias
    if isinstance(bias, Tensor):
        inner = torch.cat([inner, bias[:, None]], 1)
        ins = torch.cat([ins, torch.ones_like(ins[:, :1])], 1)
    neurons = len(inner)
    outer = _outgoing(second, _weight(second), neurons)
    outs = _outgoing(second, _mask(second), neurons)
    return NeuronWeights(inner, outer, ins.sum(1), outs.sum(1), bias is not None)


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _mask(layer: nn.Module) -> Tensor:
    """Return what `torch.nn.utils.prune` leaves of a weight."""
    mask = getattr(layer, "weight_mask", None)
    if mask is None:
        return torch.ones_like(_weight(layer), dtype=torch.bool)
    return mask.bool()


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
