"""Ensembles against torch modules one by one, and the experiment on the circle."""

import numpy as np
import pytest
import torch
from torch import nn

from thalweg.errors import InputError, StructureError
from thalweg.seeding import normal
from thalweg.solvable import relu_topology as rt

_F64 = torch.zeros((), dtype=torch.float64)


def draw(*shape, key="x"):
    return normal(shape, 0, key, like=_F64)


@pytest.mark.parametrize("loss", ["mse", "logistic"])
@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9}, {"momentum": 0.5, "weight_decay": 0.1}]
)
@pytest.mark.parametrize("bias", [False, True])
def test_each_network_is_trained_as_torch_would(loss, options, bias):
    x, y = draw(12, 3), draw(12, key="y")
    y = y.sign() if loss == "logistic" else y
    w1, w2 = draw(4, 5, 3 + bias, key="w1"), draw(4, 5, key="w2")
    run = rt.train_ensemble(
        w1, w2, x, y, lr=0.1, steps=30, bias=bias, loss=loss, record=[0, 7], **options
    )
    assert run.steps == (0, 7, 30)
    for r in range(4):
        net = nn.Sequential(
            nn.Linear(3, 5, bias=bias), nn.ReLU(), nn.Linear(5, 1, bias=False)
        ).double()
        with torch.no_grad():
            net[0].weight.copy_(w1[r, :, :3])
            net[2].weight.copy_(w2[r, None])
            if bias:
                net[0].bias.copy_(w1[r, :, 3])
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, **options)
        losses = []
        for _ in range(31):
            f = net(x)[:, 0]
            value = (
                (f - y).square().mean() / 2
                if loss == "mse"
                else nn.functional.softplus(-y * f).mean()
            )
            losses.append(value.item())
            optimizer.zero_grad()
            value.backward()
            if len(losses) < 31:
                optimizer.step()
        torch.testing.assert_close(run.w1[r, :, :3], net[0].weight.detach())
        torch.testing.assert_close(run.w2[r], net[2].weight[0].detach())
        expected = torch.tensor([losses[0], losses[7], losses[30]]).double()
        torch.testing.assert_close(run.losses[:, r], expected)
        assert run.lowest[r].item() == pytest.approx(min(losses))


def circle(n):
    angle = 2 * torch.pi * torch.arange(n, dtype=torch.float64) / n
    x = torch.stack([angle.cos(), angle.sin()], 1)
    return x, x[:, 0].relu() - x[:, 1].relu()


def starts(replicas, c, signs, seed=0):
    """Return random neurons of the given c, with output weights of the given signs."""
    shape = (replicas, len(c))
    c, signs = torch.tensor(c).double(), torch.tensor(signs).double()
    low = normal(shape, seed, "size", like=_F64).abs() * 0.5 + 0.05
    direction = normal((*shape, 2), seed, "direction", like=_F64)
    direction /= direction.norm(dim=-1, keepdim=True)
    inner = torch.where(c < 0, low, (low.square() + c.abs()).sqrt())
    outer = torch.where(c < 0, (low.square() + c.abs()).sqrt(), low)
    return inner[..., None] * direction, signs * outer


def test_reference_experiment_on_the_circle():
    x, y = circle(64)
    options = {"lr": 0.1, "steps": 6000, "tol": 1e-22}
    rates = {}
    for name, c, signs in (
        ("locked ++", [-0.3, -0.3], [1, 1]),
        ("locked +-", [-0.3, -0.3], [1, -1]),
        ("one free", [-0.3, 0.3], [1, 1]),
    ):
        w1, w2 = starts(60, c, signs)
        run = rt.train_ensemble(w1, w2, x, y, **options)
        success = run.loss < 1e-20
        rates[name] = success.double().mean().item()
        # A locked sign never changes, a free one has changed wherever it succeeded.
        locked = torch.tensor(c) < 0
        assert run.flips[:, locked].sum() == 0
        if name == "locked ++":
            floor = rt.loss_floor(x, y, 1).value
            assert run.lowest.min() >= floor - 1e-12
        if name == "one free":
            assert (run.flips[success, 1] == 1).all()
            assert (run.w2[success, 1] < 0).all()
    assert rates["locked ++"] == 0
    assert 0 < rates["locked +-"] < 1 and 0 < rates["one free"] < 1


def test_stated_starts_reach_the_target():
    # (ii) signs (+, -) near the target; (iii) the free neuron turns on its way.
    x, y = circle(64)
    cases = {
        (1, -1): torch.tensor([[[0.4, 0.1], [0.1, 0.4]]]),
        (1, 1): torch.tensor([[[0.4, 0.1], [0.1, 0.9]]]),
    }
    outer = {(1, -1): [[0.8, -0.8]], (1, 1): [[0.8, 0.1]]}
    for signs, w1 in cases.items():
        w2 = torch.tensor(outer[signs]).double()
        run = rt.train_ensemble(w1.double(), w2, x, y, lr=0.1, steps=8000, tol=1e-21)
        kinds = rt.invariants(w1[0].double(), w2).kind
        assert kinds.tolist() == [-1, -1 if signs[1] < 0 else 1]
        assert run.loss.item() < 1e-20
        assert run.flips[0].tolist() == [0, int(signs[1] > 0)]


def test_an_obstruction_is_absolute_in_wider_networks_too():
    x, y = circle(32)
    floor = rt.loss_floor(x, y, 1).value
    for width in (3, 5):
        w1, w2 = starts(20, [-0.2] * width, [1] * width)
        run = rt.train_ensemble(w1, w2, x, y, lr=0.05, steps=2000)
        assert run.lowest.min() >= floor and run.flips.sum() == 0
        np.testing.assert_array_less(
            rt.invariants(run.w1[0], run.w2[:1]).c, np.zeros(width)
        )


def test_errors_name_shapes_and_options():
    x, y = circle(8)
    w1, w2 = draw(2, 3, 2), draw(2, 3)
    for change, match in (
        ({"w2": draw(2, 4)}, r"got \(2, 3, 2\) and \(2, 4\)"),
        ({"y": y[:5]}, "y must have 8 rows"),
        ({"bias": True}, "fit the 3 inputs"),
    ):
        with pytest.raises(StructureError, match=match):
            arguments = {"w1": w1, "w2": w2, "x": x, "y": y, "lr": 0.1, "steps": 1}
            rt.train_ensemble(**(arguments | change))
    with pytest.raises(InputError, match="loss must be one of"):
        rt.train_ensemble(w1, w2, x, y, lr=0.1, steps=1, loss="hinge")
    with pytest.raises(InputError, match="lr must be positive"):
        rt.train_ensemble(w1, w2, x, y, lr=0.0, steps=1)
    with pytest.raises(InputError, match="record must be at least 1"):
        rt.train_ensemble(w1, w2, x, y, lr=0.1, steps=1, record=0)
