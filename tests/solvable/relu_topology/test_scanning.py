"""Scans of torch models: the law by autograd, skipped pairs by its violation."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from thalweg.errors import InputError, StructureError
from thalweg.models import mlp, small_cnn
from thalweg.seeding import seeded
from thalweg.solvable import relu_topology as rt
from thalweg.solvable.relu_topology.scanning import layers_of


class Traced(nn.Module):
    """Functional calls, pooling over the map, and a head that ends in one output."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6)
        self.mix = nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        x = F.max_pool2d(F.leaky_relu(self.conv(x), 0.1), 2)
        x = self.mix(self.depthwise(x).relu())
        return self.head(torch.abs(x).mean((2, 3)))


class Square(nn.Module):
    def forward(self, x):
        return torch.relu(x).square()


def built(*layers):
    with seeded(0, "scan"):
        return nn.Sequential(*[layer() for layer in layers]).double()


def deep():
    return built(
        lambda: nn.Linear(4, 7),
        nn.ReLU,
        lambda: nn.Dropout(0.3),
        lambda: nn.Linear(7, 5, bias=False),
        nn.PReLU,
        lambda: nn.Sequential(nn.Linear(5, 6), nn.Identity(), nn.Linear(6, 1)),
    )


def convolutional():
    return built(
        lambda: nn.Conv2d(2, 6, 3),
        nn.ReLU,
        lambda: nn.MaxPool2d(2),
        lambda: nn.Conv2d(6, 8, 3, groups=2, padding_mode="reflect", padding=1),
        nn.LeakyReLU,
        lambda: nn.AvgPool2d(3),
        nn.Flatten,
        lambda: nn.Linear(8, 3),
    )


def flattened():
    return built(
        lambda: nn.Conv1d(3, 5, 3), nn.ReLU, nn.Flatten, lambda: nn.Linear(30, 2)
    )


def traced():
    with seeded(0, "scan"):
        return Traced().double()


def tangents(model, pair, x):
    """Return Δ<w, g> of each neuron for some loss, and the size of its two sides."""
    with seeded(1, "dropout"):
        loss = (torch.sin(model(x)) + model(x) ** 2).mean()
    model.zero_grad()
    loss.backward()
    w = layers_of(model, pair)
    weights = [(p, p.detach().clone()) for p in model.parameters()]
    inner, outer = w.inner.detach().clone(), w.outer.detach().clone()
    with torch.no_grad():
        for p, _ in weights:
            p.copy_(p.grad if p.grad is not None else torch.zeros_like(p))
        g = layers_of(model, pair)
        g_inner, g_outer = g.inner.clone(), g.outer.clone()
        for p, value in weights:
            p.copy_(value)
    one = (inner * g_inner).sum(1)
    other = pair.kappa * (outer * g_outer).sum(1)
    return (one - other).numpy(), (one.abs() + other.abs()).numpy()


@pytest.mark.parametrize(
    ("make", "shape", "names"),
    [
        (deep, (9, 4), [("0", "3"), ("3", "5.0"), ("5.0", "5.2")]),
        (convolutional, (4, 2, 10, 10), [("0", "3"), ("3", "7")]),
        (flattened, (4, 3, 8), [("0", "3")]),
        (
            traced,
            (4, 2, 8, 8),
            [("conv", "depthwise"), ("depthwise", "mix"), ("mix", "head")],
        ),
    ],
)
def test_every_pair_found_obeys_the_law(make, shape, names):
    model = make()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    found = rt.scan(model, x)
    assert [(p.pair.first, p.pair.second) for p in found.pairs] == names
    assert not found.skipped
    if isinstance(model, nn.Sequential):
        again = rt.scan(model)
        assert [p.pair for p in again.pairs] == [p.pair for p in found.pairs]
    for scanned in found.pairs:
        difference, size = tangents(model.train(), scanned.pair, x)
        assert size.max() > 1e-4
        assert np.abs(difference).max() < 1e-12 * size.max()


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.c(torch.relu(self.b(h)) + h)


def sequential(*between, last=None):
    return built(lambda: nn.Linear(4, 4), *between, last or (lambda: nn.Linear(4, 2)))


def frozen():
    model = sequential(nn.ReLU)
    model[0].weight.requires_grad_(False)
    return model


