"""Fishers, gradient covariance and noise scale."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from landscapes.curvature import problems
from thalweg.errors import DataError, InputError
from thalweg.landscapes import NetworkLandscape
from thalweg.landscapes.curvature.noise import two_batch_sizes


def relative(a, b):
    return float((a - b).norm() / b.norm())


# Monte-Carlo Fisher ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["softmax", "squared", "binary"])
def test_sampled_fisher_is_unbiased(kind):
    problem = getattr(problems, f"{kind}_problem")()
    land = problem.landscape(sizes=[9, 14])
    true = problem.dense_ggn()
    draws = torch.stack(
        [
            land.fisher(land.origin, kind="mc", samples=4, seed=seed).dense()
            for seed in range(40)
        ]
    )
    gap = (draws.mean(0) - true).abs()
    stderr = draws.std(0) / len(draws) ** 0.5
    # 4 standard errors for nearly all of some 1,000 entries, 6 for each
    assert float((gap <= 4 * stderr).double().mean()) > 0.998
    assert bool((gap <= 6 * stderr + 1e-12).all())


def test_more_samples_extend_the_earlier_ones():
    problem = problems.softmax_problem()
    land = problem.landscape()

    def dense(samples, seed=7):
        return land.fisher(land.origin, kind="mc", samples=samples, seed=seed).dense()

    one, two = dense(1), dense(2)
    second = 2 * two - one
    assert relative(one, two) > 0.1
    assert float(torch.linalg.eigvalsh(second).min()) > -1e-12
    assert torch.equal(one, dense(1))
    assert relative(dense(1, seed=8), one) > 0.1


def test_sampled_fisher_needs_a_sample():
    land = problems.softmax_problem().landscape()
    with pytest.raises(InputError, match="samples must be at least 1, got 0"):
        land.fisher(land.origin, kind="mc", samples=0)


# Gradients of examples ---------------------------------------------------------------


def test_empirical_fisher_and_covariance_of_a_loss_of_model_and_batch():
    """No output is known, so each row's loss is its own forward pass."""
    problem = problems.softmax_problem()
    land = NetworkLandscape(
        problem.model,
        lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        (problem.x, problem.y),
        form="model",
    )
    g = problem.example_gradients()
    F_dense = land.fisher(land.origin, kind="empirical").dense()
    assert relative(F_dense, g.T @ g / len(g)) < 1e-10
    assert (
        relative(land.gradient_covariance(land.origin).dense(), torch.cov(g.T)) < 1e-10
    )
    assert relative(land.hessian(land.origin).dense(), problem.dense_hessian()) < 1e-10


def test_weighted_examples():
    problem = problems.softmax_problem()
    w = torch.tensor([1.0, 0.2, 3.0], dtype=torch.float64)
    batches = list(zip(problem.x.split([9, 14]), problem.y.split([9, 14]), strict=True))
    land = NetworkLandscape(
        problem.model,
        nn.CrossEntropyLoss(weight=w),
        batches,
        weight=lambda batch: w[batch[1]].sum(),
    )
    g = problem.example_gradients()
    wi = w[problem.y]
    empirical = land.fisher(land.origin, kind="empirical").dense()
    assert relative(empirical, (wi[:, None] * g).T @ g / wi.sum()) < 1e-10
    centered = g - (wi @ g) / wi.sum()
    N = len(g)
    exact = (wi[:, None] * centered).T @ centered / wi.sum() * N / (N - 1)
    covariance = land.gradient_covariance(land.origin)
    assert relative(covariance.dense(), exact) < 1e-10
    assert covariance.trace() == pytest.approx(float(exact.trace()), rel=1e-10)


def test_projection_of_the_covariance_is_positive_semi_definite():
    problem = problems.softmax_problem()
    land = problem.landscape(sizes=[9, 14])
    covariance = land.gradient_covariance(land.origin)
    U = torch.randn(land.dim, 30, dtype=torch.float64)
    eigenvalues = torch.linalg.eigvalsh(covariance.project(U))
    assert float(eigenvalues.min()) > -1e-12 * float(eigenvalues.max())


def test_rows_whose_label_is_ignored_do_not_make_projections_nan():
    x, y = torch.randn(7, 4).double(), torch.tensor([0, 1, -100, 2, 0, -100, 1])
    land = NetworkLandscape(nn.Linear(4, 3).double(), nn.CrossEntropyLoss(), (x, y))
    U = torch.randn(land.dim, 2, dtype=torch.float64)
    for operator in (
        land.fisher(land.point(), kind="empirical"),
        land.gradient_covariance(land.point()),
    ):
        matrix, right = operator.project(U, U[:, 0])
        assert torch.allclose(matrix, U.T @ (operator @ U), rtol=1e-10)
        assert torch.allclose(right, matrix[:, 0], rtol=1e-10)


