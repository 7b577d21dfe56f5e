"""Alignment: planted permutations come back, barriers fall, bad input is refused."""

import inspect
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from instruments.alignment.networks import ZOO, Residual, ResidualMLP, randomize
from thalweg import NetworkLandscape
from thalweg import instruments as ti
from thalweg.data import digits
from thalweg.errors import CheckpointError, DataError, InputError, StructureError
from thalweg.instruments import PermutationSpec
from thalweg.instruments.alignment.matching import WeightMatching, assign
from thalweg.models import mlp, small_cnn
from thalweg.training import fit


def planted(name, seed=3):
    """Return a network, one permuted at random, and inputs."""
    build, inputs, _ = ZOO[name]
    b = randomize(build(), seed)
    spec = ti.align(b, b, inputs, restarts=0).spec
    a = build().eval()
    a.load_state_dict(spec.apply(b.state_dict(), spec.random(seed)))
    return a, b, inputs


def equal(found, wanted):
    return all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("name", ZOO)
def test_a_planted_permutation_is_recovered_by_weights(name):
    a, b, inputs = planted(name)
    found = ti.align(a, b, inputs)
    assert equal(found.state, a.state_dict())
    assert found.distances[1] == 0 < found.distances[0]
    assert found.converged and len(found.objectives) == 4
    assert found.identity < found.objective == max(found.objectives)
    squares = sum(float((p.detach().double() ** 2).sum()) for p in a.parameters())
    assert found.objective == pytest.approx(squares, rel=1e-10)
    assert found.error < 1e-5


@pytest.mark.parametrize("name", ZOO)
def test_a_planted_permutation_is_recovered_by_activations(name):
    a, b, inputs = planted(name)
    draw = torch.Generator().manual_seed(4)
    if inputs.is_floating_point():
        inputs = torch.randn(64, *inputs.shape[1:], generator=draw)
    else:
        inputs = torch.randint(0, 11, (64, 5), generator=draw)
    found = ti.align(a, b, [(part,) for part in inputs.split(20)], method="activations")
    assert equal(found.state, a.state_dict())
    assert ("attention.in_proj_weight" in found.note) == (name == "transformer")


def test_a_planted_permutation_leaves_no_barrier():
    a, b, inputs = planted("residual")
    with torch.no_grad():
        labels = a(inputs).argmax(1)
    land = NetworkLandscape(a, functional.cross_entropy, (inputs, labels))
    naive = ti.barrier(land, a, b, points=5)
    assert naive.value > 0.1
    found = ti.align(a, b, inputs)
    with pytest.raises(InputError, match="same point"):  # not even a line is left
        ti.barrier(land, a, found.state)


def test_restarts_find_what_single_starts_miss():
    b = randomize(ResidualMLP(32, 64, blocks=12), 1)
    spec = ti.infer_permutations(b)
    order = spec.random(1)
    a = ResidualMLP(32, 64, blocks=12).eval()
    a.load_state_dict(spec.apply(b.state_dict(), order))
    draw = torch.Generator().manual_seed(101)
    with torch.no_grad():  # as much noise as there are weights
        for weight in a.parameters():
            weight += weight.std() * torch.randn(weight.shape, generator=draw)
    found = ti.align(a, b, restarts=5)
    assert min(found.objectives) < 0.9 * found.objective
    assert all(torch.equal(found.permutations[id], p) for id, p in order.items())


class Recurrent(nn.Module):
    """An LSTM, whose units are not looked into, on inputs."""

    def __init__(self):
        super().__init__()
        self.first = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))

    def forward(self, x):
        return self.head(self.first(x)[0])


def test_what_is_left_in_place_is_said():
    inputs = torch.ones(2, 3, 4)
    found = ti.align(Recurrent(), Recurrent(), inputs)
    assert found.note == (
        "left in place: first.weight_ih_l0, first.weight_hh_l0, first.bias_ih_l0, "
        "first.bias_hh_l0"
    )
    assert found.permutations.keys() == {"head.0"}
    linear = nn.Linear(3, 2)
    assert ti.align(linear, linear).note == "no unit of this network can be permuted"


