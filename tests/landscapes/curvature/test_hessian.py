"""Hessian and GGN of networks: closed forms, real data, and the state of the model."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, hessian, jacrev, jvp

from landscapes.curvature import problems
from thalweg.errors import AsymmetryError, InputError, LossError, PrecisionWarning
from thalweg.landscapes import NetworkLandscape, secant_curvature


def relative(a, b):
    return float((a - b).norm() / b.norm())


# Closed forms -----------------------------------------------------------------------

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_linear_regression(dtype):
    """H = G = 2/(N C) I_C (x) XᵀX."""
    torch.manual_seed(0)
    N, d, C = 31, 5, 3
    x, y = torch.randn(N, d, dtype=dtype), torch.randn(N, C, dtype=dtype)
    model = nn.Linear(d, C, bias=False, dtype=dtype)
    data = list(zip(x.split([20, 11]), y.split([20, 11]), strict=True))
    land = NetworkLandscape(model, nn.MSELoss(), data)
    exact = 2 / (N * C) * torch.kron(torch.eye(C).double(), x.double().T @ x.double())
    for operator in (land.hessian(land.origin), land.ggn(land.origin)):
        dense = operator.dense()
        assert dense.dtype == dtype
        assert relative(dense.double(), exact) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_softmax_regression(dtype):
    """H = G = 1/N Σ (diag p - p pᵀ) (x) x xᵀ."""
    torch.manual_seed(0)
    N, d, C = 31, 4, 3
    x, y = torch.randn(N, d, dtype=dtype), torch.randint(0, C, (N,))
    model = nn.Linear(d, C, bias=False, dtype=dtype)
    data = list(zip(x.split([20, 11]), y.split([20, 11]), strict=True))
    land = NetworkLandscape(model, F.cross_entropy, data)
    p = (x.double() @ model.weight.detach().double().T).softmax(1)
    exact = sum(
        torch.kron(torch.diag(q) - torch.outer(q, q), torch.outer(r, r))
        for q, r in zip(p, x.double(), strict=True)
    )
    for operator in (
        land.hessian(land.origin),
        land.ggn(land.origin),
        land.fisher(land.origin),
    ):
        assert relative(operator.dense().double(), exact / N) < TOLERANCE[dtype]


def test_sum_reduction_adds():
    problem = problems.softmax_problem()
    loss = nn.CrossEntropyLoss(reduction="sum")
    batches = list(zip(problem.x.split([9, 14]), problem.y.split([9, 14]), strict=True))
    land = NetworkLandscape(problem.model, loss, batches, reduction="sum")
    N = len(problem.x)
    assert (
        relative(land.hessian(land.origin).dense(), N * problem.dense_hessian()) < 1e-10
    )
    assert relative(land.ggn(land.origin).dense(), N * problem.dense_ggn()) < 1e-10
    g = problem.example_gradients()
    empirical = land.fisher(land.origin, kind="empirical").dense()
    assert relative(empirical, g.T @ g) < 1e-10
    assert (
        relative(land.gradient_covariance(land.origin).dense(), torch.cov(g.T)) < 1e-10
    )


def test_class_weights_with_their_weight():
    """Batches count by the weight of their classes, as one batch of all data does."""
    problem = problems.softmax_problem()
    w = torch.tensor([1.0, 0.2, 3.0], dtype=torch.float64)
    loss = nn.CrossEntropyLoss(weight=w)
    batches = list(zip(problem.x.split([9, 14]), problem.y.split([9, 14]), strict=True))
    land = NetworkLandscape(
        problem.model, loss, batches, weight=lambda batch: w[batch[1]].sum()
    )
    problem.loss = loss
    assert relative(land.hessian(land.origin).dense(), problem.dense_hessian()) < 1e-10
    assert relative(land.ggn(land.origin).dense(), problem.dense_ggn()) < 1e-10


# Real data --------------------------------------------------------------------------


def digits(*hidden):
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    model = problems.tanh_net(64, *hidden, 10)
    return problems.Problem(
        model, F.cross_entropy, torch.from_numpy(x / 16), torch.from_numpy(y)
    )


def closed_forms(problem):
    """Dense Hessian and GGN of softmax cross-entropy on W2 tanh(W1 x + b1) + b2."""
    W1, b1, W2, b2 = problem.parameters().values()
    x, y = problem.x, problem.y
    N, d, h, C = len(x), x.shape[1], len(b1), len(b2)
    a = torch.tanh(x @ W1.T + b1)
    slope, bend = 1 - a**2, -2 * a * (1 - a**2)
    p = (a @ W2.T + b2).softmax(1)
    r = (p - F.one_hot(y, C)) / N
    one = torch.ones(N, 1, dtype=x.dtype)
    xs, as_ = torch.cat([x, one], 1), torch.cat([a, one], 1)
    # J with W1 and b1 as (h, d + 1), W2 and b2 as (C, h + 1)
    first = torch.einsum("ck,nk,ni->ncki", W2, slope, xs).reshape(N, C, -1)
    second = torch.einsum("ce,nk->ncek", torch.eye(C, dtype=x.dtype), as_)
    J = torch.cat([first, second.reshape(N, C, -1)], dim=2)
    root = (p / N).sqrt()[..., None] * (J - torch.einsum("nc,ncp->np", p, J)[:, None])
    G = root.flatten(0, 1).T @ root.flatten(0, 1)
    S = torch.zeros_like(G)
    upper = torch.einsum("nc,ck,nk,ni,nj->kij", r, W2, bend, xs, xs)
    S[: h * (d + 1), : h * (d + 1)] = torch.block_diag(*upper)
    cross = torch.zeros(h, d + 1, C, h + 1, dtype=x.dtype)
    k = torch.arange(h)
    cross[k, :, :, k] = torch.einsum("nc,nk,ni->kic", r, slope, xs)
    cross = cross.reshape(h * (d + 1), C * (h + 1))
    S[: len(cross), len(cross) :], S[len(cross) :, : len(cross)] = cross, cross.T
    # back to the order W1, b1, W2, b2
    i1 = torch.arange(h * (d + 1)).view(h, d + 1)
    i2 = torch.arange(C * (h + 1)).view(C, h + 1) + i1.numel()
    parts = (i1[:, :d], i1[:, d], i2[:, :h], i2[:, h])
    order = torch.cat([i.reshape(-1) for i in parts])
    return (G + S)[order][:, order], G[order][:, order]


def check_digits(problem, H_dense, G_dense):
    land = problem.landscape(sizes=[1000, 797])
    x = land.origin
    slope = grad(lambda p: problem.loss(problem.output(p), problem.y))(x)
    assert relative(land.gradient(x), slope) < 1e-10
    U = torch.randn(
        land.dim, 5, dtype=x.dtype, generator=torch.Generator().manual_seed(0)
    )
    v = U[:, 0]
    with land.hessian(x) as H, land.ggn(x) as G:
        assert relative(H @ v, H_dense @ v) < 1e-10
        assert relative(G @ v, G_dense @ v) < 1e-10
        assert relative(H.project(U), U.T @ H_dense @ U) < 1e-10
        assert relative(G.project(U), U.T @ G_dense @ U) < 1e-10
        matrix, right = G.project(U[:, 1:], v)
        assert relative(right, U[:, 1:].T @ (G_dense @ v)) < 1e-10
        assert float(torch.linalg.eigvalsh(matrix).min()) > 0


def test_digits_against_the_closed_form():
    problem = digits(16)
    check_digits(problem, *closed_forms(problem))


@pytest.mark.slow
def test_digits_against_dense_autograd():
    problem = digits(16)
    point = problem.flat()
    # Forward over reverse mode, a row at a time: no double backward.
    slope = grad(lambda p: problem.loss(problem.output(p), problem.y))
    eye = torch.eye(len(point), dtype=point.dtype)
    H = torch.stack([jvp(slope, (point,), (e,))[1] for e in eye])
    J = jacrev(problem.output, chunk_size=100)(point)
    p = problem.output(point).softmax(1)
    BJ = p[..., None] * (J - torch.einsum("nc,ncp->np", p, J)[:, None]) / len(p)
    check_digits(problem, H, J.flatten(0, 1).T @ BJ.flatten(0, 1))


def test_large_digits_against_jvp_of_grad_and_central_differences():
    problem = digits(128, 96)
    land = problem.landscape()
    x = land.origin
    v = torch.randn(land.dim, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    v /= v.norm()
    slope = grad(lambda p: problem.loss(problem.output(p), problem.y))
    H, G = land.hessian(x), land.ggn(x)
    product = H @ v
    assert relative(product, jvp(slope, (x,), (v,))[1]) < 1e-10
    e = 1e-4
    assert relative(product, (slope(x + e * v) - slope(x - e * v)) / (2 * e)) < 1e-6
    _, Jv = jvp(problem.output, (x,), (v,))
    p = problem.output(x).softmax(1)
    BJv = (p * Jv - p * (p * Jv).sum(1, keepdim=True)) / len(p)
    _, pull = torch.func.vjp(problem.output, x)
    assert relative(G @ v, pull(BJv)[0]) < 1e-10


@pytest.mark.parametrize("kind", ["hessian", "ggn", "mc", "empirical", "covariance"])
def test_splitting_the_data_changes_no_product(kind):
    problem = digits(16)
    v = torch.randn(
        1210, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    products = []
    for sizes in ([1797], [1790, 7]):
        land = problem.landscape(sizes=sizes)
        operator = {
            "hessian": land.hessian,
            "ggn": land.ggn,
            "mc": lambda x, land=land: land.fisher(x, kind="mc", samples=2, seed=3),
            "empirical": lambda x, land=land: land.fisher(x, kind="empirical"),
            "covariance": land.gradient_covariance,
        }[kind](land.origin)
        products.append(operator @ v)
    assert relative(*products) < 1e-12


# Kinks, complex and half precision ---------------------------------------------------


def relu_net():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)
    ).double()


def test_relu_has_equal_traces_of_hessian_and_ggn_by_layer():
    problem = problems.softmax_problem()
    land = NetworkLandscape(relu_net(), F.cross_entropy, (problem.x, problem.y))
    H, G = land.hessian(land.origin), land.ggn(land.origin)
    assert relative(H.dense(), G.dense()) > 1e-2
    for layer in ("0.*", "2.*", "4.*"):
        a, b = (op.submatrix(layer).dense().trace() for op in (H, G))
        torch.testing.assert_close(a, b, rtol=1e-10, atol=0)


def test_secant_sees_the_kink_that_the_hessian_misses():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU()).double()
    with torch.no_grad():
        model[0].weight.fill_(0.0)
    data = (torch.ones(1, 1).double(), torch.zeros(1, 1).double())
    land = NetworkLandscape(model, lambda o, y: (o - y).mean(), data)
    v = torch.ones(1, dtype=torch.float64)
    assert float(v @ (land.hessian(land.origin) @ v)) == 0.0
    assert secant_curvature(land, v, 0.25) == pytest.approx(4.0, rel=1e-12)


def test_secant_of_a_smooth_loss_is_the_hessian():
    problem = problems.softmax_problem()
    land = problem.landscape()
    v = torch.randn(
        land.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    exact = float(v @ problem.dense_hessian() @ v)
    assert secant_curvature(land, v, 1e-3) == pytest.approx(exact, rel=1e-4)
    for h in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="h must be positive"):
            secant_curvature(land, v, h)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.w = nn.Parameter(torch.randn(4, 3, dtype=torch.complex128))
        self.b = nn.Parameter(torch.randn(3, dtype=torch.float64))

    def forward(self, x):
        return torch.tanh((x.to(torch.complex128) @ self.w).abs()) + self.b


def test_complex_parameters_in_real_coordinates():
    x, y = problems.classification()
    model = Complex()
    land = NetworkLandscape(model, F.cross_entropy, (x, y))

    def output(point):
        w = torch.complex(point[:24:2], point[1:24:2]).view(4, 3)
        return functional_call(model, {"w": w, "b": point[24:]}, (x,))

    dense = hessian(lambda p: F.cross_entropy(output(p), y))(land.origin)
    assert relative(land.hessian(land.origin).dense(), dense) < 1e-10
    J = jacrev(output)(land.origin)
    p = output(land.origin).softmax(1)
    B = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    G = torch.einsum("ncp,ncd,ndq->pq", J, B, J) / len(x)
    assert relative(land.ggn(land.origin).dense(), G) < 1e-10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_its_curvature_in_float32(dtype):
    problem = problems.softmax_problem()
    model = problem.model.to(dtype)
    land = NetworkLandscape(model, F.cross_entropy, (problem.x.to(dtype), problem.y))
    H, G = land.hessian(land.origin), land.ggn(land.origin)
    assert H.dtype == G.dtype == torch.float32
    exact = problems.Problem(
        problems.tanh_net(4, 5, 3),
        F.cross_entropy,
        problem.x.to(dtype).double(),
        problem.y,
    )
    exact.model.load_state_dict(model.state_dict())
    assert relative(H.dense().double(), exact.dense_hessian()) < 1e-5
    assert relative(G.dense().double(), exact.dense_ggn()) < 1e-5
    empirical = land.fisher(land.origin, kind="empirical").dense().double()
    g = exact.example_gradients()
    assert relative(empirical, g.T @ g / len(g)) < 1e-5
    assert model[0].weight.dtype == dtype


# Memory, methods, state --------------------------------------------------------------


def test_what_is_kept_follows_the_budget_and_changes_no_bit():
    problem = problems.softmax_problem()
    land = problem.landscape(sizes=[8, 8, 7])
    v = torch.randn(
        land.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    everything = land.hessian(land.origin, cache=True)
    product = everything @ v
    assert everything.method == "retained"
    size = everything.graphs.bytes
    for cache, method in (
        (size, "retained"),
        (size // 2, "retained 1 of 3"),
        (10, "rebuilt"),
        (False, "rebuilt"),
        ("auto", "retained"),
    ):
        with land.hessian(land.origin, cache=cache) as H:
            assert H.method == "auto"
            for _ in range(2):
                assert torch.equal(H @ v, product)
            assert H.method == method
            assert H.graphs.bytes <= size


@pytest.mark.parametrize("stochastic", ["fix", "average"])
def test_a_random_model_is_the_same_with_and_without_cache(stochastic):
    problem = problems.softmax_problem()
    model = nn.Sequential(*problem.model, nn.Dropout(0.5))
    batches = list(zip(problem.x.split(8), problem.y.split(8), strict=True))
    land = NetworkLandscape(
        model,
        F.cross_entropy,
        batches,
        mode="train",
        stochastic=stochastic,
        repeats=1 if stochastic == "fix" else 3,
    )
    x = land.origin
    v = torch.randn(
        land.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    kept = land.hessian(x, cache=True)
    product = kept @ v
    for cache in (False, kept.graphs.bytes // 2):
        with land.hessian(x, cache=cache, check=True) as H:
            assert torch.equal(H @ v, product)
            assert torch.equal(H @ v, product)
    e = 1e-5
    secant = (land.gradient(x + e * v) - land.gradient(x - e * v)) / (2 * e)
    assert relative(product, secant) < 1e-7


class OnceOnly(torch.autograd.Function):
    """x³ whose backward cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g


