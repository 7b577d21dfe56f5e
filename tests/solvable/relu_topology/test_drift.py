"""Drift of the invariants under real SGD, against the recursion and the flow."""

import numpy as np
import pytest
import torch

from thalweg.errors import InputError
from thalweg.solvable import relu_topology as rt


def network(neurons=5, d=3, e=1, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    w1, w2, b = scale * draw(neurons, d), scale * draw(e, neurons), draw(neurons)
    return [w.requires_grad_() for w in (w1, w2, b)], draw(20, d), draw(20, e)


def delta(a, b, kappa=1.0):
    (a1, a2, a0), (b1, b2, b0) = a, b
    return ((a1 * b1).sum(1) + a0 * b0 - kappa * (a2 * b2).sum(0)).numpy()


def recorded(parameters, x, y, rates, activation=torch.relu, kappa=1.0, **options):
    """Train with torch's SGD on minibatches and keep what a history needs."""
    optimizer = torch.optim.SGD(parameters, lr=rates[0], **options)
    w1, w2, b = parameters
    rows = {name: [] for name in ("gradient", "velocity", "mixed")}
    c = [rt.invariants(w1, w2, b, kappa).c]
    for k, lr in enumerate(rates):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        batch = torch.arange(8) + 6 * (k % 3) - 4 * (k % 2)
        out = activation(x[batch % len(x)] @ w1.T + b) @ w2.T
        (out - y[batch % len(x)]).pow(2).mean().backward()
        optimizer.step()
        g = [p.grad for p in parameters]
        v = [optimizer.state[p].get("momentum_buffer", p.grad) for p in parameters]
        for name, pair in (("gradient", (g, g)), ("velocity", (v, v))):
            rows[name].append(delta(*pair, kappa))
        rows["mixed"].append(delta(g, v, kappa))
        c.append(rt.invariants(w1.detach(), w2.detach(), b.detach(), kappa).c)

    def each(name):
        return np.full(len(rates), float(options.get(name, 0.0)))

    return rt.DriftHistory(
        np.stack(c),
        **{name: np.stack(values) for name, values in rows.items()},
        lr=np.asarray(rates),
        momentum=each("momentum"),
        dampening=each("dampening"),
        weight_decay=each("weight_decay"),
        nesterov=options.get("nesterov", False),
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1},
        {"momentum": 0.9},
        {"momentum": 0.9, "weight_decay": 0.1},
        {"momentum": 0.8, "weight_decay": 0.1, "dampening": 0.3},
        {"momentum": 0.9, "weight_decay": 0.05, "nesterov": True},
    ],
)
@pytest.mark.parametrize("e", [1, 3])
def test_prediction_matches_sgd_to_rounding(options, e):
    parameters, x, y = network(e=e)
    rates = 0.05 * np.linspace(1.0, 0.2, 60)  # a schedule
    history = recorded(parameters, x, y, rates, **options)
    moved = np.abs(history.c[-1] - history.c[0]).max()
    error = np.abs(rt.predict_drift(history) - history.c).max()
    assert moved > 1e-3
    assert error < 1e-12 * np.abs(history.c).max()


def test_prediction_matches_for_squared_relu():
    parameters, x, y = network()
    history = recorded(
        parameters, x, y, np.full(30, 0.01), lambda z: torch.relu(z) ** 2, 2.0
    )
    error = np.abs(rt.predict_drift(history) - history.c).max()
    assert error < 1e-12 * np.abs(history.c).max()


def test_prediction_misses_where_the_law_does_not_hold():
    parameters, x, y = network()
    history = recorded(parameters, x, y, np.full(30, 0.05), torch.tanh)
    assert np.abs(rt.predict_drift(history) - history.c).max() > 1e-2


def test_drift_over_a_given_time_is_proportional_to_the_step():
    drifts = []
    for lr in (0.02, 0.01, 0.005):
        parameters, x, y = network()
        history = recorded(parameters, x[:8], y[:8], np.full(round(2 / lr), lr))
        drifts.append(np.abs(history.c[-1] - history.c[0]).max())
    ratios = np.array(drifts[:-1]) / drifts[1:]
    np.testing.assert_allclose(ratios, 2, rtol=0.1)