@pytest.fixture(scope="module")
def trained():
    data = digits()

    def train(seed):
        model = mlp((64, 128, 128, 10), seed=seed)
        fit(
            model,
            lambda net, batch, state: functional.cross_entropy(net(batch[0]), batch[1]),
            data,
            torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
            epochs=10,
            seed=seed,
        )
        return model.eval()

    return train(1), train(2), data.tensors


@pytest.mark.parametrize("method, factor", [("weights", 5.0), ("activations", 3.0)])
def test_the_barrier_between_trained_networks_shrinks(trained, method, factor):
    a, b, data = trained
    land = NetworkLandscape(a, functional.cross_entropy, data)
    before = ti.barrier(land, a, b, points=9)
    found = ti.align(a, b, data, method=method)
    after = ti.barrier(land, a, found.state, points=9)
    assert after.value * factor < before.value
    assert after.ends[1] == pytest.approx(before.ends[1], rel=1e-5)


def test_the_networks_are_left_alone_and_the_seed_decides(trained):
    a, b, _ = trained
    b.train()
    states = [
        {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for model in (a, b)
    ]
    rng = torch.get_rng_state()
    first = ti.align(a, b, seed=5)
    second = ti.align(a, b.state_dict(), seed=5)
    assert torch.equal(torch.get_rng_state(), rng)
    assert b.training and not a.training
    assert equal(a.state_dict(), states[0]) and equal(b.state_dict(), states[1])
    assert equal(first.state, second.state)
    assert first.objectives == second.objectives
    b.eval()


def test_every_step_of_weight_matching_gains(trained):
    a, b, _ = trained
    spec = ti.align(a, b, restarts=0).spec
    weights = [dict(model.named_parameters()) for model in (a, b)]
    search = WeightMatching(spec, *weights)
    values = [search.objective(spec.identity())]
    for sweeps in (1, 2, 3):
        run = search.climb(spec.identity(), sweeps=sweeps, tol=0.0, seed=0, key=0)
        values.append(run.objective)
    assert values == sorted(values) and values[1] > values[0]
    assert run.objective == pytest.approx(search.objective(run.permutations), rel=1e-12)


def test_assignment_with_heads_is_the_best_of_all():
    scores = {
        id: torch.randn(6, 6, generator=torch.Generator().manual_seed(i)).double()
        for i, id in enumerate("qv")
    }

    def total(permutations):
        return sum(
            float(s[torch.arange(6), permutations[id]].sum())
            for id, s in scores.items()
        )

    inner = list(itertools.product([(0, 1), (1, 0)], repeat=3))
    values = []
    for heads in itertools.permutations(range(3)):
        for orders in itertools.product(inner, repeat=2):
            all_of = {
                id: [
                    2 * h + u
                    for h, pair in zip(heads, order, strict=True)
                    for u in pair
                ]
                for id, order in zip("qv", orders, strict=True)
            }
            values.append(total({id: torch.tensor(p) for id, p in all_of.items()}))
    assert len(values) == 6 * 8 * 8
    assert total(assign(scores, 3)) == pytest.approx(max(values), rel=1e-12)
    alone = assign({"q": scores["q"]}, None)["q"]
    assert sorted(alone.tolist()) == list(range(6))


def test_a_spec_by_hand():
    a, b, _ = planted("mlp")
    names = {
        "1.weight": ("first", None),
        "1.bias": ("first",),
        "3.weight": ("second", "first"),
        "3.bias": ("second",),
        "5.weight": (None, "second"),
    }
    spec = PermutationSpec.named(a.state_dict(), names)
    found = ti.align(a, b, spec=spec)
    assert equal(found.state, a.state_dict()) and set(found.permutations) == set(
        spec.sizes
    )
    # One axis forgotten: the check finds it.
    wrong = PermutationSpec.named(a.state_dict(), {**names, "1.bias": (None,)})
    with pytest.raises(StructureError, match="computes another function.*differ by"):
        ti.align(a, b, spec=wrong)
    unchecked = ti.align(a, b, spec=wrong, check=False)
    assert unchecked.error is None


def test_a_spec_by_hand_with_blocks():
    a, b, inputs = planted("cnn")
    names = {
        "0.weight": ("0", None, None, None),
        "0.bias": ("0",),
        "3.weight": ("3", "0", None, None),
        "3.bias": ("3",),
        "7.weight": (None, ("3", 4)),
    }
    spec = PermutationSpec.named(a.state_dict(), names)
    assert equal(ti.align(a, b, inputs, spec=spec).state, a.state_dict())


@pytest.mark.parametrize(
    "names, message",
    [
        ({"9.weight": ("h",)}, "'9.weight', which is not in the model"),
        ({"1.weight": ("h",)}, r"1 axes for '1.weight' of shape \(20, 64\)"),
        ({"1.weight": (("h", 3), None)}, "3 entries a unit on an axis of 20"),
        ({"1.weight": ("h", "h")}, "'h' has 20 units, but 64 in '1.weight'"),
    ],
)
def test_bad_specs_are_refused(names, message):
    with pytest.raises(StructureError, match=message):
        PermutationSpec.named(mlp((64, 20, 10)).state_dict(), names)


def test_a_spec_of_another_network_is_refused():
    spec = ti.align(mlp((4, 8, 2)), mlp((4, 8, 2)), restarts=0).spec
    model = mlp((4, 9, 2))
    with pytest.raises(
        StructureError, match=r"axes of \(8, 4\) entries for '1.weight'"
    ):
        ti.align(model, model, spec=spec)
    with pytest.raises(StructureError, match="spec names '1.weight', which is not"):
        ti.align(small_cnn(), small_cnn(), torch.zeros(1, 1, 8, 8), spec=spec)


def test_permutations_must_order_all_units():
    model = mlp((4, 3, 2))
    spec = ti.align(model, model, restarts=0).spec
    with pytest.raises(InputError, match=r"permutations\['1'\] must order 0 to 2"):
        spec.apply(model.state_dict(), {"1": torch.tensor([0, 0, 1])})
    with pytest.raises(InputError, match="got None"):
        spec.apply(model.state_dict(), {})


def test_bad_input_is_refused():
    a, b = mlp((4, 8, 2)), mlp((4, 8, 2))
    with pytest.raises(InputError, match='"weights" or "activations", got \'wights\''):
        inspect.unwrap(ti.align)(a, b, method="wights")
    with pytest.raises(InputError, match="restarts must be 0 or more"):
        ti.align(a, b, restarts=-1)
    with pytest.raises(StructureError, match=r"only model_a has \['3.weight'.*model_b"):
        ti.align(mlp((4, 8, 2)), mlp((4, 2)))
    with pytest.raises(StructureError, match=r"'1.weight' has shapes \(8, 4\) and"):
        ti.align(a, mlp((4, 9, 2)))
    state = b.state_dict()
    state["1.bias"] = state["1.bias"].clone()
    state["1.bias"][0] = np.nan
    with pytest.raises(CheckpointError, match=r"model_b has weights.*\['1.bias'\]"):
        ti.align(a, state)
    with pytest.raises(DataError, match="first layer, Conv2d; give a batch"):
        ti.align(small_cnn(), small_cnn())
    with pytest.raises(DataError, match='data is needed by method="activations"'):
        ti.align(a, b, method="activations")
    with pytest.raises(DataError, match="tensor of inputs"):
        ti.align(a, b, [{"x": torch.zeros(2, 4)}])
    spec = ti.align(a, b, restarts=0).spec
    with pytest.raises(InputError, match="leave `spec` out"):
        ti.align(a, b, spec=spec, method="activations")


def test_models_that_cannot_be_traced_are_refused():
    class Branching(Residual):
        def forward(self, x):
            return x if x.max() > 0 else -x

    with pytest.raises(StructureError, match="cannot be traced: at test_aligning.py"):
        ti.align(Branching(), Branching(), torch.zeros(1, 1, 8, 8))
