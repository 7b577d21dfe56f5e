"""A network's loss: against dense autograd, and the promises it makes."""

import copy
import random

import cloudpickle
import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from thalweg.errors import (
    DataError,
    InputError,
    LossError,
    NondeterministicLossError,
    PrecisionWarning,
    StructureError,
)
from thalweg.landscapes import NetworkLandscape


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.data / 16), torch.tensor(data.target)


def mlp(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).to(dtype)


def reference(model, x, y, point):
    """The loss at a point by functional_call, sharing nothing with the landscape."""
    tensors, offset = {}, 0
    for name, p in model.named_parameters():
        tensors[name] = point[offset : offset + p.numel()].reshape(p.shape)
        offset += p.numel()
    return F.cross_entropy(functional_call(model, tensors, (x,)), y)


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def test_loss_gradient_and_metrics_on_digits(digits):
    x, y = digits
    model = mlp()
    land = NetworkLandscape(model, F.cross_entropy, (x, y))
    assert land.dim == 64 * 16 + 16 + 160 + 10 and land.rows == 1797
    torch.testing.assert_close(land.origin, flat(model))
    points = land.origin + 0.1 * torch.randn(2, 3, land.dim, dtype=torch.float64)
    values, gradients = land.value_and_gradient(points)
    assert values.shape == (2, 3) and gradients.shape == points.shape
    for i in range(2):
        p = points[i, 1].clone().requires_grad_()
        expected = reference(model, x, y, p)
        (slope,) = torch.autograd.grad(expected, p)
        torch.testing.assert_close(values[i, 1], expected.detach(), rtol=1e-13, atol=0)
        torch.testing.assert_close(gradients[i, 1], slope, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(land.loss(points), values, rtol=1e-14, atol=0)
    torch.testing.assert_close(land.gradient(points), gradients, rtol=0, atol=0)
    hits = (model(x).argmax(1) == y).double().mean()
    assert land.metrics() == {"accuracy": pytest.approx(float(hits), abs=1e-15)}
    assert land.evaluate()["loss"] == float(land.loss(land.origin))


def test_loss_has_a_graph_where_points_require_it(digits):
    x, y = digits[0][:50], digits[1][:50]
    model = mlp()
    land = NetworkLandscape(
        model, F.cross_entropy, [(x[:30], y[:30]), (x[30:], y[30:])], weight_decay=0.1
    )

    def full(p):
        return reference(model, x, y, p) + 0.05 * p @ p

    p = land.origin.clone().requires_grad_()
    (slope,) = torch.autograd.grad(land.loss(p), p, create_graph=True)
    q = land.origin.clone().requires_grad_()
    (expected,) = torch.autograd.grad(full(q), q, create_graph=True)
    torch.testing.assert_close(slope, expected, rtol=1e-10, atol=1e-13)
    v = torch.randn_like(p)
    torch.testing.assert_close(
        torch.autograd.grad(slope @ v, p)[0], torch.autograd.grad(expected @ v, q)[0]
    )
    torch.testing.assert_close(torch.func.grad(land.loss)(land.origin), slope.detach())
    torch.testing.assert_close(land.gradient(land.origin), slope.detach())


def test_batches_of_unequal_size_are_weighted(digits):
    x, y = digits
    model = mlp()
    whole = NetworkLandscape(model, F.cross_entropy, [(x, y)])
    for split in (1790, 1400):
        parts = NetworkLandscape(
            model, F.cross_entropy, [(x[:split], y[:split]), (x[split:], y[split:])]
        )
        p = whole.origin + 0.1
        assert abs(float(parts.loss(p) - whole.loss(p))) < 1e-12
        assert float((parts.gradient(p) - whole.gradient(p)).abs().max()) < 1e-12


def test_sum_reduction_adds(digits):
    x, y = digits[0][:20], digits[1][:20]
    loss = nn.CrossEntropyLoss(reduction="sum")
    parts = NetworkLandscape(
        mlp(), loss, [(x[:13], y[:13]), (x[13:], y[13:])], reduction="sum"
    )
    expected = 20 * F.cross_entropy(mlp()(x), y)
    torch.testing.assert_close(parts.loss(parts.origin), expected.detach())
    torch.testing.assert_close(parts.example_losses().sum(), expected.detach())


def test_token_weights_through_the_loss_and_through_weight(digits):
    x, y = digits[0][:40], digits[1][:40].clone()
    y[::3] = -100
    expected = F.cross_entropy(mlp()(x), y).detach()
    batches = [(x[:7], y[:7]), (x[7:], y[7:])]
    counted = lambda batch: (batch[1] != -100).sum()  # noqa: E731
    by_option = NetworkLandscape(mlp(), F.cross_entropy, batches, weight=counted)

    def pairs(output, target):
        return F.cross_entropy(output, target), (target != -100).sum()

    by_loss = NetworkLandscape(mlp(), pairs, batches)
    for land in (by_option, by_loss):
        torch.testing.assert_close(land.loss(land.origin), expected)
    values = by_option.example_losses()
    torch.testing.assert_close(values[y != -100].mean(), expected)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignore", [-100, 2])
def test_the_weights_of_cross_entropy_are_known(digits, weighted, ignore):
    x, y = digits[0][:60], digits[1][:60].clone()
    y[::4] = ignore
    y[50:53] = ignore  # a batch of which nothing counts
    classes = torch.linspace(0.2, 3, 10, dtype=torch.float64) if weighted else None
    loss = nn.CrossEntropyLoss(weight=classes, ignore_index=ignore)
    split = [(x[a:b], y[a:b]) for a, b in ((0, 7), (7, 50), (50, 53), (53, 60))]
    whole = NetworkLandscape(mlp(), loss, [(x, y)])
    parts = NetworkLandscape(mlp(), loss, split)
    p, v = whole.origin, torch.ones_like(whole.origin)
    torch.testing.assert_close(whole.loss(p), loss(mlp()(x), y).detach())
    for left, right in (
        (parts.loss(p), whole.loss(p)),
        (parts.gradient(p), whole.gradient(p)),
        (parts.hessian(p) @ v, whole.hessian(p) @ v),
        (parts.ggn(p) @ v, whole.ggn(p) @ v),
    ):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-12)
    values, counted = parts.example_losses(), y != ignore
    weights = torch.ones(10).double() if classes is None else classes
    weights = weights[y[counted]] / weights[y[counted]].sum()
    torch.testing.assert_close(weights @ values[counted], whole.loss(p))


