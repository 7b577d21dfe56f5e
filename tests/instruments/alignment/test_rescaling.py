"""REPAIR: the statistics asked for come out, and what has none is left."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from instruments.alignment.networks import (
    ZOO,
    Residual,
    images,
    randomize,
    vectors,
)
from thalweg import instruments as ti
from thalweg.errors import CheckpointError, InputError, StructureError
from thalweg.models import mlp, small_cnn, trace_graph


def midpoint(a, b, t=0.5):
    first, second = a.state_dict(), b.state_dict()
    return {
        name: torch.lerp(tensor, second[name], t)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in first.items()
    }


def statistics(model, inputs, path):
    """Mean and spread of a layer's channels, by the traced graph's values."""
    graph = trace_graph(model, inputs)
    node = next(n for n in graph.nodes if n.path == path)
    rows = graph.values(inputs)[node.name]
    rows = rows.transpose(0, 1).flatten(1) if rows.ndim > 2 else rows.T
    return torch.stack([rows.mean(1), rows.std(1, correction=0)])


@pytest.mark.parametrize(
    "build, inputs, layers",
    [
        (lambda: mlp((64, 20, 16, 10)), vectors(50, 64), ["1", "3"]),
        (small_cnn, images(20), ["0", "3"]),
    ],
)
@pytest.mark.parametrize("t", [0.5, 0.2])
def test_each_hidden_layer_gets_the_statistics_between_the_ends(
    build, inputs, layers, t
):
    a, b = (randomize(build(), seed).double() for seed in (0, 1))
    inputs = inputs.double()
    merged = midpoint(a, b, t)
    found = ti.repair(merged, a, b, list(inputs.split(7)), t)
    assert list(found.layers) == layers and found.variant == "rescale"
    assert found.rows == len(inputs) and found.dtype == "float64"
    assert list(found.left.values()) == ["its outputs are the network's"]
    repaired = build().double().eval()
    repaired.load_state_dict(found.state)
    for layer in layers:
        first, second = (statistics(end, inputs, layer) for end in (a, b))
        wanted = (1 - t) * first + t * second
        torch.testing.assert_close(
            statistics(repaired, inputs, layer), wanted, rtol=1e-10, atol=1e-10
        )
    last = list(merged)[-1]
    assert torch.equal(found.state[last], merged[last])


@pytest.mark.parametrize("name", ["mlp", "branches", "transformer", "channels last"])
def test_at_an_end_nothing_changes(name):
    build, inputs, _ = ZOO[name]
    a, b = (randomize(build(), seed).double() for seed in (0, 1))
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    found = ti.repair(a, a, b, inputs, 0.0)
    for key, tensor in a.state_dict().items():
        torch.testing.assert_close(found.state[key], tensor, rtol=1e-9, atol=1e-10)
    if name == "transformer":
        assert found.layers == ("feed.0", "feed.2")
        assert found.left["attention.out_proj"] == "it does not run"
    if name == "channels last":
        assert found.layers == ("embed",)
        assert found.left["again"] == "it runs more than once"


def test_batch_norms_are_reset():
    a, b = (randomize(Residual(), seed).double() for seed in (0, 1))
    inputs = images(32).double()
    found = ti.repair(midpoint(a, b), a, b, inputs)
    assert found.variant == "reset" and "blocks.0.norm1" in found.layers
    repaired = Residual().double().eval()
    repaired.load_state_dict(found.state)
    values = trace_graph(repaired, inputs).values(inputs)
    stem = values["model_stem"].transpose(0, 1).flatten(1)
    torch.testing.assert_close(
        found.state["blocks.0.norm1.running_mean"], stem.mean(1), rtol=1e-10, atol=1e-12
    )


def test_statistics_of_batch_norms_are_found_in_float64():
    a, b = (randomize(Residual(), seed) for seed in (0, 1))
    merged, inputs = midpoint(a, b), images(32)
    found = ti.repair(merged, a, b, inputs)
    wide = Residual().double().eval()
    wide.load_state_dict(merged)
    wanted = ti.repair(wide, wide, wide, inputs.double()).state
    assert found.dtype == "float64"
    for name, tensor in found.state.items():
        assert tensor.dtype == merged[name].dtype
        assert torch.equal(tensor, wanted[name].to(tensor.dtype))


def test_norms_by_the_statistics_of_the_batch_are_no_hindrance():
    norm = nn.BatchNorm1d(3, track_running_stats=False)
    model = nn.Sequential(nn.Linear(4, 3), norm, nn.ReLU(), nn.Linear(3, 2))
    found = ti.repair(model, model, model, vectors(30, 4))
    assert found.variant == "rescale" and found.layers == ("0",)


def test_constant_channels_are_left():
    a, b = (randomize(mlp((4, 3, 2)), seed) for seed in (0, 1))
    merged = midpoint(a, b)
    merged["1.weight"][1] = 0.0
    found = ti.repair(merged, a, b, vectors(30, 4))
    assert found.constant == 1
    assert torch.equal(found.state["1.weight"][1], merged["1.weight"][1])
    assert torch.equal(found.state["1.bias"][1], merged["1.bias"][1])


def test_layers_of_computed_weights_are_left():
    model = mlp((4, 3, 3, 3, 2)).eval()
    nn.utils.parametrizations.weight_norm(model[1])
    prune.random_unstructured(model[3], "weight", 1)
    found = ti.repair(model, model, model, vectors(30, 4))
    assert found.layers == ("5",)
    computed = "its weights are computed (pruned or parametrized)"
    assert found.left["1"] == found.left["3"] == computed


def test_the_networks_are_left_alone():
    a, b = mlp((4, 3, 2), seed=0).train(), mlp((4, 3, 2), seed=1)
    merged = midpoint(a, b)
    copies = [
        {k: v.clone() for k, v in state.items()}
        for state in (a.state_dict(), b.state_dict(), merged)
    ]
    ti.repair(merged, a, b.state_dict(), vectors(30, 4))
    for state, copied in zip(
        (a.state_dict(), b.state_dict(), merged), copies, strict=True
    ):
        assert all(torch.equal(state[k], copied[k]) for k in copied)
    assert a.training and not any(m._forward_hooks for m in a.modules())


def test_bad_input_is_refused():
    a, b = mlp((4, 3, 2)), mlp((4, 3, 2), seed=1)
    data = vectors(30, 4)
    with pytest.raises(InputError, match="t must lie between the ends.*got 1.5"):
        ti.repair(a, a, b, data, 1.5)
    with pytest.raises(StructureError, match="model_a and merged are of different"):
        ti.repair(mlp((4, 5, 2)), a, b, data)
    broken = midpoint(a, b)
    broken["1.bias"] = broken["1.bias"] * torch.inf
    with pytest.raises(CheckpointError, match=r"merged has weights.*'1.bias'"):
        ti.repair(broken, a, b, data)
    plain = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2))
    with pytest.raises(InputError, match="'0': 'it has no bias'"):
        ti.repair(plain, plain, plain, data)
