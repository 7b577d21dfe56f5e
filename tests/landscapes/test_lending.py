"""The model is lent: it, the generators and the landscape are as before."""

import random

import cloudpickle
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from landscapes.networks import mlp
from thalweg.errors import InputError, NondeterministicLossError
from thalweg.landscapes import NetworkLandscape


class Dropper(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)
        )
        self.net[1].eval()

    def forward(self, x):
        return self.net(x)


def snapshot(model):
    return {
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "identity": [id(p) for p in model.parameters()]
        + [id(b) for b in model.buffers()],
        "pointers": [p.data_ptr() for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "gradients": [p.grad for p in model.parameters()],
        "frozen": [p.requires_grad for p in model.parameters()],
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].copy(),
    }


def same(a, b):
    for key, value in a["state"].items():
        assert torch.equal(value, b["state"][key]), key
    assert torch.equal(a["torch"], b["torch"]) and a["python"] == b["python"]
    assert (a["numpy"] == b["numpy"]).all()
    for key in ("identity", "pointers", "modes", "frozen"):
        assert a[key] == b[key], key
    assert all(x is y for x, y in zip(a["gradients"], b["gradients"], strict=True))


@pytest.mark.parametrize("buffers", ["freeze", "recalibrate"])
@pytest.mark.parametrize("failure", [None, ValueError, KeyboardInterrupt])
def test_model_and_generators_are_as_before(buffers, failure):
    model = Dropper()
    model.net[0].bias.requires_grad_(False)
    model.net[3].weight.grad = torch.ones(3, 8)
    x, y = torch.randn(12, 4), torch.randint(3, (12,))
    calls = []

    def loss(output, target):
        calls.append(1)
        torch.rand(3), random.random(), np.random.rand()
        if failure and len(calls) > 5:
            raise failure
        return F.cross_entropy(output, target)

    land = NetworkLandscape(model, loss, [(x, y), (x, y)], buffers=buffers)
    before = snapshot(model)
    for call in (
        lambda: land.loss(land.origin.repeat(3, 1) + 0.1),
        lambda: land.gradient(land.origin + 0.1),
        lambda: land.loss((land.origin + 0.1).requires_grad_()),
        land.evaluate,
        land.example_losses,
        land.example_gradients,
        land.describe,
    ):
        try:
            call()
        except (ValueError, KeyboardInterrupt):
            assert failure
        same(before, snapshot(model))


def test_train_mode_is_stochastic_unless_fixed_or_averaged():
    model = Dropper()
    data = torch.randn(64, 4), torch.randint(3, (64,))
    land = NetworkLandscape(model, F.cross_entropy, data, mode="train")
    with pytest.raises(NondeterministicLossError, match=r"net\.2"):
        land.loss(land.origin)
    fixed = NetworkLandscape(
        model, F.cross_entropy, data, mode="train", stochastic="fix"
    )
    once = fixed.loss(fixed.origin)
    assert torch.equal(once, fixed.loss(fixed.origin))
    torch.testing.assert_close(once, fixed.value_and_gradient(fixed.origin)[0])
    mean = NetworkLandscape(
        model, F.cross_entropy, data, mode="train", stochastic="average", repeats=8
    )
    result = mean.evaluate()
    assert result["loss_stderr"] > 0
    assert result["loss"] == pytest.approx(float(mean.loss(mean.origin)), rel=1e-12)
    plain = NetworkLandscape(model, F.cross_entropy, data)
    assert plain.training_modules and plain.loss(plain.origin).isfinite()


def test_it_travels_through_cloudpickle(digits):
    x, y = digits[0][:30], digits[1][:30]
    land = NetworkLandscape(
        mlp(), lambda o, t: F.cross_entropy(2 * o, t), (x, y), weight_decay=0.1
    )
    p = land.origin + 0.1
    value = land.loss(p)
    other = cloudpickle.loads(cloudpickle.dumps(land))
    assert torch.equal(other.loss(p), value)
    assert other.describe()["data"] == land.describe()["data"]


@pytest.mark.filterwarnings("ignore:.*jit:DeprecationWarning")
def test_models_that_cannot_be_lent():
    data = torch.ones(2, 3), torch.ones(2, 3)
    net = nn.Linear(3, 3)
    with pytest.raises(InputError, match="eager module"):
        NetworkLandscape(torch.jit.trace(net, data[0]), F.mse_loss, data)
    with pytest.raises(InputError, match="must be a torch module, got function"):
        NetworkLandscape(F.mse_loss, F.mse_loss, data)
    with pytest.raises(InputError, match="no parameters"):
        NetworkLandscape(nn.Tanh(), F.mse_loss, data)
    with pytest.raises(InputError, match="not initialized"):
        NetworkLandscape(nn.LazyLinear(3), F.mse_loss, data)
    mixed = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, device="meta"))
    with pytest.raises(InputError, match=r"several devices \(cpu, meta\)"):
        NetworkLandscape(mixed, F.mse_loss, data)


def test_a_landscape_keeps_its_point_while_the_model_trains_on(digits):
    x, y = digits[0][:30], digits[1][:30]
    model = nn.Sequential(mlp(), nn.BatchNorm1d(10).double())
    land = NetworkLandscape(model, F.cross_entropy, (x, y))
    value = land.loss(land.origin)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    model(x)
    assert torch.equal(land.loss(land.origin), value)


def test_a_user_graph_survives_an_evaluation_in_between(digits):
    x, y = digits[0][:30], digits[1][:30]
    model = mlp()
    pending = F.cross_entropy(model(x), y)
    land = NetworkLandscape(model, F.cross_entropy, (x, y))
    land.loss(land.origin + 1)
    land.gradient(land.origin + 1)
    pending.backward()
    torch.testing.assert_close(
        torch.cat([p.grad.reshape(-1) for p in model.parameters()]),
        land.gradient(land.origin),
    )
