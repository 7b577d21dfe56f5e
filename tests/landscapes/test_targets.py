"""TARGETs and checkpoints, and what is said of those that cannot be used."""

import pickle
import sys
import textwrap

import cloudpickle
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from thalweg.errors import CheckpointError, TargetError
from thalweg.landscapes import NetworkLandscape, load_target, read_checkpoint

MODULE = """
import torch
from torch import nn
from thalweg.landscapes import NetworkLandscape, Quadratic

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))

torch.manual_seed(1)
X, Y = torch.randn(20, 4), torch.randint(3, (20,))
quadratic = Quadratic(torch.eye(2))
triple = (net(), nn.functional.cross_entropy, (X, Y))
examples = (net(), X, Y)
network = NetworkLandscape(*triple)
model = net()
number = 7
pair = (net(), X)
wrong = (net(), 3, X)

def factory():
    return triple

def returns_model():
    return net()

def needs(argument):
    return triple

def fails():
    raise KeyError("boom")
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(MODULE))
    return path


@pytest.fixture
def net(file):
    from_file = load_target(f"{file}:network").landscape
    return from_file.model


@pytest.mark.parametrize("name", ["triple", "factory", "network"])
def test_a_file_names_a_landscape(file, name):
    target = load_target(f"{file}:{name}")
    assert isinstance(target.landscape, NetworkLandscape)
    assert target.landscape.loss(target.landscape.origin).isfinite()
    assert not target.notes and target.examples is None


def test_a_module_and_a_relative_file(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert load_target("./mine.py:quadratic").landscape.dim == 2
    assert load_target("mine:quadratic").landscape.dim == 2


def test_a_tensor_in_second_place_means_cross_entropy(file):
    target = load_target(f"{file}:examples")
    assert "cross-entropy" in target.notes[0]
    assert target.examples is not None and len(target.examples[0]) == 20


def test_options_go_to_the_landscape(file):
    land = load_target(f"{file}:triple", weight_decay=0.5).landscape
    assert isinstance(land, NetworkLandscape) and land.weight_decay == 0.5
    with pytest.raises(TargetError, match="weight_decay"):
        load_target(f"{file}:network", weight_decay=0.5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", r"has no 'absent'; it has \["),
        ("model", "a model alone has no loss"),
        ("returns_model", "returns a Sequential: a model alone"),
        ("number", "names an int"),
        ("pair", r"\(Sequential, Tensor\)"),
        ("wrong", "second item of the tuple is an int"),
        ("needs", "needs arguments"),
        ("fails", "KeyError: 'boom'"),
        ("Quadratic", "a class, give an instance"),
    ],
)
def test_names_that_are_no_landscape(file, name, message):
    with pytest.raises(TargetError, match=message):
        load_target(f"{file}:{name}")


def test_targets_that_do_not_import(tmp_path):
    with pytest.raises(TargetError, match="must be"):
        load_target("mine.py")
    with pytest.raises(TargetError, match="there is no file .*none.py"):
        load_target(f"{tmp_path}/none.py:x")
    broken = tmp_path / "broken.py"
    broken.write_text("import not_a_package_at_all\n")
    message = f"{broken} raised ModuleNotFoundError.*not_a_package_at_all"
    with pytest.raises(TargetError, match=message):
        load_target(f"{broken}:x")
    with pytest.raises(TargetError, match=r"module 'nowhere\.at' .*looked for in"):
        load_target("nowhere.at:all")
    leaver = tmp_path / "leaver.py"
    leaver.write_text("raise SystemExit(3)\n")
    with pytest.raises(TargetError, match="SystemExit: 3"):
        load_target(f"{leaver}:x")


def moved(model, seed):
    torch.manual_seed(seed)
    state = model.state_dict()
    return {
        n: t + torch.rand_like(t) if t.is_floating_point() else t
        for n, t in state.items()
    }


def test_checkpoints_place_the_landscape(file, net, tmp_path):
    states = [moved(net, 1), moved(net, 2)]
    torch.save(states[0], tmp_path / "a.pt")
    torch.save(
        {"state_dict": {f"module.{n}": t for n, t in states[1].items()}, "epoch": 3},
        tmp_path / "b.pt",
    )
    save_file(states[1], tmp_path / "b.safetensors")
    files = [tmp_path / "a.pt", tmp_path / "b.pt"]
    target = load_target(f"{file}:triple", files)
    land = target.landscape
    assert len(target.states) == 2
    for state, expected in zip(target.states, states, strict=True):
        assert all(torch.equal(state[n], t) for n, t in expected.items())
    there = land.unflatten(land.origin)
    assert all(torch.equal(there[n], t) for n, t in states[0].items())
    other = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    other.load_state_dict(states[0])
    x, y = land.data
    expected = nn.functional.cross_entropy(other.eval()(x), y)
    torch.testing.assert_close(land.loss(land.origin).float(), expected.detach())
    again = read_checkpoint(tmp_path / "b.safetensors")
    assert all(torch.equal(again[n], t) for n, t in states[1].items())
    rebuilt = pickle.loads(pickle.dumps(target.recipe))()
    assert torch.equal(rebuilt.origin, land.origin)
    assert torch.equal(rebuilt.loss(land.origin), land.loss(land.origin))
    span = land.between(*target.states)
    torch.testing.assert_close(
        span.loss(torch.zeros(1)), land.loss(land.origin)[None].squeeze()
    )


def test_frozen_entries_come_from_the_checkpoint():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    data = torch.randn(5, 3), torch.randn(5, 2)
    land = NetworkLandscape(model, nn.functional.mse_loss, data)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    state = moved(model, 3)
    there = land.with_state(state)
    other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    other.load_state_dict(state)
    expected = nn.functional.mse_loss(other(data[0]), data[1])
    torch.testing.assert_close(there.loss(there.origin).float(), expected.detach())
    full = there.unflatten(there.origin)
    assert all(torch.equal(full[n], t) for n, t in state.items())
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_checkpoints_that_do_not_fit(file, net, tmp_path):
    state = moved(net, 1)
    path = tmp_path / "c.pt"

    def load(content):
        torch.save(content, path)
        return load_target(f"{file}:triple", [path])

    without = {n: t for n, t in state.items() if n != "1.running_var"}
    with pytest.raises(CheckpointError, match=r"c\.pt.*missing \['1\.running_var'\]"):
        load(without)
    with pytest.raises(CheckpointError, match=r"unexpected \['head'\]"):
        load(state | {"head": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"'0\.bias' has shape \(4,\).*\(5,\)"):
        load(state | {"0.bias": torch.ones(4)})
    with pytest.raises(CheckpointError, match=r"1 of 9 .*not finite.*0\.bias"):
        load(state | {"0.bias": torch.full((5,), torch.inf)})
    with pytest.raises(CheckpointError, match="holds a dict with keys"):
        load({"epoch": 3})
    load({n: t for n, t in state.items() if not n.endswith("tracked")})
    with pytest.raises(TargetError, match="checkpoints go with a network"):
        load_target(f"{file}:quadratic", [path])


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "a.pt")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"suffix '\.txt'"):
        read_checkpoint(tmp_path / "a.txt")
    state = {"w": torch.randn(300, 3)}
    torch.save(state, tmp_path / "a.pt")
    save_file(state, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        content = (tmp_path / name).read_bytes()
        for keep in (0, 20, len(content) // 2, len(content) - 7):
            (tmp_path / name).write_bytes(content[:keep])
            with pytest.raises(CheckpointError, match="truncated"):
                read_checkpoint(tmp_path / name)
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="more than tensors"):
        read_checkpoint(tmp_path / "m.pt")


def test_tied_entries_in_one_file(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3, bias=False)
            self.b = nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    model = Tied()
    save_model(model, str(tmp_path / "t.safetensors"))
    land = NetworkLandscape(model, nn.functional.mse_loss, (torch.ones(2, 3),) * 2)
    state = read_checkpoint(tmp_path / "t.safetensors")
    assert len(state) == 1
    assert torch.equal(land.with_state(state).origin, land.origin)


def test_classes_of_a_file_travel_whole(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        textwrap.dedent(
            """
            import torch
            from torch import nn

            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.layer = nn.Linear(3, 2)
                    self.frozen = nn.Linear(2, 2).requires_grad_(False)

                def forward(self, x):
                    return self.frozen(self.layer(x))

            def loss(output, target):
                return (output - target).square().mean()

            def make():
                return Net(), loss, (torch.ones(4, 3), torch.zeros(4, 2))
            """
        )
    )
    before = torch.get_rng_state()
    target = load_target(f"{path}:make")
    assert torch.equal(before, torch.get_rng_state())
    land = target.landscape
    content = cloudpickle.dumps(land)
    (name,) = [n for n in sys.modules if n.startswith("own_")]
    del sys.modules[name]
    other = cloudpickle.loads(content)
    p = land.origin + 0.1
    assert torch.equal(other.loss(p), land.loss(p))
    # Unseeded weights are the same in every process that builds the TARGET.
    assert torch.equal(target.recipe().origin, land.origin)