def test_vmap_goes_through_a_network_unless_buffers_are_recalibrated(digits):
    x, y = digits[0][:30], digits[1][:30]
    torch.manual_seed(0)
    layers = nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 10)
    model = nn.Sequential(*layers).double()
    data = [(x[:20], y[:20]), (x[20:], y[20:])]
    land = NetworkLandscape(model, F.cross_entropy, data, weight_decay=0.1)
    points = land.origin + torch.linspace(0, 0.1, 3, dtype=torch.float64)[:, None]
    values = torch.func.vmap(land.loss)(points)
    torch.testing.assert_close(values, land.loss(points), rtol=1e-12, atol=0)
    slopes = torch.func.vmap(torch.func.grad(land.loss))(points)
    torch.testing.assert_close(slopes, land.gradient(points), rtol=0, atol=1e-12)
    moving = NetworkLandscape(model, F.cross_entropy, data, buffers="recalibrate")
    with pytest.raises(InputError, match="without vmap"):
        torch.func.vmap(moving.loss)(points)


def test_examples_combine_to_loss_and_gradient(digits):
    x, y = digits[0][:23], digits[1][:23]
    land = NetworkLandscape(
        mlp(), F.cross_entropy, [(x[:16], y[:16]), (x[16:], y[16:])], weight_decay=1.0
    )
    model = mlp()
    rows = F.cross_entropy(model(x), y, reduction="none").detach()
    torch.testing.assert_close(land.example_losses(), rows)
    gradients = land.example_gradients(chunk=5)
    assert gradients.shape == (23, land.dim)
    torch.testing.assert_close(
        gradients.mean(0) + land.origin, land.gradient(land.origin)
    )
    p = land.origin.clone().requires_grad_()
    (first,) = torch.autograd.grad(reference(model, x[:1], y[:1], p), p)
    torch.testing.assert_close(gradients[0], first)
    stderr = float(rows.std() / 23**0.5)
    assert land.loss_stderr() == pytest.approx(stderr, rel=1e-10)
    p = land.origin + 0.1
    paired = land.example_losses(p) - rows
    expected = float(paired.std() / 23**0.5)
    assert land.loss_stderr(p, reference=land.origin) == pytest.approx(expected)


