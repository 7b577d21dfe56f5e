"""Give the units of an interpolated network the means and spreads of its ends."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from thalweg.errors import InputError
from thalweg.instruments.alignment.aligning import (
    State,
    check_states,
    first_inputs,
    inputs_of,
    read_inputs,
    state_of,
)
from thalweg.landscapes import Batches, has_batch_norm, recalibrate
from thalweg.models import copy_model

Layer = nn.Linear | _ConvNd


@dataclass(frozen=True)
class Repaired:
    """An interpolated network whose units have the statistics of its ends.

    Args:
        state: Its state dict.
        variant: "reset" where batch norms were given new running statistics, "rescale"
            where weights and biases were.
        layers: Names of the layers repaired, in the order in which they run.
        left: Layer -> why it was left as it was.
        constant: Channels left as they were, their spread being below eps.
        rows: Number of examples that the statistics are of.
        dtype: dtype in which they were summed.
    """

    state: dict[str, Tensor] = field(repr=False)
    variant: Literal["reset", "rescale"]
    layers: tuple[str, ...]
    left: Mapping[str, str]
    constant: int
    rows: int
    dtype: str


def repair(
    merged: nn.Module | State,
    model_a: nn.Module,
    model_b: nn.Module | State,
    data: Any,
    t: float = 0.5,
    *,
    eps: float = 1e-6,
) -> Repaired:
    """Correct the statistics of an interpolated network: REPAIR.

    The units of (1 - t) a + t b vary less than those of a and b, the less the deeper.
    In each hidden layer every channel z of the merged network, with mean m and standard
    deviation s, becomes

        z' = (z - m) σ / s + μ,  μ = (1 - t) μ_a + t μ_b,  σ = (1 - t) σ_a + t σ_b,

    which is folded into weight and bias. Layers follow in the order in which they run,
    each measured with those before it repaired; the last, whose outputs are the
    network's, stays. Networks with batch norm get new running statistics instead, by a
    pass in float64, which does the same. Costs one pass over the data for a, one for b,
    and one that ends at the layer for each layer.

    Args:
        merged: The network in between: a module or a state dict.
        model_a: The network at t = 0.
        model_b: The network at t = 1, aligned to a: a module or a state dict.
        data: Inputs, or what a `NetworkLandscape` takes: the statistics are over all of
            it, and over all positions of a channel.
        t: Where between the ends.
        eps: Channels that vary less than this are left as they are.

    Raises:
        StructureError: The networks are of different architectures.
        CheckpointError: Weights are not finite.
        InputError: t lies outside [0, 1], or no layer can be repaired.
        DataError: There are no data.

    Source: "REPAIR: REnormalizing Permuted Activations for Interpolation Repair",
    K. Jordan, H. Sedghi, O. Saukh, R. Entezari, B. Neyshabur, 2023.
    """
    if not 0 <= t <= 1:
        raise InputError(f"t must lie between the ends, 0 and 1, got {t}")
    states = {"model_a": state_of(model_a), "model_b": state_of(model_b)}
    states["merged"] = state_of(merged)
    check_states(states)
    batches = read_inputs(model_a, data, 0)
    a, b, network = (_network(model_a, state) for state in states.values())
    if has_batch_norm(network):
        wide = copy_model(network).double()
        recalibrate(wide, map(_doubled, inputs_of(batches)))
        network.load_state_dict(wide.state_dict())
        return Repaired(
            state=state_of(network),
            variant="reset",
            layers=tuple(
                name
                for name, module in network.named_modules()
                if getattr(module, "running_mean", None) is not None
            ),
            left={},
            constant=0,
            rows=batches.rows,
            dtype="float64",
        )
    layers, left = _repairable(network, batches)
    ends = [_statistics(end, batches, layers) for end in (a, b)]
    constant = 0
    for name in layers:
        mean, spread = _statistics(network, batches, [name], stop=True)[name]
        (mean_a, spread_a), (mean_b, spread_b) = (end[name] for end in ends)
        still = spread < eps
        constant += int(still.sum())
        scale = ((1 - t) * spread_a + t * spread_b) / spread
        scale = torch.where(still, 1.0, scale)
        shift = torch.where(still, mean, (1 - t) * mean_a + t * mean_b)
        _rescale(_layer(network, name), scale, shift - mean * scale)
    return Repaired(
        state=state_of(network),
        variant="rescale",
        layers=tuple(layers),
        left=left,
        constant=constant,
        rows=batches.rows,
        dtype="float64",
    )


def _doubled(inputs: Tensor) -> Tensor:
    return inputs.double() if inputs.is_floating_point() else inputs


def _network(model: nn.Module, state: State) -> nn.Module:
    network = copy_model(model).eval()
    network.load_state_dict(state)
    return network


def _repairable(
    network: nn.Module, batches: Batches
) -> tuple[list[str], dict[str, str]]:
    """Return the layers to repair, in the order in which they run, and why not all."""
    names = [n for n, m in network.named_modules() if isinstance(m, Layer)]
    runs: list[str] = []
    hooks = {name: lambda _, name=name: runs.append(name) for name in names}
    with _watching(network, hooks), torch.no_grad():
        network(first_inputs(batches)[:2])
    order = dict.fromkeys(runs)
    users: dict[int, int] = {}
    for module in network.modules():
        for tensor in module.parameters(recurse=False):
            users[id(tensor)] = users.get(id(tensor), 0) + 1
    layers, left = list(order), {n: "it does not run" for n in names if n not in order}
    if layers:
        left[layers.pop()] = "its outputs are the network's"
    for name in list(layers):
        module = _layer(network, name)
        if module.bias is None:
            left[name] = "it has no bias"
        elif runs.count(name) > 1:
            left[name] = "it runs more than once"
        elif id(module.weight) not in users or id(module.bias) not in users:
            left[name] = "its weights are computed (pruned or parametrized)"
        elif users[id(module.weight)] > 1 or users[id(module.bias)] > 1:
            left[name] = "its weights are another layer's too"
        elif isinstance(module, _ConvNd) and module.transposed and module.groups > 1:
            left[name] = "it is transposed and grouped"
    layers = [name for name in layers if name not in left]
    if not layers:
        raise InputError(f"merged has no layer that can be repaired: {left}")
    return layers, left


def _statistics(
    network: nn.Module, batches: Batches, names: Sequence[str], *, stop: bool = False
) -> dict[str, tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]]:
    """Return mean and standard deviation of the channels of layers, in float64."""
    sums: dict[str, list[Tensor]] = {name: [] for name in names}

    def gather(name: str) -> Callable[[Tensor], None]:
        axis = _channel_axis(_layer(network, name))

        def hook(output: Tensor) -> None:
            rows = output.detach().movedim(axis, -1).flatten(0, -2).double()
            new = [rows.new_tensor(len(rows)), rows.sum(0), (rows**2).sum(0)]
            old = sums[name] or [torch.zeros_like(part) for part in new]
            sums[name] = [x + y for x, y in zip(old, new, strict=True)]
            if stop:
                raise _Reached

        return hook

    with _watching(network, {name: gather(name) for name in names}), torch.no_grad():
        for inputs in inputs_of(batches):
            try:
                network(inputs)
            except _Reached:
                continue
    return {
        name: (total / n, (squares / n - (total / n) ** 2).clamp(min=0).sqrt())
        for name, (n, total, squares) in sums.items()
    }


class _Reached(Exception):
    """The layer that was to be measured has run."""


@contextmanager
def _watching(
    network: nn.Module, hooks: Mapping[str, Callable[[Tensor], None]]
) -> Iterator[None]:
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, hook=hook: hook(output)
        )
        for name, hook in hooks.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layer(network: nn.Module, name: str) -> Layer:
    layer = network.get_submodule(name)
    assert isinstance(layer, Layer)
    return layer


def _channel_axis(layer: Layer) -> int:
    return -1 if isinstance(layer, nn.Linear) else 1 - layer.weight.ndim


def _rescale(
    layer: Layer, scale: Float[Tensor, " c"], shift: Float[Tensor, " c"]
) -> None:
    """Make the outputs z of a layer z scale + shift."""
    axis = 1 if isinstance(layer, _ConvNd) and layer.transposed else 0
    shape = [-1 if k == axis else 1 for k in range(layer.weight.ndim)]
    with torch.no_grad():
        layer.weight.copy_(layer.weight.double() * scale.reshape(shape))
        assert layer.bias is not None
        layer.bias.copy_(layer.bias.double() * scale + shift)