class Cubic(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3, dtype=torch.float64)

    def forward(self, x):
        return OnceOnly.apply(self.linear(x))


def test_no_second_derivative_falls_back_to_differences():
    x, y = problems.classification()
    torch.manual_seed(0)
    model = Cubic()
    land = NetworkLandscape(model, F.cross_entropy, (x, y), weight_decay=0.1)

    def loss(point):
        w, b = point[:12].view(3, 4), point[12:]
        return F.cross_entropy((x @ w.T + b) ** 3, y) + 0.05 * point @ point

    exact = hessian(loss)(land.origin)
    H = land.hessian(land.origin)
    v = torch.ones(land.dim, dtype=torch.float64)
    with pytest.warns(PrecisionWarning, match="no second derivative"):
        product = H @ v
    assert H.method == "fd"
    assert relative(product, exact @ v) < 1e-7
    assert relative(H.dense(), exact) < 1e-7
    assert float((H @ torch.zeros_like(v)).norm()) == 0
    for operator in (
        land.hessian(land.origin, method="retained"),
        land.ggn(land.origin),
    ):
        with pytest.raises(LossError, match="once_differentiable"):
            _ = operator @ v


def test_a_linear_loss_has_no_curvature():
    x, _ = problems.classification()
    model = nn.Linear(4, 2, dtype=torch.float64)
    land = NetworkLandscape(model, lambda o, y: o.mean(), (x, x))
    v = torch.ones(land.dim, dtype=torch.float64)
    for operator in (land.hessian(land.origin), land.ggn(land.origin)):
        assert float((operator @ v).norm()) == 0