def test_a_loss_that_couples_rows_is_refused(digits):
    x, y = digits[0][:20], digits[1][:20]

    def contrast(output, target):
        return (output - output.mean(0)).square().mean()

    land = NetworkLandscape(mlp(), contrast, (x, y))
    with pytest.raises(LossError, match="couples the rows"):
        land.example_losses()


def test_looped_examples_equal_vectorized_ones(digits):
    x, y = digits[0][:6], digits[1][:6]

    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x):
            return self.net(x) * (2.0 if x.sum().item() > -1 else 1.0)

    looped = NetworkLandscape(Branching(), F.cross_entropy, (x, y))
    scaled = lambda o, t: F.cross_entropy(2 * o, t)  # noqa: E731
    plain = NetworkLandscape(mlp(), scaled, (x, y))
    torch.testing.assert_close(looped.example_gradients(), plain.example_gradients())
    torch.testing.assert_close(looped.example_losses(), plain.example_losses())


def test_subset_batches_and_subsample(digits):
    x, y = digits
    land = NetworkLandscape(mlp(), F.cross_entropy, (x, y))
    rows = land.example_losses()
    part = land.subset([5, 3, 1000])
    torch.testing.assert_close(part.loss(land.origin), rows[[3, 5, 1000]].mean())
    pieces = land.batches(500)
    assert [p.rows for p in pieces] == [500, 500, 500, 297]
    torch.testing.assert_close(pieces[3].loss(land.origin), rows[1500:].mean())
    torch.testing.assert_close(
        land.subset(range(100)).subset([7]).loss(land.origin), rows[7]
    )
    few = NetworkLandscape(mlp(), F.cross_entropy, (x, y), subsample=100, seed=3)
    again = NetworkLandscape(
        mlp(), F.cross_entropy, [(x[:100], y[:100]), (x[100:], y[100:])],
        subsample=100, seed=3,
    )  # fmt: skip
    assert few.rows == 100
    assert float(few.loss(few.origin)) == pytest.approx(
        float(again.loss(few.origin)), rel=1e-14
    )
    first = NetworkLandscape(
        mlp(), F.cross_entropy, [(x[:9], y[:9]), (x[9:], y[9:])], max_batches=1
    )
    torch.testing.assert_close(first.loss(land.origin), rows[:9].mean())


def test_weight_decay_enters_loss_and_gradient_only(digits):
    x, y = digits[0][:50], digits[1][:50]
    plain = NetworkLandscape(mlp(), F.cross_entropy, (x, y))
    land = NetworkLandscape(
        mlp(), F.cross_entropy, (x, y), weight_decay=0.3, decay="*.weight"
    )
    mask = torch.zeros(land.dim, dtype=torch.float64)
    mask[land.layout.indices("*.weight")] = 1
    p = land.origin
    torch.testing.assert_close(
        land.loss(p), plain.loss(p) + 0.15 * (mask * p).square().sum()
    )
    torch.testing.assert_close(land.gradient(p), plain.gradient(p) + 0.3 * mask * p)
    assert land.metrics() == plain.metrics()
    torch.testing.assert_close(land.example_losses(), plain.example_losses())


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


def test_recalibration_finds_the_statistics_of_the_point():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 2)).double()
    x, y = torch.randn(40, 5).double(), torch.randn(40, 2).double()
    batches = [(x[:25], y[:25]), (x[25:], y[25:])]
    land = NetworkLandscape(model, F.mse_loss, batches, buffers="recalibrate")
    p = land.origin + 0.3 * torch.randn(land.dim).double()
    other = copy.deepcopy(model)
    other.load_state_dict(land.unflatten(p))
    hidden = [other[0](b[0]) for b in batches]
    other[1].running_mean = torch.stack([h.mean(0) for h in hidden]).mean(0).detach()
    other[1].running_var = torch.stack([h.var(0) for h in hidden]).mean(0).detach()
    other.eval()
    expected = F.mse_loss(other(x), y)
    torch.testing.assert_close(land.loss(p), expected.detach())
    slopes = torch.autograd.grad(expected, list(other.parameters()))
    torch.testing.assert_close(
        land.gradient(p), torch.cat([g.reshape(-1) for g in slopes])
    )
    q = p.clone().requires_grad_()
    torch.testing.assert_close(
        torch.autograd.grad(land.loss(q), q)[0], land.gradient(p)
    )
    frozen = NetworkLandscape(model, F.mse_loss, batches)
    assert float((frozen.loss(p) - land.loss(p)).abs()) > 1e-3