def tied():
    model = sequential(nn.ReLU, last=lambda: nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: sequential(nn.Tanh), "tanh is not positively homogeneous"),
        (lambda: sequential(nn.GELU), "gelu is not positively homogeneous"),
        (lambda: sequential(nn.SiLU), "silu is not positively homogeneous"),
        (lambda: sequential(nn.ReLU6), "relu6 is not positively homogeneous"),
        (lambda: sequential(lambda: nn.LayerNorm(4), nn.ReLU), "layer_norm lies"),
        (lambda: sequential(lambda: nn.BatchNorm1d(4), nn.ReLU), "batch_norm lies"),
        (lambda: sequential(nn.ReLU, nn.AlphaDropout), "alpha_dropout lies between"),
        (lambda: sequential(nn.ReLU, lambda: nn.AvgPool1d(1)), "avg_pool1d lies"),
        (frozen, "part of the weights is frozen"),
        (tied, "weights are shared with another layer"),
        (lambda: sequential(Square), "Square lies between"),
    ],
)
def test_pairs_that_conserve_nothing_are_skipped_with_the_reason(make, reason):
    found = rt.scan(make())
    assert not found.pairs
    assert reason in found.skipped[0].objection


def test_skip_connections_and_layers_used_twice_are_seen_in_the_trace():
    with seeded(0, "skip"):
        model = Skip().double()
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).double()
    found = rt.scan(model, x)
    assert not found.pairs
    reasons = {s.first: s.objection for s in found.skipped}
    assert "skip connection" in reasons["a"] and "add lies between" in reasons["b"]
    pair = rt.LayerPair("a", "b", ("relu",))
    assert np.abs(tangents(model, pair, x)[0]).max() > 1e-3
    twice = nn.Linear(4, 4)
    found = rt.scan(nn.Sequential(twice, nn.ReLU(), twice, nn.ReLU(), nn.Linear(4, 1)))
    assert all("are shared with another" in s.objection for s in found.skipped)
    found = rt.scan(
        nn.Sequential(twice, nn.ReLU(), twice, nn.ReLU(), nn.Linear(4, 1)),
        torch.zeros(2, 4),
    )
    assert all("used 2 times" in s.objection for s in found.skipped)


def test_layers_that_read_another_axis_are_skipped():
    model = nn.Sequential(nn.Conv1d(4, 4, 1), nn.ReLU(), nn.Linear(4, 2))
    for example in (None, torch.zeros(2, 4, 4)):
        (skipped,) = rt.scan(model, example).skipped
        assert "'2' reads another axis than the channels of '0'" in skipped.objection
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Flatten(0), nn.Linear(8, 2))
    assert "flattening of other axes" in rt.scan(model).skipped[0].objection


def test_squares_have_degree_two():
    model = sequential(Square)
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)).double()
    (found,) = rt.scan(model, x).pairs
    assert found.pair.kappa == 2 and found.pair.between == ("relu", "square")
    difference, size = tangents(model, found.pair, x)
    assert np.abs(difference).max() < 1e-12 * size.max()


def test_tokens_share_the_weights_of_a_neuron():
    model = sequential(nn.ReLU)
    x = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0)).double()
    (found,) = rt.scan(model, x).pairs
    difference, size = tangents(model, found.pair, x)
    assert np.abs(difference).max() < 1e-12 * size.max()


def network():
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1, 0], [0, 0.1], [0, 2], [0, 0.5]]))
        model[0].bias.copy_(torch.tensor([0.0, -5, 0, 0]))
        model[2].weight.copy_(torch.tensor([[2.0, 6, 1, -0.5]]))
    return model


def test_numbers_of_a_network_by_hand():
    model = network()
    (found,) = rt.scan(model, data=torch.rand(9, 2).double()).pairs
    np.testing.assert_allclose(found.invariants.c, [-3, -10.99, 3, 0], atol=1e-12)
    assert found.locked.tolist() == [0, 1]
    assert found.free.tolist() == [2] and found.marginal.tolist() == [3]
    assert found.counts == (1, 2, 1)
    assert found.label.tolist() == [1, 1, 0, 0]
    assert found.log2_components == 2 and found.effective_components == 3
    assert found.betti == {0: 4, 2: 4}
    assert found.dead.tolist() == [1]
    scanned = rt.scan(model)
    assert scanned.locked == 2
    assert json.loads(json.dumps(scanned.to_dict()))["pairs"][0]["locked"] == [0, 1]


def test_a_scanned_pair_says_what_it_found():
    model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4, 2))
        model[2].weight.copy_(torch.tensor([[1.0, 0.5, -2.0, 3.0]]))
    found = rt.scan(model, data=torch.ones(1, 2))
    assert repr(found.pairs) == (
        "(ScannedPair(0 -> 2: 4 neurons, 2 locked (1 +, 1 -), 1 marginal, 1 free, "
        "2 dead),)"
    )
    assert "dead" not in repr(rt.scan(model))


