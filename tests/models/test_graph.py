"""Traced networks: what each node is, what it reads, and what cannot be traced."""

from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thalweg.errors import StructureError
from thalweg.models import Kind, Value, mlp, small_cnn, trace_graph
from thalweg.models.graph import OPERATIONS

IMAGES = torch.zeros(2, 1, 8, 8)


def kinds(model, example):
    return [(n.kind, n.operation, n.path) for n in trace_graph(model, example).nodes]


def test_every_operation_is_of_a_kind():
    assert set(OPERATIONS) <= set(get_args(Kind))
    names = [name for names in OPERATIONS.values() for name in names.split()]
    assert len(names) == len(set(names))


def test_a_convolutional_network():
    assert kinds(small_cnn(), IMAGES) == [
        ("input", "input", ""),
        ("conv", "conv2d", "0"),
        ("activation", "relu", "1"),
        ("pool", "avg_pool2d", "2"),
        ("conv", "conv2d", "3"),
        ("activation", "relu", "4"),
        ("pool", "avg_pool2d", "5"),
        ("reshape", "flatten", "6"),
        ("linear", "linear", "7"),
        ("output", "output", ""),
    ]
    shapes = [n.shape for n in trace_graph(small_cnn(), IMAGES).nodes]
    assert shapes[3] == (2, 8, 4, 4) and shapes[7:9] == [(2, 64), (2, 10)]


@pytest.mark.parametrize(
    "module, shape, kind, operation",
    [
        (nn.Conv1d(4, 4, 1, groups=4), (2, 4, 5), "conv", "conv1d"),
        (nn.ConvTranspose2d(1, 2, 3), (2, 1, 8, 8), "conv_transpose", None),
        (nn.BatchNorm2d(1), (2, 1, 8, 8), "norm", "batch_norm"),
        (nn.InstanceNorm1d(3), (2, 3, 8), "norm", "instance_norm"),
        (nn.LayerNorm(8), (2, 8), "norm", "layer_norm"),
        (nn.RMSNorm(8), (2, 8), "norm", "rms_norm"),
        (nn.GroupNorm(2, 4), (2, 4, 3), "norm", "group_norm"),
        (nn.PReLU(), (2, 8), "prelu", "prelu"),
        (nn.LogSigmoid(), (2, 8), "activation", "logsigmoid"),
        (nn.GELU(), (2, 8), "activation", "gelu"),
        (nn.ReLU6(), (2, 8), "activation", "relu6"),
        (nn.Identity(), (2, 8), "elementwise", "identity"),
        (nn.Dropout2d(), (2, 1, 8, 8), "elementwise", "dropout2d"),
        (nn.Softmax(-1), (2, 8), "softmax", "softmax"),
        (nn.MaxPool2d(2), (2, 1, 8, 8), "pool", "max_pool2d"),
        (nn.AdaptiveAvgPool1d(2), (2, 1, 8), "pool", "adaptive_avg_pool1d"),
        (nn.Upsample(scale_factor=2), (2, 1, 8), "pool", "interpolate"),
        (nn.ZeroPad2d(1), (2, 1, 8, 8), "pad", "pad"),
        (nn.ReflectionPad1d(1), (2, 1, 8), "pad", "pad"),
        (nn.Unflatten(1, (2, 4)), (2, 8), "reshape", "unflatten"),
        (nn.PixelShuffle(2), (2, 4, 3, 3), "other", "PixelShuffle"),
    ],
)
def test_modules(module, shape, kind, operation):
    node = trace_graph(module, torch.zeros(shape)).nodes[1]
    assert (node.kind, node.path) == (kind, "") and type(node.module) is type(module)
    assert operation in (None, node.operation)


