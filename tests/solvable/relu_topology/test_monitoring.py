"""The monitor of training loops, its self-check, and the risk of crossing."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from thalweg.errors import InputError
from thalweg.models import mlp, small_cnn
from thalweg.seeding import normal, seeded
from thalweg.solvable import relu_topology as rt

_F64 = torch.zeros((), dtype=torch.float64)


def data(n=24, d=4, e=1):
    return normal((n, d), 0, "x", like=_F64), normal((n, e), 0, "y", like=_F64)


def train(model, optimizer, steps, x, y):
    for k in range(steps):
        rows = (torch.arange(8) + 5 * k) % len(x)
        optimizer.zero_grad()
        (model(x[rows]) - y[rows]).pow(2).mean().backward()
        optimizer.step()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1},
        {"momentum": 0.9, "weight_decay": 0.02},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.5, "maximize": True, "lr": 1e-4},
    ],
)
def test_the_self_check_of_a_training_loop_is_exact(options):
    model = mlp((4, 6, 5, 1), activation="relu").double()
    x, y = data()
    optimizer = torch.optim.SGD(model.parameters(), **{"lr": 0.05} | options)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.5)
    with rt.Monitor(model, optimizer, every=1, drift=True) as monitor:
        for _ in range(30):
            train(model, optimizer, 1, x, y)
            schedule.step()
    train(model, optimizer, 3, x, y)  # no longer watched
    for index in (0, 1):
        history = monitor.history(index)
        assert history.c.shape[0] == 31
        error = np.abs(rt.predict_drift(history) - history.c).max()
        assert error < 1e-12 * np.abs(history.c).max()
        assert np.abs(history.c[-1] - history.c[0]).max() > 1e-9


def test_convolutions_and_pruned_layers_pass_the_self_check():
    model = small_cnn(image_shape=(1, 4, 4), classes=2, channels=(3, 4)).double()
    prune.random_unstructured(model[3], "weight", 0.4)
    x, y = normal((12, 1, 4, 4), 0, "x", like=_F64), normal((12, 2), 0, "y", like=_F64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    with rt.Monitor(model, optimizer, every=1, drift=True, example_input=x) as monitor:
        train(model, optimizer, 20, x, y)
    for index in (0, 1):
        history = monitor.history(index)
        error = np.abs(rt.predict_drift(history) - history.c).max()
        assert error < 1e-12 * np.abs(history.c).max()


def test_training_is_the_same_with_a_monitor():
    ends = []
    for watched in (False, True):
        with seeded(3, "training"):
            model = mlp((4, 6, 1), activation="relu").double()
            model.append(nn.Dropout(0.0))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            monitor = rt.Monitor(model, optimizer, every=2) if watched else None
            train(model, optimizer, 10, *data())
            ends.append([*model.state_dict().values(), torch.get_rng_state()])
    assert monitor is not None and monitor.steps == [0, 2, 4, 6, 8, 10]
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_flips_of_free_neurons_are_seen_and_reported():
    model = nn.Sequential(
        nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)
    ).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[2.0], [0.5]]))
        model[2].weight.copy_(torch.tensor([[0.1, 1.0]]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = rt.Monitor(model, optimizer, every=5)
    x = torch.ones(4, 1, dtype=torch.float64)
    train(model, optimizer, 100, x, -2 * x)
    ((step, neuron),) = monitor.flips()
    assert neuron == 0 and step % 5 == 0
    assert (model[2].weight[0].sign() == torch.tensor([-1.0, 1.0])).all()
    report = json.loads(json.dumps(monitor.report()))
    (pair,) = report["pairs"]
    assert pair["flips"] == [[step, 0]]
    assert pair["start"]["locked"] == [1] and pair["end"]["locked"] == [1]
    assert len(pair["c"]) == len(report["steps"]) == 21
    assert "conserved to first order" in report["law"]


def test_the_law_names_what_breaks_it():
    model = mlp((3, 4, 1), activation="relu")

    def law(optimizer):
        return rt.Monitor(model, optimizer).law

    first, last = [*model[1].parameters()], [*model[3].parameters()]
    both = [{"params": first}, {"params": last, "weight_decay": 0.1}]
    assert "to first order" in law(torch.optim.SGD(model.parameters(), lr=0.1))
    decay = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)
    assert "exp(-2 x 0.01 x lr)" in law(decay)
    assert "as weight_decay differs" in law(torch.optim.SGD(both, lr=0.1))
    both[1] = {"params": last, "lr": 0.2}
    assert "as lr differs" in law(torch.optim.SGD(both, lr=0.1))
    assert "does not hold all the weights" in law(torch.optim.SGD(first, lr=0.1))
    adam = torch.optim.Adam(model.parameters())
    assert "Adam: not conserved" in law(adam)
    with pytest.raises(InputError, match="a history needs .* and Adam"):
        rt.Monitor(model, adam, every=1, drift=True).history()


def test_adam_moves_the_invariants_at_first_order():
    moved = {}
    for name, lr in (("SGD", 1e-4), ("Adam", 1e-4)):
        model = mlp((4, 6, 1), activation="relu").double()
        optimizer = getattr(torch.optim, name)(model.parameters(), lr=lr)
        monitor = rt.Monitor(model, optimizer, every=50)
        train(model, optimizer, 50, *data())
        moved[name] = np.abs(np.diff(monitor.trajectory(), axis=0)).max()
    assert moved["Adam"] > 100 * moved["SGD"]


def test_crossing_risk_by_hand():
    model = nn.Sequential(
        nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False)
    ).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0], [0, 0.5], [3, 0]]))
        model[2].weight.copy_(torch.tensor([[2.0, 1.0, 1.0]]))
    x = torch.tensor([[1.0, 0], [0, 2.0]], dtype=torch.float64)
    y = torch.zeros(2, 1, dtype=torch.float64)
    # Outputs 5 and 1; mean squared error: dL/df = 5 and 1.
    (risk,) = rt.crossing_risk(model, nn.MSELoss(), [(x, y)], 0.2)
    assert risk.neurons.tolist() == [0, 1]
    np.testing.assert_allclose(risk.step, [0.2 * 5 / 2, 0.2 * 1 / 1])
    g1, g2 = np.array([10.0, 2.0]), np.array([5.0, 1.0])
    np.testing.assert_allclose(risk.drift, 0.04 * (g1**2 - g2**2) / [3, 0.75])
    assert model[0].weight.grad is None
    with pytest.raises(InputError, match="lr must be positive"):
        rt.crossing_risk(model, nn.MSELoss(), [(x, y)], 0.0)
    smooth = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    with pytest.raises(InputError, match="lr must be positive"):
        rt.crossing_risk(smooth, nn.MSELoss(), [(x, y)], 0.0)


def test_a_step_above_the_risk_crosses():
    model = nn.Sequential(
        nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)
    ).double()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[2].weight.fill_(2.0)
    x, y = torch.ones(1, 1).double(), torch.zeros(1, 1).double()
    for lr, crosses in ((0.45, False), (0.55, True)):
        (risk,) = rt.crossing_risk(model, nn.MSELoss(), [(x, y)], lr)
        (model(x) - y).pow(2).mean().backward()
        after = model[2].weight - lr * model[2].weight.grad
        model.zero_grad()
        assert (risk.step[0] > 1) == (after.item() < 0) == crosses


def test_options_are_checked():
    model = mlp((3, 4, 1), activation="relu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="every must be at least 1, got 0"):
        rt.Monitor(model, optimizer, every=0)
    with pytest.raises(InputError, match="drift=True needs every=1"):
        rt.Monitor(model, optimizer, drift=True)


def test_models_without_pairs_are_watched_in_vain():
    model = mlp((3, 4, 1), activation="tanh")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert rt.Monitor(model, optimizer).report()["pairs"] == []