def test_one_example_has_no_covariance():
    problem = problems.softmax_problem()
    land = NetworkLandscape(problem.model, problem.loss, (problem.x[:1], problem.y[:1]))
    with pytest.raises(DataError, match="at least two examples"):
        _ = land.gradient_covariance(land.origin) @ land.origin
    with pytest.raises(DataError, match="at least two examples"):
        land.noise_scale(land.origin)


# Noise scale ------------------------------------------------------------------------


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_noise_scale_from_examples(weight_decay):
    problem = problems.softmax_problem()
    land = problem.landscape(sizes=[9, 14], weight_decay=weight_decay)
    g = problem.example_gradients()
    mean = g.mean(0)
    trace = float(torch.cov(g.T).trace())
    noise = land.noise_scale(land.origin)
    assert noise.trace == pytest.approx(trace, rel=1e-10)
    assert noise.squared_norm == pytest.approx(float(mean @ mean), rel=1e-10)
    assert noise.value == pytest.approx(trace / float(mean @ mean), rel=1e-10)
    assert noise.note == ""


def linear_landscape(size, seed, dim=3, target=0.7):
    """Gradients of examples are w - z, z ~ N(0, I): |G|² and tr C are known."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(size, dim, dtype=torch.float64, generator=generator)
    model = nn.Linear(1, dim, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(target)
    one = torch.ones(size, 1, dtype=torch.float64)

    def half_square(output, y):
        return (output - y).square().sum(1).mean() / 2

    return NetworkLandscape(model, half_square, (one, z))


def test_noise_scale_from_batches_is_the_two_batch_size_form():
    land = linear_landscape(60, 0)
    data = land.data
    cut = [(data[0][i : i + 10], data[1][i : i + 10]) for i in range(0, 60, 10)]
    noise = NetworkLandscape(land.model, land.objective.loss, cut).noise_scale(
        land.origin, method="batches"
    )
    g = 0.7 - data[1]
    small = g.view(6, 10, 3).mean(1).square().sum(1).mean()
    big = g.mean(0).square().sum()
    G = (60 * big - 10 * small) / (60 - 10)
    S = (small - big) / (1 / 10 - 1 / 60)
    assert noise.squared_norm == pytest.approx(float(G), rel=1e-10)
    assert noise.trace == pytest.approx(float(S), rel=1e-10)
    assert noise.value == pytest.approx(float(S / G), rel=1e-10)


def test_noise_scale_from_batches_is_unbiased_and_knows_its_error():
    estimates = []
    for seed in range(200):
        g = 0.7 - linear_landscape(110, seed).data[1]
        sizes = torch.tensor([5, 10, 15] * 3 + [20])
        means = torch.stack([part.mean(0) for part in g.split(sizes.tolist())])
        estimates.append(
            two_batch_sizes(means.square().sum(1), means @ g.mean(0), sizes)
        )
    for name, exact in (("trace", 3.0), ("squared_norm", 3 * 0.49)):
        values = torch.tensor(
            [getattr(e, name) for e in estimates], dtype=torch.float64
        )
        assert abs(float(values.mean()) - exact) < 4 * float(values.std()) / 200**0.5
    values = torch.tensor([e.value for e in estimates])
    reported = torch.tensor([e.stderr for e in estimates])
    assert float(reported.median()) == pytest.approx(float(values.std()), rel=0.5)


def test_standard_error_from_examples():
    noises = [linear_landscape(200, seed) for seed in range(100)]
    noises = [land.noise_scale(land.origin) for land in noises]
    values = torch.tensor([n.value for n in noises])
    reported = torch.tensor([n.stderr for n in noises])
    assert float(reported.mean()) == pytest.approx(float(values.std()), rel=0.25)


def test_a_gradient_lost_in_noise_is_nan_with_a_note():
    sizes = torch.tensor([10, 10, 10])
    noise = two_batch_sizes(torch.ones(3), torch.full((3,), 0.2), sizes)
    assert math.isnan(noise.value) and math.isnan(noise.stderr)
    assert noise.squared_norm < 0 and "not positive" in noise.note


def test_bad_noise_scales():
    land = problems.softmax_problem().landscape()
    with pytest.raises(DataError, match="at least two batches"):
        land.noise_scale(land.origin, method="batches")
    with pytest.raises(InputError, match="method must be"):
        land.noise_scale(land.origin, method="trace")