def test_between_moves_buffers_and_holds_variances():
    torch.manual_seed(2)
    nets = [
        nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 2)).double()
        for _ in range(3)
    ]
    for i, net in enumerate(nets):
        net[1].running_var.uniform_(0.5, 2.0)
        net[1].running_mean.normal_()
        net[1].num_batches_tracked.fill_(i)
    x, y = torch.randn(30, 5).double(), torch.randn(30, 2).double()
    land = NetworkLandscape(nets[0], F.mse_loss, (x, y))
    span = land.between(*nets)
    assert span.dim == 2 and span.origin.tolist() == [0, 0]
    c = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.3, 0.2]]).double()
    values = span.loss(c)
    for i, net in enumerate(nets):
        net.eval()
        torch.testing.assert_close(values[i], F.mse_loss(net(x), y).detach())
    mixed = copy.deepcopy(nets[0])
    states = [n.state_dict() for n in nets]
    mixed.load_state_dict(
        {k: 0.5 * states[0][k] + 0.3 * states[1][k] + 0.2 * states[2][k]
         for k in states[0]}
    )  # fmt: skip
    torch.testing.assert_close(values[3], F.mse_loss(mixed(x), y).detach())
    assert span.held == 0
    assert span.describe() == land.between(*states).describe()
    shifted = dict(states[1], **{"1.running_mean": states[1]["1.running_mean"] + 1})
    assert span.describe() != land.between(states[0], shifted, states[2]).describe()
    far = span.loss(torch.tensor([-20.0, 3.0]).double())
    assert far.isfinite() and span.held > 0
    placed = span.placed(torch.tensor([-20.0, 3.0]).double())
    least = torch.stack([n[1].running_var for n in nets]).amin(0)
    assert bool((placed._held["1.running_var"] >= least).all())
    eps = 1e-6
    slope = span.gradient(c[3])
    assert slope.shape == (2,)
    at = span.placed(c[3])
    e0 = torch.tensor([eps, 0.0]).double()
    difference = at.loss(span.embed(c[3] + e0)) - at.loss(span.embed(c[3] - e0))
    torch.testing.assert_close(slope[0], difference / (2 * eps), rtol=1e-6, atol=1e-9)
    with pytest.raises(InputError, match="bare points"):
        NetworkLandscape(nets[0], F.mse_loss, (x, y), buffers="interpolate").between(
            land.origin, land.origin + 1
        )
    with pytest.raises(InputError, match="between"):
        NetworkLandscape(nets[0], F.mse_loss, (x, y), buffers="interpolate").loss(
            land.origin
        )


