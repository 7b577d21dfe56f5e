"""Curvature under the policies of a landscape: buffers, forms, batches, restriction."""

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, hessian

from landscapes.curvature import problems
from thalweg.landscapes import NetworkLandscape, recalibrate


def relative(a, b):
    return float((a - b).norm() / b.norm())


def normed_net():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)
    ).double()
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2.0)
    return model.eval()


def test_recalibrated_statistics_are_held_constant():
    x, y = problems.classification()
    model = normed_net()
    batches = list(zip(x.split([9, 14]), y.split([9, 14]), strict=True))
    land = NetworkLandscape(model, F.cross_entropy, batches, buffers="recalibrate")
    point = land.origin + 0.3
    held = copy.deepcopy(model)
    held.load_state_dict(land.unflatten(point))
    recalibrate(held, batches)
    frozen = NetworkLandscape(held, F.cross_entropy, batches)
    for cache in (True, False):
        H = land.hessian(point, cache=cache)
        assert relative(H.dense(), frozen.hessian(point).dense()) < 1e-12
        G = land.ggn(point, cache=cache)
        assert relative(G.dense(), frozen.ggn(point).dense()) < 1e-12
    assert relative(H.dense(), problems_hessian(held, x, y)) < 1e-10


def problems_hessian(model, x, y):
    return problems.Problem(model, F.cross_entropy, x, y).dense_hessian()


def test_restricted_to_a_basis_and_between_checkpoints():
    problem = problems.softmax_problem()
    land = problem.landscape(sizes=[9, 14])
    basis = torch.randn(land.dim, 3, dtype=torch.float64)
    H = land.restrict(land.origin, basis).hessian(torch.zeros(3, dtype=torch.float64))
    exact = basis.T @ problem.dense_hessian() @ basis
    assert relative(H.dense(), exact) < 1e-10
    assert relative(H @ torch.eye(3, dtype=torch.float64), exact) < 1e-10
    states = [land.origin, land.origin + basis[:, 0], land.origin + basis[:, 1]]
    between = land.between(*states)
    H = between.hessian(torch.zeros(2, dtype=torch.float64))
    assert relative(H.dense(), exact[:2, :2]) < 1e-10


class Keyword(nn.Module):
    """A model of keywords that returns an object with a loss, as transformers do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = problems.tanh_net(4, 5, 3)

    def forward(self, values, labels=None):
        class Result:
            logits = self.net(values)
            loss = F.cross_entropy(logits, labels)

        return Result()


def test_dict_batches_in_three_forms():
    x, y = problems.classification()
    model = Keyword()
    batches = [
        {"values": a, "labels": b}
        for a, b in zip(x.split([9, 14]), y.split([9, 14]), strict=True)
    ]
    reference = problems.Problem(model.net, F.cross_entropy, x, y)
    auto = NetworkLandscape(model, "auto", batches)
    assert (
        relative(auto.hessian(auto.origin).dense(), reference.dense_hessian()) < 1e-10
    )
    land = NetworkLandscape(
        model,
        F.cross_entropy,
        batches,
        forward=lambda model, batch: model(**batch).logits,
    )
    assert (
        relative(land.hessian(land.origin).dense(), reference.dense_hessian()) < 1e-10
    )
    assert relative(land.ggn(land.origin).dense(), reference.dense_ggn()) < 1e-10
    g = reference.example_gradients()
    for form in (auto, land):
        empirical = form.fisher(form.origin, kind="empirical")
        assert relative(empirical.dense(), g.T @ g / len(g)) < 1e-10
        assert (
            relative(form.gradient_covariance(form.origin).dense(), torch.cov(g.T))
            < 1e-10
        )


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(7, 3)
        self.head = nn.Linear(3, 7)

    def forward(self, tokens):
        return self.head(torch.tanh(self.embed(tokens))).transpose(1, 2)


def test_tokens_weighted_by_how_many_count():
    """Cross-entropy over tokens, some ignored: one batch and two are the same."""
    model = Tokens().double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 7, (11, 6), generator=generator)
    y = torch.randint(0, 7, (11, 6), generator=generator)
    y[torch.rand(11, 6, generator=generator) < 0.4] = -100
    y[3] = -100  # a row without a token that counts
    batches = list(zip(x.split([4, 7]), y.split([4, 7]), strict=True))
    land = NetworkLandscape(
        model,
        F.cross_entropy,
        batches,
        weight=lambda batch: (batch[1] != -100).sum(),
    )
    reference = problems.Problem(model, F.cross_entropy, x, y)
    assert (
        relative(land.hessian(land.origin).dense(), reference.dense_hessian()) < 1e-10
    )
    G = land.ggn(land.origin)
    assert relative(G.dense(), reference.dense_ggn()) < 1e-10
    U = torch.randn(land.dim, 4, dtype=torch.float64, generator=generator)
    assert relative(G.project(U), U.T @ reference.dense_ggn() @ U) < 1e-10
    counts = (y != -100).sum(1).double()
    keep = counts > 0
    g = problems.Problem(model, F.cross_entropy, x[keep], y[keep]).example_gradients()
    w = counts[keep]
    exact = (w[:, None] * g).T @ g / w.sum()
    empirical = land.fisher(land.origin, kind="empirical")
    assert relative(empirical.dense(), exact) < 1e-10
    sampled = torch.stack(
        [
            land.fisher(land.origin, kind="mc", samples=8, seed=s).dense()
            for s in range(20)
        ]
    )
    gap = (sampled.mean(0) - reference.dense_ggn()).abs()
    assert bool((gap <= 6 * sampled.std(0) / 20**0.5 + 1e-12).all())


def test_selected_parameters_only():
    problem = problems.softmax_problem()
    full = problem.landscape()
    land = problem.landscape(include="2.*")
    keep = full.layout.indices("2.*")
    exact = problem.dense_hessian()[keep][:, keep]
    assert relative(land.hessian(land.origin).dense(), exact) < 1e-10


def test_the_sum_of_two_losses():
    problem = problems.softmax_problem()
    land = problem.landscape()
    both = land + 0.5 * problem.landscape(weight_decay=0.2)
    exact = 1.5 * problem.dense_hessian() + 0.1 * torch.eye(land.dim).double()
    assert relative(both.hessian(land.origin).dense(), exact) < 1e-10


def test_at_another_point_than_the_models():
    problem = problems.softmax_problem()
    land = problem.landscape(sizes=[9, 14])
    point = land.origin + 0.1

    def loss(p):
        pieces = land.layout.split(p)
        return F.cross_entropy(
            functional_call(problem.model, pieces, (problem.x,)), problem.y
        )

    assert relative(land.hessian(point).dense(), hessian(loss)(point)) < 1e-10
    operator = land.hessian(point)
    expected = operator @ point
    point.zero_()  # the operator stands where it was made
    other = land.hessian(land.origin + 0.1)
    assert torch.equal(operator @ (land.origin + 0.1), other @ (land.origin + 0.1))
    assert torch.equal(expected, other @ (land.origin + 0.1))
