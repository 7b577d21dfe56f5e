"""`trace` against closed forms, the naive leave-one-out, and its own error."""

import inspect

import numpy as np
import pytest
import torch

from thalweg import Quadratic
from thalweg import instruments as ti
from thalweg.errors import ConvergenceWarning, InputError
from thalweg.instruments.sketches import sphere_probe
from thalweg.instruments.trace_estimators import XTrace
from thalweg.landscapes import FunctionOperator, MatrixOperator

METHODS = ["xtrace", "hutch++", "hutchinson"]


def rotated(eigenvalues, seed=0, dtype=torch.float64):
    values = torch.as_tensor(np.asarray(eigenvalues), dtype=torch.float64)
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(values), len(values), generator=g, dtype=torch.float64)
    Q, _ = torch.linalg.qr(noise)
    matrix = (Q * values) @ Q.T
    return ((matrix + matrix.T) / 2).to(dtype)


DECAYING = 10.0 / np.arange(1, 401) ** 1.5


def naive_xtrace(matrix, Omega):
    """Leave each probe out by a QR of the others: k sketches, no update formulas."""
    n, k = Omega.shape
    estimates = []
    for i in range(k):
        others = np.delete(Omega, i, axis=1)
        Q, _ = np.linalg.qr(matrix @ others)
        outside = Omega[:, i] - Q @ (Q.T @ Omega[:, i])
        factor = (n - k + 1) / (outside @ outside)
        estimates.append(
            np.trace(Q.T @ matrix @ Q) + factor * outside @ matrix @ outside
        )
    return np.mean(estimates), np.std(estimates, ddof=1) / np.sqrt(k)


@pytest.mark.parametrize("blocks", [[24], [10, 4, 10]])
def test_xtrace_equals_the_naive_leave_one_out(blocks):
    matrix = rotated(np.append(DECAYING[:119], -3.0))
    A = MatrixOperator(matrix)
    estimator = XTrace(A, 60, block=32, seed=5)
    for products in blocks:
        estimator.grow(products)
    Omega = np.stack([sphere_probe(A, 5, "probe", i).numpy() for i in range(12)], 1)
    expected = naive_xtrace(matrix.numpy(), Omega)
    np.testing.assert_allclose(estimator.estimate(), expected, rtol=1e-11)
    assert A.products == 24


@pytest.mark.parametrize("method", METHODS)
def test_a_small_quadratic_is_exact(method):
    land = Quadratic(rotated([3.0, 2.0, -1.0, 0.5, 0.25]))
    H = land.hessian(land.origin)
    estimate = ti.trace(H, method)
    assert estimate.value == pytest.approx(4.75, rel=1e-12)
    assert (estimate.stderr, estimate.method) == (0.0, "exact")
    assert estimate.products == H.products == 5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_error_asked_for_is_met(method, dtype):
    A = MatrixOperator(rotated(DECAYING, dtype=dtype))
    estimate = ti.trace(A, method, rtol=0.05, max_products=5000)
    assert estimate.converged
    assert estimate.products == A.products < 5000
    assert abs(estimate.value - DECAYING.sum()) <= 0.05 * DECAYING.sum()


@pytest.mark.parametrize("method", METHODS)
def test_the_standard_error_is_calibrated(method):
    A = MatrixOperator(rotated(np.append(DECAYING, np.full(200, -0.01))))
    exact = float(torch.trace(A.matrix))
    runs = [ti.trace(A, method, probes=16, seed=s) for s in range(40)]
    errors = np.array([run.value - exact for run in runs])
    claimed = np.sqrt(np.mean([run.stderr**2 for run in runs]))
    assert abs(errors.mean()) < 4 * errors.std() / np.sqrt(len(runs))
    ratio = np.sqrt(np.mean(errors**2)) / claimed
    assert 0.5 < ratio < 2.0
    assert np.max(np.abs(errors)) < 8 * claimed


def test_xtrace_needs_fewer_products_than_hutchinson():
    A = MatrixOperator(rotated(DECAYING))
    few, many = (
        ti.trace(A, method, rtol=0.05, max_products=10_000).products
        for method in ("xtrace", "hutchinson")
    )
    assert 4 * few < many