def test_tied_frozen_and_patterns():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(11, 6)
            self.mid = nn.Linear(6, 6)
            self.head = nn.Linear(6, 11, bias=False)
            self.head.weight = self.embed.weight
            self.mid.bias.requires_grad_(False)

        def forward(self, x):
            return self.head(torch.tanh(self.mid(self.embed(x))))

    model = Tied().double()
    x, y = torch.randint(11, (30,)), torch.randint(11, (30,))
    land = NetworkLandscape(model, F.cross_entropy, (x, y))
    assert land.layout.names == ("embed.weight", "mid.weight")
    assert land.layout["embed.weight"].owner == "Embedding"
    assert land.layout["embed.weight"].filter_axis == 0
    loss = F.cross_entropy(model(x), y)
    slopes = torch.autograd.grad(loss, [model.embed.weight, model.mid.weight])
    torch.testing.assert_close(
        land.gradient(land.origin), torch.cat([g.reshape(-1) for g in slopes])
    )
    p = land.origin + 1
    state = land.unflatten(p)
    assert torch.equal(state["head.weight"], state["embed.weight"])
    torch.testing.assert_close(land.flatten(state), p)
    only = {k: v for k, v in state.items() if k != "embed.weight"}
    torch.testing.assert_close(land.flatten(only), p)
    with pytest.raises(StructureError, match="tied"):
        land.flatten(state | {"head.weight": state["head.weight"] + 1})
    with pytest.raises(StructureError, match=r"missing \['mid.weight'\]"):
        land.flatten({k: v for k, v in state.items() if k != "mid.weight"})
    with pytest.raises(StructureError, match=r"unexpected \['other'\]"):
        land.flatten(state | {"other": p})
    some = NetworkLandscape(model, F.cross_entropy, (x, y), exclude="embed*")
    assert some.layout.names == ("mid.weight",)
    chosen = NetworkLandscape(
        model, F.cross_entropy, (x, y),
        include=lambda name, p, owner: isinstance(owner, nn.Embedding),
    )  # fmt: skip
    assert chosen.layout.names == ("embed.weight",)
    with pytest.raises(InputError, match=r"no parameter.*embed\.weight"):
        NetworkLandscape(model, F.cross_entropy, (x, y), include="nothing*")
    with pytest.raises(InputError, match="frozen"):
        NetworkLandscape(model, F.cross_entropy, (x, y), include="mid.bias")


def test_filter_axes_of_convolutions():
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(6, 4, 3, groups=2)
    )
    land = NetworkLandscape(model, F.mse_loss, (torch.zeros(2, 4, 5, 5),) * 2)
    blocks = {b.name: (b.filter_axis, b.groups) for b in land.layout.blocks}
    assert blocks == {
        "0.weight": (0, 1), "0.bias": (None, 1),
        "1.weight": (1, 2), "1.bias": (None, 1),
    }  # fmt: skip


def test_complex_parameters_are_their_real_view():
    class Phase(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3, dtype=torch.float64))
            self.w = nn.Parameter(torch.randn(2, 3, dtype=torch.complex128))

        def forward(self, x):
            return ((x * self.scale).to(self.w.dtype) @ self.w.T).abs()

    model = Phase()
    x, y = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    land = NetworkLandscape(model, F.mse_loss, (x, y))
    assert land.dim == 15 and land.layout["w"].shape == (2, 3, 2)

    def by_hand(p):
        w = torch.complex(
            p[3:].reshape(2, 3, 2)[..., 0], p[3:].reshape(2, 3, 2)[..., 1]
        )
        return F.mse_loss(((x * p[:3]).to(w.dtype) @ w.T).abs(), y)

    p = land.origin + 0.1 * torch.randn(15).double()
    torch.testing.assert_close(land.loss(p), by_hand(p))
    expected = torch.func.grad(by_hand)(p)
    torch.testing.assert_close(land.gradient(p), expected)
    torch.testing.assert_close(torch.func.grad(land.loss)(p), expected)
    torch.testing.assert_close(land.example_gradients(p).mean(0), expected)
    torch.testing.assert_close(land.flatten(land.unflatten(p)), p)


def test_half_precision_warns_of_lost_steps():
    model = nn.Linear(20, 10).to(torch.bfloat16)
    data = torch.randn(8, 20).to(torch.bfloat16), torch.randint(10, (8,))
    land = NetworkLandscape(model, F.cross_entropy, data)
    assert land.origin.dtype == torch.float32
    with pytest.warns(PrecisionWarning, match="half precision"):
        land.loss(land.origin + 1e-5)
    assert land.loss(land.origin + 0.5).dtype == torch.float64
    assert land.effective_step(land.origin + 1e-6) < 0.2
    assert land.effective_step(land.origin + 0.5) == pytest.approx(1.0, abs=0.05)
    wide = NetworkLandscape(model, F.cross_entropy, data, dtype=torch.float32)
    step = 1e-5 * torch.arange(land.dim) / land.dim
    assert wide.loss(wide.origin + 10 * step) != wide.loss(wide.origin)


class Output(dict):
    __getattr__ = dict.__getitem__


