"""Probabilities of locked neurons against closed forms and samples."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from thalweg.errors import InputError
from thalweg.models import mlp, small_cnn
from thalweg.seeding import seeded
from thalweg.solvable import relu_topology as rt


@pytest.mark.parametrize("rho", [0.1, 1.0, 4.0])
def test_lock_probability_in_closed_form(rho):
    one = 2 / np.pi * np.arctan(np.sqrt(rho))
    assert rt.lock_probability(1, rho) == pytest.approx(one, rel=1e-12)
    two = 1 - (1 + rho) ** -0.5
    assert rt.lock_probability(2, rho) == pytest.approx(two, rel=1e-12)


def test_lock_probability_against_samples():
    rng = np.random.default_rng(0)
    w1, w2 = rng.standard_normal((40000, 5)), rng.standard_normal((1, 40000))
    kind = rt.invariants(w1, np.sqrt(3) * w2).kind
    p = rt.lock_probability(5, 3.0)
    error = np.sqrt(p * (1 - p) / 40000)
    assert abs(np.mean(kind < 0) - p) < 4 * error


@pytest.mark.parametrize(
    ("d", "rho"), [(2, 1.7), (3, 0.8), (5, 4.0), (20, 9.0), (3, 50.0)]
)
def test_uniform_lock_probability_against_samples(d, rho):
    rng = np.random.default_rng(0)
    u = rng.uniform(-1, 1, (200_000, d))
    locked = (u**2).sum(1) < rho * rng.uniform(-1, 1, 200_000) ** 2
    p = rt.lock_probability(d, rho, "uniform")
    assert abs(locked.mean() - p) < 4 * np.sqrt(p * (1 - p) / 200_000)


def test_uniform_lock_probability_is_one_function_on_both_sides_of_one():
    for d in (1, 2, 3, 8, 50):
        below = rt.lock_probability(d, 1.0, "uniform")
        assert rt.lock_probability(d, 1 + 1e-9, "uniform") == pytest.approx(
            below, abs=2e-8
        )
    for d in (2, 3, 8):
        below = rt.lock_probability(d, d * (1 - 1e-12), "uniform")
        above = rt.lock_probability(d, float(d), "uniform")
        assert above == pytest.approx(below, abs=2e-8)
    # Two inputs, rho = 2: the disc of radius sqrt(2) w leaves the square where w² > ½.
    w = (np.arange(400_000) + 0.5) / 400_000
    r2 = 2 * w**2
    angle = np.arccos(np.minimum(1 / np.sqrt(np.maximum(r2, 1)), 1))
    inside = np.where(
        r2 <= 1, np.pi / 4 * r2, np.sqrt(np.maximum(r2 - 1, 0))
        + r2 * (np.pi / 4 - angle),
    )  # fmt: skip
    exact = np.minimum(inside, 1).mean()
    assert rt.lock_probability(2, 2.0, "uniform") == pytest.approx(exact, abs=2e-8)
    assert rt.lock_probability(784, 784 / 2, "uniform") == pytest.approx(
        1 - np.sqrt(2 / 3), abs=2e-3
    )


def test_variance_ratios_are_those_of_torch():
    inputs, neurons = 5, 400
    schemes = {
        "torch": None,
        "kaiming_normal": nn.init.kaiming_normal_,
        "kaiming_uniform": nn.init.kaiming_uniform_,
        "xavier_normal": nn.init.xavier_normal_,
    }
    for scheme, init in schemes.items():
        with seeded(0, scheme):
            layers = [nn.Linear(inputs, neurons) for _ in range(40)]
            outs = [nn.Linear(neurons, 1) for _ in range(40)]
            for layer in [*layers, *outs] if init else []:
                init(layer.weight)
        v1 = torch.cat([layer.weight.flatten() for layer in layers]).var()
        v2 = torch.cat([layer.weight.flatten() for layer in outs]).var()
        ratio = rt.variance_ratio(inputs, neurons, scheme)
        assert (v2 / v1).item() == pytest.approx(ratio, rel=0.05)


def test_table_against_initializations_of_torch():
    table = rt.lock_table((2, 4), (1, 3))
    for d in (2, 4):
        for width in (1, 3):
            locked = []
            with seeded(d, width):
                for _ in range(400):
                    net = nn.Sequential(
                        nn.Linear(d, width), nn.ReLU(), nn.Linear(width, 1)
                    )
                    w1, b = net[0].weight, net[0].bias
                    c = w1.square().sum(1) + b**2 - net[2].weight[0] ** 2
                    locked.append(((c < 0).tolist(), net[2].weight[0].sign().tolist()))
            any_, all_, equal = (
                np.mean([any(c) for c, _ in locked]),
                np.mean([all(c) for c, _ in locked]),
                np.mean([all(c) and len(set(s)) == 1 for c, s in locked]),
            )
            row = table.sel(inputs=d, neurons=width)
            for found, name in ((any_, "any"), (all_, "all"), (equal, "equal")):
                p = float(row[name])
                assert abs(found - p) < 4 * np.sqrt(p * (1 - p) / 400) + 1e-9
            assert float(row["obstructed"]) == pytest.approx(
                rt.obstruction_probability(width, float(row["lock"]), (1, 1))
            )
    assert rt.lock_table((2,), (2,), scheme="kaiming_normal")["lock"].item() == (
        rt.lock_probability(2, 1.0)
    )


@pytest.mark.parametrize("pruned", [False, True])
def test_rescaled_starts_are_free_and_compute_the_same(pruned):
    with seeded(0, "rescaled"):
        model = mlp((3, 6, 5, 1), activation="relu").double()
    with torch.no_grad():
        model[5].weight.mul_(4)
    if pruned:
        prune.random_unstructured(model[3], "weight", 0.3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = rt.reinit_unlocked(model)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    (name, c) = next(item for item in found.before.items() if item[0][1] == "5")
    assert (c < 0).any() and (found.after[name] > 0).all()
    np.testing.assert_allclose(found.after[name], np.abs(c), rtol=1e-9)
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)).double()
    expected = model(x)
    model.load_state_dict(found.state)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    assert rt.scan(model).locked == 0


def test_convolutions_are_rescaled_in_their_layout():
    with seeded(0, "maps"):
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 1, groups=1)
        ).double()
    with torch.no_grad():
        model[2].weight.fill_(-7.0)
    x = torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(0)).double()
    expected = model(x)
    found = rt.reinit_unlocked(model)
    model.load_state_dict(found.state)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    assert (found.after["0", "2"] > 0).all()
    wide = small_cnn(classes=3)
    state = rt.reinit_unlocked(wide).state
    assert all(torch.equal(state[k], v) for k, v in wide.state_dict().items())


def test_alternating_signs_keep_every_invariant():
    with seeded(0, "signs"):
        model = mlp((3, 6, 1), activation="relu").double()
    with torch.no_grad():
        model[3].weight.fill_(3.0)
    found = rt.reinit_unlocked(model, "signs")
    np.testing.assert_array_equal(found.before["1", "3"], found.after["1", "3"])
    assert found.state["3.weight"][0].tolist() == [3, -3, 3, -3, 3, -3]


def test_obstruction_probability_in_closed_form_and_by_samples():
    # Both signs are needed: obstructed where all are locked with one sign.
    for neurons in (2, 5):
        found = rt.obstruction_probability(neurons, 0.6, (1, 1))
        assert found == pytest.approx(2 * 0.3**neurons, rel=1e-12)
    draws = np.random.default_rng(1).multinomial(6, [0.3, 0.3, 0.4], 20000)
    short = np.maximum(0, 3 - draws[:, 0]) + np.maximum(0, 2 - draws[:, 1])
    expected = rt.obstruction_probability(6, 0.6, (3, 2))
    error = np.sqrt(expected * (1 - expected) / 20000)
    assert abs(np.mean(short > draws[:, 2]) - expected) < 4 * error


def test_errors_name_what_is_accepted():
    with pytest.raises(InputError, match="d must be at least 1 and rho positive"):
        rt.lock_probability(0, 1.0)
    with pytest.raises(InputError, match='law must be "normal" or "uniform"'):
        rt.lock_probability(2, 1.0, "cauchy")
    with pytest.raises(InputError, match="scheme must be one of"):
        rt.variance_ratio(2, 1, "lecun")
    with pytest.raises(InputError, match="inputs and neurons must be at least 1"):
        rt.variance_ratio(2, 0)
    model = mlp((3, 2, 1), activation="relu").double()
    with pytest.raises(InputError, match='how must be "rescale" or "signs"'):
        rt.reinit_unlocked(model, "zero")
    with torch.no_grad():
        model[1].weight.zero_(), model[1].bias.zero_()
    with pytest.raises(InputError, match="neuron 0 cannot reach c"):
        rt.reinit_unlocked(model)
    with pytest.raises(InputError, match="lock in \\[0, 1\\]"):
        rt.obstruction_probability(3, 1.5, (1, 1))