def test_momentum_multiplies_the_drift_by_its_factor():
    # A gradient that stays the same: the limit that the leading order assumes.
    lr, beta, steps = 1e-3, 0.9, 4000
    v = np.cumsum(beta ** np.arange(steps))[:, None]
    ones = np.ones((steps, 1))
    history = rt.DriftHistory(
        np.zeros((steps + 1, 1)), ones, v**2, v, *(lr * ones[:, 0],),
        beta * ones[:, 0], 0 * ones[:, 0], 0 * ones[:, 0],
    )  # fmt: skip
    c = rt.predict_drift(history)[:, 0]
    slope = (c[-1] - c[-2]) / (lr / (1 - beta))
    rate = rt.drift_rate(np.ones(1), lr=lr, momentum=beta)[0]
    assert slope == pytest.approx(rate, rel=1e-9)
    assert rate / lr == pytest.approx(190)


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_noise_drifts_by_its_covariance(beta):
    lr, steps, batch = 1e-3, 20_000, 4
    noise = np.random.default_rng(0).standard_normal((steps, 50)) / batch**0.5
    v = noise.copy()
    for k in range(1, steps):
        v[k] += beta * v[k - 1]
    one = np.ones(steps)
    history = rt.DriftHistory(
        np.zeros((steps + 1, 50)), noise**2, v**2, noise * v, lr * one, beta * one,
        0 * one, 0 * one,
    )  # fmt: skip
    drift = rt.predict_drift(history)[-1] / (steps * lr / (1 - beta))
    still, one = np.zeros(1), np.ones(1)
    rate = rt.drift_rate(still, one, lr=lr, momentum=beta, batch_size=batch)[0]
    error = drift.std() / 50**0.5
    assert abs(drift.mean() - rate) < 4 * error + 1e-3 * rate


def circle(n):
    angle = 2 * np.pi * np.arange(n) / n
    x = np.stack([np.cos(angle), np.sin(angle)], 1)
    return x, np.maximum(x[:, 0], 0) - np.maximum(x[:, 1], 0)


def test_weight_decay_does_not_remove_an_obstruction():
    # Two neurons locked positive; the target needs one of each sign.
    points, values = circle(32)
    floor = rt.loss_floor(points, values, 1).value
    x, y = torch.from_numpy(points), torch.from_numpy(values)
    w1 = torch.tensor([[0.3, 0.1], [-0.2, 0.4]], dtype=torch.float64)
    w2 = torch.tensor([[1.2, 0.9]], dtype=torch.float64)
    start = rt.invariants(w1, w2).c
    parameters = [w.requires_grad_() for w in (w1, w2)]
    lr, decay, steps = 2e-3, 0.2, 5000
    optimizer = torch.optim.SGD(parameters, lr=lr, weight_decay=decay)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (torch.relu(x @ w1.T) @ w2[0] - y).pow(2).mean() / 2
        loss.backward()
        assert loss.item() >= floor
        assert (w2 > 0).all()
        optimizer.step()
    law = rt.invariants(w1, w2)
    expected = rt.decayed(start, decay, lr * steps)
    # Thin: 55 times less. Locked still, and below the floor at no time.
    assert (law.kind == -1).all()
    np.testing.assert_allclose(law.c, expected, rtol=0.05)


def test_after_the_decay_time_the_step_decides():
    # lr = 0.1: when decay has thinned |c| to lr, the drift of steps takes c across 0.
    w1 = torch.tensor([[0.5, 0.0]], dtype=torch.float64).requires_grad_()
    w2 = torch.tensor([[1.0]], dtype=torch.float64).requires_grad_()
    x = torch.tensor([[1.0, 0.2], [0.5, -1.0], [-1, 1.0]], dtype=torch.float64)
    y = torch.tensor([2.0, -3.0, 2.0], dtype=torch.float64)
    lr, decay = 0.1, 0.05
    start = rt.invariants(w1.detach(), w2.detach()).c
    optimizer = torch.optim.SGD([w1, w2], lr=lr, weight_decay=decay)
    for _ in range(
        round(2 * float(rt.decay_time(start, lr=lr, weight_decay=decay)[0]) / lr)
    ):
        optimizer.zero_grad()
        (torch.relu(x @ w1.T) @ w2[0] - y).pow(2).mean().backward()
        optimizer.step()
    assert start[0] < 0 < rt.invariants(w1.detach(), w2.detach()).c[0]


def test_errors_name_what_is_accepted():
    with pytest.raises(InputError, match="momentum in \\[0, 1\\)"):
        rt.drift_rate(np.ones(1), lr=0.1, momentum=1.0)
    with pytest.raises(InputError, match="weight_decay and time must be at least 0"):
        rt.decayed(np.ones(1), -0.1, 1.0)
    with pytest.raises(InputError, match="lr and weight_decay must be positive"):
        rt.decay_time(np.ones(1), lr=0.1, weight_decay=0.0)