class Transformerlike(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x, labels=None):
        logits = self.net(x)
        return Output(logits=logits, loss=F.cross_entropy(logits, labels))


def test_three_forms_agree(digits):
    x, y = digits[0][:30], digits[1][:30]
    batches = [{"x": x[:20], "labels": y[:20]}, {"x": x[20:], "labels": y[20:]}]
    expected = NetworkLandscape(mlp(), F.cross_entropy, (x, y))
    lands = [
        NetworkLandscape(Transformerlike(), "auto", batches),
        NetworkLandscape(
            Transformerlike(), lambda m, b: m(**b)["loss"], batches, form="model"
        ),
        NetworkLandscape(
            Transformerlike(), F.cross_entropy, batches,
            forward=lambda m, b: m(**b)["logits"],
        ),
        NetworkLandscape(Transformerlike(), "auto", {"x": x, "labels": y}),
    ]  # fmt: skip
    p = expected.origin + 0.1
    for land in lands:
        torch.testing.assert_close(land.loss(p), expected.loss(p))
        torch.testing.assert_close(land.gradient(p), expected.gradient(p))
        torch.testing.assert_close(land.example_losses(p), expected.example_losses(p))
        torch.testing.assert_close(
            land.example_gradients(p), expected.example_gradients(p)
        )
    assert lands[2].metrics(p) == expected.metrics(p)
    plain = Transformerlike()
    plain.register_forward_hook(lambda module, args, output: dict(output))
    torch.testing.assert_close(
        NetworkLandscape(plain, "auto", batches).loss(p), expected.loss(p)
    )
    attribute = lambda m, b: m(**b)["loss"]  # noqa: E731
    attribute.form = "model"
    assert NetworkLandscape(Transformerlike(), attribute, batches).loss(p).isfinite()


def test_a_loss_that_differentiates_inside_works(digits):
    x, y = digits[0][:10], digits[1][:10]

    def penalty(model, batch):
        inputs = batch[0].clone().requires_grad_()
        loss = F.cross_entropy(model(inputs), batch[1])
        (slope,) = torch.autograd.grad(loss, inputs, create_graph=True)
        return loss + slope.square().sum()

    land = NetworkLandscape(mlp(), penalty, (x, y), form="model")
    value, _ = land.value_and_gradient(land.origin)
    torch.testing.assert_close(land.loss(land.origin), value)


def test_with_loss_and_own_metrics(digits):
    x, y = digits[0][:30], digits[1][:30]
    land = NetworkLandscape(
        mlp(), F.cross_entropy, [(x[:9], y[:9]), (x[9:], y[9:])],
        metrics={"confidence": lambda o, t: o.softmax(1).amax(1)},
    )  # fmt: skip
    expected = mlp()(x).softmax(1).amax(1).mean().detach()
    assert land.metrics() == {"confidence": pytest.approx(float(expected))}
    other = land.with_loss(lambda o, t: o.square().mean())
    torch.testing.assert_close(
        other.loss(land.origin), mlp()(x).square().mean().detach()
    )


def test_non_finite_losses_are_kept_and_errors_recorded(digits):
    x, y = digits[0][:30], digits[1][:30]
    land = NetworkLandscape(mlp(), F.cross_entropy, (x, y))
    points = torch.stack([land.origin, land.origin * float("nan"), land.origin])
    values = land.loss(points)
    assert values.isnan().tolist() == [False, True, False]
    calls = []

    def sometimes(output, target):
        calls.append(1)
        if len(calls) == 4:
            raise MemoryError("no room")
        return F.cross_entropy(output, target)

    land = NetworkLandscape(mlp(), sometimes, (x, y), on_error="record")
    assert land.loss(points[[0, 0, 0]]).isnan().tolist() == [False, True, False]
    assert land.failures == ["MemoryError: no room"]


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


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (lambda o, t: F.cross_entropy(o, t, reduction="none"), {}, r"shape \(30,\)"),
        (lambda o, t: F.cross_entropy(o, t).item(), {}, "returned a float"),
        (lambda m, b: m(b[0]).mean(), {}, 'give form="model"'),
        (lambda o, t, extra: o.mean(), {}, "raised TypeError"),
        (lambda o, t: t.sum(), {}, "floating"),
    ],
)
def test_losses_that_are_none(digits, loss, options, message):
    land = NetworkLandscape(mlp(), loss, (digits[0][:30], digits[1][:30]), **options)
    with pytest.raises(LossError, match=message):
        land.loss(land.origin)


