"""`diagonal` and `block_traces` against dense matrices and their own error."""

import inspect

import numpy as np
import pytest
import torch

from thalweg import instruments as ti
from thalweg.errors import InputError
from thalweg.instruments.sketches import sign_probe
from thalweg.landscapes import Block, FunctionOperator, Layout, MatrixOperator


def rotated(eigenvalues, seed=0, dtype=torch.float64):
    values = torch.as_tensor(np.asarray(eigenvalues), dtype=torch.float64)
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(values), len(values), generator=g, dtype=torch.float64)
    Q, _ = torch.linalg.qr(noise)
    matrix = (Q * values) @ Q.T
    return ((matrix + matrix.T) / 2).to(dtype)


DECAYING = 10.0 / np.arange(1, 201) ** 2
LAYOUT = Layout(
    (Block("a.weight", (50,), 0), Block("a.bias", (30,), 50), Block("b", (120,), 80))
)


def test_xdiag_equals_the_naive_leave_one_out():
    A = MatrixOperator(rotated(np.append(DECAYING[:79], -3.0)))
    estimate = ti.diagonal(A, probes=10, seed=4)
    M = A.matrix.numpy()
    Omega = np.stack([sign_probe(A, 4, "probe", i).numpy() for i in range(10)], 1)
    samples = []
    for i in range(10):
        Q, _ = np.linalg.qr(M @ np.delete(Omega, i, axis=1))
        z = Omega[:, i]
        rest = M @ z - Q @ (Q.T @ (M @ z))
        samples.append(np.diag(Q @ (Q.T @ M)) + z * rest)
    np.testing.assert_allclose(estimate.value, np.mean(samples, 0), atol=1e-11)
    stderr = np.std(samples, 0, ddof=1) / np.sqrt(10)
    np.testing.assert_allclose(estimate.stderr, stderr, atol=1e-11)
    assert estimate.products == A.products == 20


@pytest.mark.parametrize("method", ["xdiag", "hutchinson"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_error_is_calibrated(method, dtype):
    matrix = rotated(DECAYING, dtype=dtype)
    exact = matrix.diagonal().double()
    runs = [
        ti.diagonal(MatrixOperator(matrix), method, probes=16, seed=s)
        for s in range(20)
    ]
    errors = torch.stack([run.value - exact for run in runs])
    claimed = torch.stack([run.stderr for run in runs]).square().mean().sqrt()
    assert 0.5 < float(errors.square().mean().sqrt() / claimed) < 2.0
    spread = errors.std(0) / 20**0.5
    assert bool((errors.mean(0).abs() < 5 * spread + 1e-6).all())


def test_xdiag_beats_hutchinson_on_a_decaying_spectrum():
    A = MatrixOperator(rotated(DECAYING))
    exact = A.matrix.diagonal()
    ours, other = (
        float((ti.diagonal(A, method, probes=p).value - exact).norm())
        for method, p in (("xdiag", 16), ("hutchinson", 32))
    )
    assert 4 * ours < other


@pytest.mark.parametrize("method", ["xdiag", "hutchinson"])
def test_enough_products_make_it_exact(method):
    A = MatrixOperator(rotated(DECAYING[:40]))
    estimate = ti.diagonal(A, method, probes=40)
    torch.testing.assert_close(estimate.value, A.matrix.diagonal())
    assert (estimate.method, estimate.products) == ("exact", 40)
    assert float(estimate.stderr.max()) == 0.0


@pytest.mark.parametrize("rank", [0, 3])
def test_a_sketch_that_captures_everything_is_exact(rank):
    values = np.zeros(100)
    values[:rank] = 2.0
    A = MatrixOperator(rotated(values))
    estimate = ti.diagonal(A, probes=8)
    exact = A.matrix.diagonal()
    torch.testing.assert_close(estimate.value, exact, rtol=0, atol=1e-12)
    assert float(estimate.stderr.max()) < 1e-12


def test_block_traces_are_met_within_their_error():
    A = MatrixOperator(rotated(DECAYING), layout=LAYOUT)
    traces = ti.block_traces(A, probes=64)
    assert A.products == 64
    assert list(traces) == ["a.weight", "a.bias", "b"]
    for block in LAYOUT.blocks:
        exact = float(A.matrix.diagonal()[block.slice].sum())
        estimate = traces[block.name]
        assert abs(estimate.value - exact) < 4 * estimate.stderr
    whole = ti.trace(A, "hutchinson", probes=64)
    total = sum(estimate.value for estimate in traces.values())
    assert total == pytest.approx(whole.value, rel=1e-12)


def test_groups_sum_their_blocks():
    A = MatrixOperator(rotated(DECAYING))
    single = ti.block_traces(A, LAYOUT)
    grouped = ti.block_traces(A, LAYOUT, groups={"a": "a.*", "rest": ["b"]})
    assert list(grouped) == ["a", "rest"]
    total = single["a.weight"].value + single["a.bias"].value
    assert grouped["a"].value == pytest.approx(total, rel=1e-12)


def test_block_traces_of_a_diagonal_operator_are_exact():
    values = torch.arange(200.0, dtype=torch.float64)
    traces = ti.block_traces(MatrixOperator(torch.diag(values)), LAYOUT, probes=2)
    assert traces["b"].value == float(values[80:].sum())
    assert traces["b"].stderr == 0.0


def test_bad_input():
    A = MatrixOperator(torch.eye(50).double())
    with pytest.raises(InputError, match="method must be one of"):
        inspect.unwrap(ti.diagonal)(A, "x")
    with pytest.raises(InputError, match="probes must be at least 2"):
        ti.diagonal(A, probes=1)
    with pytest.raises(InputError, match="probes must be at least 2"):
        ti.block_traces(A, LAYOUT, probes=1)
    with pytest.raises(InputError, match="needs an operator with a layout"):
        ti.block_traces(A)
    with pytest.raises(InputError, match="layout has 200 entries, the operator 50"):
        ti.block_traces(A, LAYOUT)
    with pytest.raises(InputError, match="no name matches"):
        ti.block_traces(MatrixOperator(torch.eye(200)), LAYOUT, groups={"c": "c.*"})
    bad = FunctionOperator(lambda v: v * float("nan"), 100)
    with pytest.raises(InputError, match="not finite"):
        ti.diagonal(bad, probes=4)
