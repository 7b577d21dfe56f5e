"""A network's loss and its parameters: against dense autograd."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from landscapes.networks import mlp, reference
from thalweg.errors import InputError, LossError, PrecisionWarning, StructureError
from thalweg.landscapes import NetworkLandscape


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