def test_an_asymmetric_product_is_noticed():
    problem = problems.softmax_problem()
    land = problem.landscape()
    H = land.hessian(land.origin, check=True)
    skew = torch.randn(land.dim, land.dim, dtype=torch.float64)
    H._product = lambda v: skew @ v
    with pytest.raises(AsymmetryError, match="not symmetric"):
        _ = H @ torch.ones(land.dim, dtype=torch.float64)


def test_the_model_is_left_as_it_was():
    problem = problems.tied_problem()
    model = problem.model
    model.train()
    before = {n: p.clone() for n, p in model.state_dict().items()}
    identities = [id(p) for p in model.parameters()]
    land = problem.landscape(sizes=[9, 14])
    state = torch.get_rng_state()
    v = torch.ones(land.dim, dtype=torch.float64)
    for operator in (
        land.hessian(land.origin),
        land.hessian(land.origin, method="fd"),
        land.ggn(land.origin),
        land.fisher(land.origin, kind="mc"),
        land.fisher(land.origin, kind="empirical"),
        land.gradient_covariance(land.origin),
    ):
        _ = operator @ v
    land.noise_scale(land.origin)
    assert all(p.grad is None for p in model.parameters())
    assert [id(p) for p in model.parameters()] == identities
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_arguments():
    problem = problems.softmax_problem()
    land = problem.landscape()
    with pytest.raises(InputError, match="method must be one of"):
        land.hessian(land.origin, method="exact")
    with pytest.raises(InputError, match="kind must be one of"):
        land.fisher(land.origin, kind="natural")
    model_form = NetworkLandscape(
        problem.model,
        lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        (problem.x, problem.y),
        form="model",
    )
    with pytest.raises(LossError, match="GGN needs a separable loss"):
        _ = model_form.ggn(land.origin) @ land.origin
    problem = problems.huber_problem()
    land = problem.landscape()
    with pytest.raises(InputError, match="distribution of the targets"):
        _ = land.fisher(land.origin) @ land.origin


class Checkpointed(nn.Module):
    """Computes its hidden layer again during the backward pass."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        from torch.utils.checkpoint import checkpoint

        return self.head(checkpoint(self.body, x, use_reentrant=False))


def test_activation_checkpointing_is_differenced_or_refused_never_wrong():
    torch.manual_seed(0)
    model = Checkpointed().double()
    x, y = torch.randn(20, 4).double(), torch.randint(3, (20,))
    land = NetworkLandscape(model, F.cross_entropy, (x, y))
    away = land.origin + 0.3 * torch.randn(land.dim).double()
    v = torch.randn(land.dim).double()
    plain = nn.Sequential(model.body, model.head)
    reference = NetworkLandscape(plain, F.cross_entropy, (x, y))
    expected = reference.hessian(away) @ v
    with pytest.warns(PrecisionWarning, match="activation checkpointing"):
        product = land.hessian(away) @ v
    torch.testing.assert_close(product, expected, rtol=1e-6, atol=1e-9)
    for operator in (land.hessian(away, method="rebuilt"), land.ggn(away)):
        with pytest.raises(LossError, match="turn that off for curvature"):
            operator @ v