@pytest.mark.parametrize("method", ["xtrace", "hutch++"])
@pytest.mark.parametrize("rank", [0, 1, 3, 9])
def test_a_sketch_that_captures_everything_is_exact(method, rank):
    values = np.zeros(300)
    values[:rank] = np.arange(1.0, rank + 1)
    A = MatrixOperator(rotated(values))
    estimate = ti.trace(A, method)
    assert estimate.value == pytest.approx(values.sum(), rel=1e-10, abs=1e-12)
    assert estimate.converged
    assert estimate.stderr <= 1e-10 * max(rank, 1)
    assert estimate.products <= 40


def test_a_rank_above_the_sketch_is_found_by_growing():
    values = np.zeros(300)
    values[:40] = 1.0
    A = MatrixOperator(rotated(values, dtype=torch.float32))
    estimate = ti.trace(A, rtol=1e-4)
    assert estimate.value == pytest.approx(40.0, rel=1e-5)


@pytest.mark.parametrize("method", ["xtrace", "hutch++"])
def test_a_small_memory_keeps_the_sketch_and_stays_right(method):
    A = MatrixOperator(rotated(DECAYING))
    estimate = ti.trace(A, method, rtol=0.015, memory=400 * 8 * 40, max_products=399)
    assert abs(estimate.value - DECAYING.sum()) <= 4 * estimate.stderr
    if method == "xtrace":
        assert "limited to 15 probes" in estimate.note


def test_no_memory_at_all_is_hutchinson():
    A = MatrixOperator(rotated(DECAYING))
    estimate = ti.trace(A, rtol=0.2, memory=0)
    assert abs(estimate.value - DECAYING.sum()) <= 4 * estimate.stderr


def test_a_tenth_of_a_percent_is_not_met_by_luck():
    """A peer asked for 0.1 % stopped at 4 %: its running mean had changed little."""
    A = MatrixOperator(rotated(np.linspace(0.1, 1.0, 3000)[::8]))
    with pytest.warns(ConvergenceWarning, match="raise max_products"):
        short = ti.trace(A, "hutchinson", rtol=1e-3, max_products=40)
    assert not short.converged
    assert 2 * short.stderr > 1e-3 * short.value
    exact = ti.trace(A, "hutchinson", rtol=1e-3)
    assert exact.method == "exact"


def test_a_nearly_diagonal_operator_needs_few_hutchinson_probes():
    A = MatrixOperator(torch.diag(torch.arange(1.0, 101.0, dtype=torch.float64)))
    estimate = ti.trace(A, "hutchinson")
    assert (estimate.value, estimate.stderr, estimate.products) == (5050.0, 0.0, 16)


def test_more_probes_extend_a_run():
    A = MatrixOperator(rotated(DECAYING))
    first = ti.trace(A, "hutchinson", probes=20, seed=3)
    longer = ti.trace(A, "hutchinson", probes=40, seed=3)
    z = longer.value * 40 - first.value * 20
    samples = [float(p @ A.matrix @ p) for p in (_sign(A, i) for i in range(20, 40))]
    assert z == pytest.approx(sum(samples), rel=1e-10)


def _sign(A, index):
    from thalweg.instruments.sketches import sign_probe

    return sign_probe(A, 3, "probe", index)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "hutch"}, "method must be one of"),
        ({"rtol": 0.0}, "rtol must be positive, got 0.0"),
        ({"probes": 1}, "probes must be at least 2"),
        ({"max_products": 3}, "max_products must be at least 4"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(InputError, match=message):
        inspect.unwrap(ti.trace)(MatrixOperator(torch.eye(20).double()), **options)


@pytest.mark.parametrize("method", METHODS)
def test_a_product_that_is_not_finite_raises(method):
    A = FunctionOperator(lambda v: v * float("nan"), 100)
    with pytest.raises(InputError, match="FunctionOperator is not finite"):
        ti.trace(A, method)
