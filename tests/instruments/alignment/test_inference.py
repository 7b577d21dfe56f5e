"""Inferred permutations: each leaves the function as it is, none is missed."""

import pytest
import torch
from torch import nn

from instruments.alignment.networks import ZOO, randomize
from thalweg.errors import StructureError
from thalweg.instruments.alignment.inference import infer_spec
from thalweg.models import mlp, small_cnn, trace_graph


def double(tensor):
    return tensor.double() if tensor.is_floating_point() else tensor


@pytest.mark.parametrize("name", ZOO)
def test_any_permutation_of_the_spec_leaves_the_function(name):
    build, inputs, sizes = ZOO[name]
    model, inputs = randomize(build()).double(), double(inputs)
    spec, _ = infer_spec(trace_graph(model, inputs))
    assert sorted(spec.sizes.values()) == sizes
    before = model.state_dict()
    for seed in range(3):
        state = spec.apply(before, spec.random(seed))
        assert any(not torch.equal(state[name], before[name]) for name in state)
        other = build().double().eval()
        other.load_state_dict(state)
        with torch.no_grad():
            torch.testing.assert_close(
                other(inputs), model(inputs), rtol=1e-10, atol=1e-12
            )


def test_the_spec_of_a_flatten_repeats_each_channel():
    spec, _ = infer_spec(trace_graph(small_cnn(), torch.zeros(2, 1, 8, 8)))
    assert spec.sizes == {"0": 8, "3": 16}
    ((outputs,), (inputs,)) = spec.axes["7.weight"]
    assert (outputs.id, inputs.id, inputs.units, inputs.repeat) == (None, "3", 16, 4)
    assert [axis[0].id for axis in spec.axes["3.weight"]] == ["3", "0", None, None]


def test_heads_move_together():
    build, inputs, _ = ZOO["transformer"]
    spec, places = infer_spec(trace_graph(build(), inputs))
    (heads,) = spec.heads
    q, v = heads.ids
    rows = [s.id for s in spec.axes["attention.in_proj_weight"][0]]
    assert rows == [q, q, v] and heads.count == 3
    assert spec.axes["attention.out_proj.weight"][1][0].id == v
    assert spec.axes["head.weight"] == spec.axes["embed.weight"]  # tied
    drawn = spec.random(0)
    assert torch.equal(drawn[q][::4] // 4, drawn[v][::4] // 4)
    assert not torch.equal(drawn[q] % 4, drawn[v] % 4)
    assert {place.id for place in places} == {"embed", "feed.0"}


class Called(nn.Module):
    """Two halves of a layer's units, multiplied, and joined with their sum."""

    def __init__(self, halve, join):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)
        self.halve, self.join = halve, join

    def forward(self, x):
        left, right = self.halve(self.first(x))
        return self.last(self.join([left * right, left + right]))


@pytest.mark.parametrize(
    "halve",
    [
        lambda x: x.chunk(2, -1),
        lambda x: x.chunk(dim=1, chunks=2),
        lambda x: x.split(dim=-1, split_size=3),
        lambda x: torch.split(x, dim=1, split_size_or_sections=[3, 3]),
    ],
)
@pytest.mark.parametrize(
    "join", [lambda parts: torch.cat(parts, 1), lambda parts: torch.cat(parts, axis=1)]
)
def test_arguments_may_be_named_in_any_order(halve, join):
    model = Called(halve, join)
    spec, _ = infer_spec(trace_graph(model, torch.zeros(2, 4)))
    assert spec.sizes == {"first": 3}
    halves = [segment.id for segment in spec.axes["last.weight"][1]]
    assert halves == ["first", "first"]


def test_groups_move_as_a_whole():
    build, inputs, _ = ZOO["branches"]
    spec, _ = infer_spec(trace_graph(build(), inputs))
    (blocks,) = spec.axes["mix.weight"][0]
    (outputs,) = spec.axes["grouped.weight"][0]
    assert (blocks.units, blocks.repeat) == (4, 2)
    assert (outputs.id, outputs.repeat) == (blocks.id, 3)
    assert [s.repeat for s in spec.axes["depthwise.weight"][0]] == [2, 2]


class Unknown(nn.Module):
    """Units that an operation without a rule mixes."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x):
        return self.shuffle(self.first(x))


def test_unknown_operations_are_named():
    graph = trace_graph(Unknown(), torch.zeros(1, 1, 8, 8))
    with pytest.raises(StructureError, match="PixelShuffle at 'shuffle'.*by hand"):
        infer_spec(graph)
    # On inputs, whose order is fixed, it may do what it likes.
    model = nn.Sequential(nn.PixelUnshuffle(2), nn.Flatten(), mlp((64, 8, 2)))
    spec, _ = infer_spec(trace_graph(model, torch.zeros(1, 1, 8, 8)))
    assert spec.sizes == {"2.1": 8}


def test_parametrized_weights_are_named():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(StructureError, match="'0.weight', which is not in the state"):
        infer_spec(trace_graph(model, torch.zeros(1, 3)))