def test_batches_and_tuples_of_data_give_the_same_dead_neurons():
    x = torch.rand(9, 2).double()
    for data in (x, [x[:4], x[4:]], [(x[:4], None), (x[4:], None)]):
        assert rt.scan(network(), data=data).pairs[0].dead.tolist() == [1]
    with pytest.raises(InputError, match="data must hold an example"):
        rt.scan(network(), data=[])


@pytest.mark.parametrize(
    ("activation", "dead"),
    [
        (torch.relu, [1]),
        (lambda z: -torch.relu(z), [1]),
        (lambda z: torch.relu(-z), None),
        (lambda z: torch.relu(z.abs()), None),
        (torch.abs, None),
    ],
)
def test_dead_neurons_are_told_by_the_outputs_that_reach_the_relu(activation, dead):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(1, 2, bias=False), nn.Linear(2, 1)

        def forward(self, x):
            return self.b(activation(self.a(x)))

    model = Net()
    with torch.no_grad():
        model.a.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    (found,) = rt.scan(model, torch.ones(3, 1), data=torch.ones(3, 1)).pairs
    assert (None if found.dead is None else found.dead.tolist()) == dead


def test_more_outputs_lock_nothing_but_a_mask_to_one_does():
    with seeded(0, "masks"):
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[2].weight.mul_(10)
    (found,) = rt.scan(model).pairs
    assert (found.invariants.kind < 0).all() and not len(found.locked)
    assert found.log2_components == 0 and found.betti == {0: 1, 1: 4, 2: 6, 3: 4, 4: 1}
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1]])
    prune.custom_from_mask(model[2], "weight", mask)
    (found,) = rt.scan(model).pairs
    assert found.locked.tolist() == [1, 2]
    weights = model[2].weight
    expected = [0, weights[0, 1].sign(), weights[1, 2].sign(), 0]
    assert found.signs.tolist() == expected
    # (1 + t)² of the two with two outputs, 2² of the locked ones.
    assert found.betti == {0: 4, 1: 8, 2: 4}


def test_the_zoo_scans():
    digits = rt.scan(mlp((64, 32, 16, 1), activation="relu"))
    assert [len(p.ins) for p in digits.pairs] == [32, 16]
    images = torch.zeros(2, 1, 8, 8)
    assert len(rt.scan(small_cnn(), images).pairs) == 2
    assert len(rt.scan(small_cnn(), images).pairs[1].outs) == 16
    assert rt.scan(small_cnn()).pairs[1].outs.tolist() == [40] * 16
    assert rt.scan(mlp((64, 32, 10))).skipped[0].activation


def test_named_pairs():
    class Opaque(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 1)

        def forward(self, x):
            return self.b(torch.relu(self.a(x) if x.sum() > 0 else self.a(-x)))

    model = Opaque()
    with pytest.raises(StructureError, match="no nn.Sequential.*give example_input"):
        rt.scan(model)
    with pytest.raises(StructureError, match="cannot be traced.*pairs="):
        rt.scan(model, torch.ones(2, 2))
    (found,) = rt.scan(model, pairs=[("a", "b")]).pairs
    assert found.pair.first == "a" and len(found.ins) == 3
    with pytest.raises(StructureError, match="pairs names 'c', which is no layer"):
        rt.scan(model, pairs=[("a", "c")])
    with pytest.raises(StructureError, match="reads 2 inputs and the first has 3"):
        rt.scan(model, pairs=[("a", "a")])


def test_activations_that_are_not_homogeneous_need_force():
    model = mlp((4, 3, 1), activation="tanh")
    with pytest.raises(InputError, match="tanh is not positively homogeneous; force"):
        rt.scan(model, pairs=[("1", "3")])
    assert len(rt.scan(model, pairs=[("1", "3")], force=True).pairs) == 1
    assert len(rt.scan(model, force=True).pairs) == 1
    with pytest.raises(InputError, match="part of the weights is frozen"):
        rt.scan(frozen(), pairs=[("0", "2")], force=True)


def test_bad_weights_are_refused():
    model = network()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="w1 must be finite, got an entry nan"):
        rt.scan(model)
    wide = nn.Sequential(
        nn.Linear(2, 3, dtype=torch.cfloat), nn.ReLU(), nn.Linear(3, 1)
    )
    with pytest.raises(TypeError, match="w1 must be real"):
        rt.scan(wide)


def test_a_scan_leaves_the_model_and_the_random_numbers():
    model = deep()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    rt.scan(model, torch.zeros(2, 4).double(), data=torch.ones(5, 4).double())
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