def test_losses_without_a_graph(digits):
    data = digits[0][:30], digits[1][:30]
    land = NetworkLandscape(mlp(), lambda o, t: F.cross_entropy(o, t).detach(), data)
    assert land.loss(land.origin).isfinite()
    with pytest.raises(LossError, match="no graph"):
        land.gradient(land.origin)
    held = mlp()
    fixed = NetworkLandscape(
        mlp(), lambda m, b: F.cross_entropy(held(b[0]), b[1]), data, form="model"
    )
    with pytest.raises(LossError, match="none of the selected parameters"):
        fixed.gradient(fixed.origin)


def test_labels_out_of_range(digits):
    x, y = digits[0][:30], digits[1][:30].clone()
    y[-1] = 10
    land = NetworkLandscape(mlp(), F.cross_entropy, [(x[:9], y[:9]), (x[9:], y[9:])])
    with pytest.raises(DataError, match="found 0 to 10, but the model has 10 outputs"):
        land.loss(land.origin)

    def own(output, target):
        return -output.log_softmax(1).gather(1, target[:, None]).mean()

    land = NetworkLandscape(mlp(), own, (x, y))
    with pytest.raises(DataError, match="labels out of range"):
        land.loss(land.origin)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buffers": "drop"}, "buffers must be one of"),
        ({"mode": "test"}, "mode must be one of"),
        ({"reduction": "none"}, "reduction must be one of"),
        ({"stochastic": "no"}, "stochastic must be one of"),
        ({"repeats": 3}, "repeats"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"weight_decay": 0.1, "decay": "x"}, "decay='x' selects no parameter"),
        ({"form": "auto"}, "form"),
        ({"max_batches": 0}, "max_batches"),
        ({"metrics": {"loss": F.mse_loss}}, "metrics"),
    ],
)
def test_options_are_checked(digits, options, message):
    with pytest.raises(InputError, match=message):
        NetworkLandscape(mlp(), F.cross_entropy, digits, **options)


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x).mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.LSTM(8, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.body(x)[0][:, -1])


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 6))
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))

    def forward(self, x):
        from torch.utils.checkpoint import checkpoint

        hidden = checkpoint(self.body, x.mean(1), use_reentrant=False)
        return self.head(hidden)


@pytest.mark.parametrize("kind", [Attending, Recurrent, Checkpointed])
def test_models_of_many_kinds(kind):
    torch.manual_seed(0)
    model = kind().double()
    x, y = torch.randn(12, 5, 8).double(), torch.randint(3, (12,))
    land = NetworkLandscape(model, F.cross_entropy, (x, y))
    p = land.origin + 0.1 * torch.randn(land.dim).double()
    moved = copy.deepcopy(model).eval()
    moved.load_state_dict(land.unflatten(p))
    loss = F.cross_entropy(moved(x), y)
    slopes = torch.autograd.grad(loss, list(moved.parameters()))
    expected = torch.cat([g.reshape(-1) for g in slopes])
    torch.testing.assert_close(land.loss(p), loss.detach())
    torch.testing.assert_close(land.gradient(p), expected)
    rows = land.example_gradients(p)
    torch.testing.assert_close(rows.mean(0), expected)
    assert torch.equal(land.gradient(p), land.gradient(p))
    q = p.clone().requires_grad_()
    if kind is Checkpointed:
        with pytest.raises(LossError, match="activation checkpointing.*`gradient`"):
            land.loss(q)
        with pytest.raises(RuntimeError):
            torch.func.grad(land.loss)(p)
        return
    (slope,) = torch.autograd.grad(land.loss(q), q, create_graph=True)
    v = torch.randn(land.dim).double()
    (product,) = torch.autograd.grad(slope @ v, q)
    h = 1e-5
    difference = (land.gradient(p + h * v) - land.gradient(p - h * v)) / (2 * h)
    torch.testing.assert_close(product, difference, rtol=1e-5, atol=1e-8)


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