class Functional(nn.Module):
    """Functions, methods, operators; sizes read off the input; a shared layer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.place = nn.Parameter(torch.randn(1, 9, 8))
        self.shared = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens, mask=None):
        rows, length = tokens.shape
        assert length <= self.place.shape[1]
        x = self.embed(tokens) + self.place[:, :length]
        if length > 2:
            x = x + F.leaky_relu(self.shared(x), 0.2)
        y, _ = self.attention(x, x, x)
        y = torch.cat([self.shared(y), x], dim=-1).view(rows, length, -1)
        return torch.sum(self.head(y.transpose(1, 2).mT), 1).float() / 2


def test_functions_methods_and_operators():
    model, tokens = Functional(), torch.tensor([[1, 2, 3, 4], [0, 6, 5, 1]])
    graph = trace_graph(model, tokens)
    found = [n.operation for n in graph.nodes if n.kind != "size"]
    assert (
        found
        == (
            "input parameter embedding getitem add linear leaky_relu add "
            "multihead_attention getitem getitem linear cat view transpose transpose "
            "linear sum float div output"
        ).split()
    )
    assert [n.path for n in graph.nodes if n.kind == "linear"] == [
        *("shared", "shared", "head")
    ]
    view = next(n for n in graph.nodes if n.operation == "view")
    assert view.arguments[1:] == (2, 4, -1) and len(view.inputs) == 1
    cat = next(n for n in graph.nodes if n.kind == "concat")
    assert cat.arguments == ([Value(n) for n in cat.inputs],)
    assert cat.keywords == {"dim": -1}
    assert graph[cat.inputs[0]].operation == "linear"


def test_values_of_nodes_at_other_weights_and_batch_sizes():
    model, tokens = Functional().eval(), torch.tensor([[1, 2, 3, 4]])
    graph = trace_graph(model, tokens.repeat(2, 1))
    other = Functional().eval()
    output = graph.nodes[-1].inputs[0]
    with torch.no_grad():
        assert torch.equal(graph.values(tokens)[output], model(tokens))
        found = graph.values(tokens, other.state_dict())
        assert torch.equal(found[output], other(tokens))
        # The weights of the trace are back, and are copies.
        model.head.bias.add_(1.0)
        moved = model(tokens) - graph.values(tokens)[output]
        torch.testing.assert_close(moved, torch.full((1, 3), 4 / 2))


def test_the_model_is_left_alone():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    inputs, rng = torch.randn(5, 3), torch.get_rng_state()
    trace_graph(model, inputs)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(m.training for m in model.modules())
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(p.requires_grad for p in model.parameters())


class Branching(nn.Module):
    """Does what the values say."""

    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


def test_what_cannot_be_traced_is_named():
    with pytest.raises(StructureError, match=r"test_graph.py:\d+ `if x.sum\(\) > 0:`"):
        trace_graph(nn.Sequential(nn.Linear(3, 3), Branching()), torch.ones(1, 3))
    with pytest.raises(StructureError, match="torch.where"):
        trace_graph(Branching(), torch.ones(1, 3))
    with pytest.raises(StructureError, match=r"not run on inputs of shape \(2, 5\): R"):
        trace_graph(mlp((3, 2)), torch.ones(2, 5))


class Looping(nn.Module):
    """Counts and indexes by sizes; loops over parts of torch's own transformer."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)

    def forward(self, x):
        if len(x.shape) == 2:
            x = x[None]
        x = self.layers(x)
        return sum(x[:, i] for i in range(x.size(1)))


def test_lengths_loops_and_torchs_transformer():
    model, inputs = Looping().eval(), torch.randn(2, 3, 8)
    graph = trace_graph(model, inputs)
    kinds = [node.kind for node in graph.nodes]
    assert kinds.count("attention") == 2 and "other" not in kinds
    assert [n.path for n in graph.nodes if n.kind == "norm"][0] == (
        "layers.layers.0.norm1"
    )
    values = graph.values(torch.cat([inputs, inputs]))
    output = values[graph.nodes[-1].inputs[0]]
    with torch.no_grad():
        torch.testing.assert_close(output[:2], model(inputs))


class InPlace(nn.Module):
    """Changes tensors where they are."""

    def __init__(self, behind=False):
        super().__init__()
        self.behind = behind
        self.first = nn.Linear(3, 4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.first(x)
        y = F.silu(self.relu(x), inplace=True)
        if self.behind:
            y += 1
        else:
            y.add_(1)
        return x.mul_(2)


class Random(nn.Module):
    """Drops out in eval mode too."""

    def forward(self, x):
        return F.dropout(x)


def test_values_are_those_before_changes_in_place():
    model, inputs = InPlace().eval(), torch.randn(5, 3)
    graph = trace_graph(model, inputs)
    values = graph.values(inputs)
    with torch.no_grad():
        first = model.first(inputs)
        steps = [inputs, first, first.relu(), F.silu(first.relu())]
        steps += [steps[-1] + 1, (steps[-1] + 1) * 2]
        for node, wanted in zip(graph.nodes, steps, strict=False):
            torch.testing.assert_close(values[node.name], wanted)
        torch.testing.assert_close(model(inputs), steps[-1])


@pytest.mark.parametrize("model", [InPlace(behind=True), Random()])
def test_traces_of_other_functions_are_refused(model):
    before = torch.get_rng_state()
    with pytest.raises(StructureError, match="traced computes other outputs.*`\\+=`"):
        trace_graph(model, torch.ones(5, 3))
    assert torch.equal(torch.get_rng_state(), before)
