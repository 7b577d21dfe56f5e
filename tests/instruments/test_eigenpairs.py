"""`top_eigenpairs` against closed forms, dense eigh and ARPACK."""

import numpy as np
import pytest
import torch

from thalweg import Quadratic
from thalweg import instruments as ti
from thalweg.errors import ConvergenceWarning, InputError, PrecisionWarning
from thalweg.instruments.eigenpairs import ONE_START
from thalweg.landscapes import FunctionOperator, IdentityOperator, MatrixOperator


def rotated(eigenvalues, seed=0, dtype=torch.float64):
    """Return a symmetric matrix with the eigenvalues given."""
    values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    noise = torch.randn(
        len(values), len(values), generator=torch.Generator().manual_seed(seed)
    ).double()
    Q, _ = torch.linalg.qr(noise)
    matrix = (Q * values) @ Q.T
    return ((matrix + matrix.T) / 2).to(dtype)


def spread(n, seed=1):
    """Return a spectrum like a network's: a few large, many small, some negative."""
    rng = np.random.default_rng(seed)
    bulk = rng.normal(0.0, 0.02, n - 8)
    return np.concatenate([[9.0, 6.5, 4.0, 3.0, 2.2, 1.0, -0.4, -0.7], bulk])


def test_a_quadratic_gives_its_eigenvalues():
    values = spread(60)
    land = Quadratic(rotated(values))
    pairs = ti.top_eigenpairs(land.hessian(land.origin), 5)
    expected = torch.from_numpy(np.sort(values)[::-1][:5].copy())
    torch.testing.assert_close(pairs.values, expected, rtol=1e-10, atol=0)
    assert bool(pairs.converged.all())
    gram = pairs.vectors.T @ pairs.vectors
    torch.testing.assert_close(gram, torch.eye(5).double(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
def test_every_end_equals_dense(which):
    values = np.sort(spread(80))
    pairs = ti.top_eigenpairs(MatrixOperator(rotated(values)), 4, which=which, tol=1e-9)
    expected = {
        "LA": values[::-1][:4],
        "SA": values[:4],
        "LM": values[np.argsort(-np.abs(values))][:4],
        "BE": np.concatenate([values[::-1][:2], values[:2][::-1]]),
    }[which]
    np.testing.assert_allclose(pairs.values.numpy(), expected, rtol=1e-8)
    assert bool(pairs.converged.all())


def test_both_ends_give_the_odd_one_to_the_upper():
    pairs = ti.top_eigenpairs(
        MatrixOperator(rotated(np.arange(-10.0, 11.0))), 3, which="BE"
    )
    np.testing.assert_allclose(pairs.values.numpy(), [10, 9, -10], rtol=1e-10)


def test_equals_arpack():
    from scipy.sparse.linalg import eigsh

    A = MatrixOperator(rotated(spread(300)))
    pairs = ti.top_eigenpairs(A, 5)
    expected = np.sort(eigsh(A.to_scipy(), 5, which="LA", return_eigenvectors=False))
    np.testing.assert_allclose(pairs.values.numpy(), expected[::-1], rtol=1e-9)


def test_residuals_are_those_of_the_vectors_returned():
    matrix = rotated(spread(100), dtype=torch.float32)
    pairs = ti.top_eigenpairs(MatrixOperator(matrix), 3)
    V = pairs.vectors.double()
    true = (matrix.double() @ V - V * pairs.values).norm(dim=0)
    torch.testing.assert_close(pairs.residuals, true, rtol=0.5, atol=2e-7)
    assert bool((pairs.residuals > 1e-8).all())  # the estimate would say 1e-13
    np.testing.assert_allclose(pairs.values.numpy(), [9.0, 6.5, 4.0], rtol=1e-5)


def test_products_are_counted_with_the_residuals():
    A = MatrixOperator(rotated(spread(50)))
    pairs = ti.top_eigenpairs(A, 2)
    assert pairs.products == A.products >= 2 * 2 + 2


def test_a_multiple_eigenvalue_needs_a_block():
    A = MatrixOperator(rotated([5.0, 5.0, 5.0, 2.0, *np.linspace(-1, 1, 60)]))
    pairs = ti.top_eigenpairs(A, 4, block=3)
    np.testing.assert_allclose(pairs.values.numpy(), [5, 5, 5, 2], rtol=1e-10)


def test_copies_that_may_be_missing_are_said():
    # A peer's Lanczos lost eigenvalues without a word.
    A = MatrixOperator(rotated([5.0, 5.0, 5.0, 2.0, 1.0, *np.linspace(-1, 0, 200)]))
    single = ti.top_eigenpairs(A, 2, tol=1e-3)
    np.testing.assert_allclose(single.values.numpy(), [5, 2], rtol=1e-3)
    assert bool(single.converged.all()) and "need block=" in single.note
    block = ti.top_eigenpairs(A, 2, block=3)
    np.testing.assert_allclose(block.values.numpy(), [5, 5], rtol=1e-10)
    assert "block=" not in block.note
    small = MatrixOperator(rotated([5.0, 5.0, 1.0]))  # the whole space is spanned
    found = ti.top_eigenpairs(small, 2)
    np.testing.assert_allclose(found.values.numpy(), [5, 5], rtol=1e-10)
    assert found.note == ""


@pytest.mark.parametrize("block", [1, 2])
def test_what_memory_limits_is_said_with_restarts_and_without(block):
    A = MatrixOperator(torch.diag(torch.linspace(0, 3, 400, dtype=torch.float64)))
    limited = "the basis is limited to 59 vectors by memory=192000"
    single = [ONE_START] if block == 1 else []
    loose, tight = (
        ti.top_eigenpairs(A, 1, tol=tol, memory=192_000, block=block).note
        for tol in (1e-1, 1e-6)
    )
    assert loose.split("; ") == [limited, *single]
    assert tight.split("; ")[1:] == [limited, *single]
    assert "thick restarts with 59 vectors" in tight


def test_the_identity_and_zero_have_every_copy():
    for scale in (1.0, 0.0):
        A = IdentityOperator(9, dtype=torch.float64, device=torch.device("cpu"))
        pairs = ti.top_eigenpairs(A * scale, 3)
        np.testing.assert_allclose(pairs.values.numpy(), [scale] * 3, atol=1e-12)
        assert bool(pairs.converged.all())


def test_a_rank_deficient_operator_has_zeros_within_precision():
    A = MatrixOperator(rotated([3.0, 1.0] + [0.0] * 30))
    pairs = ti.top_eigenpairs(A, 4)
    np.testing.assert_allclose(pairs.values.numpy(), [3, 1, 0, 0], atol=1e-12)
    assert bool(pairs.converged.all())


def test_thick_restart_equals_an_unrestricted_run():
    A = MatrixOperator(rotated(spread(200)))
    free = ti.top_eigenpairs(A, 4, which="SA", tol=1e-8)
    restarted = ti.top_eigenpairs(A, 4, which="SA", tol=1e-8, max_basis=14)
    assert "thick restarts with 14 vectors" in restarted.note
    torch.testing.assert_close(restarted.values, free.values, rtol=1e-10, atol=0)
    overlap = (free.vectors * restarted.vectors).sum(0).abs()
    torch.testing.assert_close(overlap, torch.ones(4).double(), rtol=0, atol=1e-10)


def test_thick_restart_of_a_block_keeps_the_copies():
    A = MatrixOperator(rotated([5.0, 5.0, 4.0, *np.linspace(-1, 1, 100)]))
    pairs = ti.top_eigenpairs(A, 3, block=2, max_basis=12)
    np.testing.assert_allclose(pairs.values.numpy(), [5, 5, 4], rtol=1e-10)
    assert bool(pairs.converged.all())


def test_a_small_memory_restarts_and_says_so():
    A = MatrixOperator(rotated(spread(200)))
    pairs = ti.top_eigenpairs(A, 4, memory=200 * 8 * 19)
    assert "limited to 15 vectors by memory" in pairs.note
    np.testing.assert_allclose(pairs.values.numpy(), [9, 6.5, 4, 3], rtol=1e-9)


def test_a_spent_budget_is_flagged_and_warned_about():
    A = MatrixOperator(rotated(np.linspace(0, 1, 400)))
    with pytest.warns(ConvergenceWarning, match="raise max_products"):
        pairs = ti.top_eigenpairs(A, 5, max_products=20)
    assert pairs.products == 20
    assert not bool(pairs.converged.any())


def test_ten_iterations_do_not_pass_for_five_eigenvalues():
    """A peer's default of 10 iterations returned a wrong fifth value in silence."""
    values = np.concatenate([[20.0, 15.0, 11.0, 8.0, 5.9], np.linspace(-1, 5, 300)])
    A = MatrixOperator(rotated(values))
    with pytest.warns(ConvergenceWarning):
        short = ti.top_eigenpairs(A, 5, max_products=15)
    assert not bool(short.converged[4])
    full = ti.top_eigenpairs(A, 5)
    np.testing.assert_allclose(full.values.numpy(), values[:5], rtol=1e-9)


def test_a_warm_start_costs_little_and_misses_nothing():
    values = spread(300)
    A = MatrixOperator(rotated(values))
    cold = ti.top_eigenpairs(A, 3)
    warm = ti.top_eigenpairs(A, 3, start=cold.vectors)
    assert warm.products < cold.products
    torch.testing.assert_close(warm.values, cold.values, rtol=1e-10, atol=0)
    missing = ti.top_eigenpairs(A, 3, start=cold.vectors[:, 1:])
    torch.testing.assert_close(missing.values, cold.values, rtol=1e-9, atol=0)


@pytest.mark.parametrize("gap", [0.5, 0.2, 0.1])
@pytest.mark.parametrize("tol", [1e-2, 1e-3])
def test_a_start_at_an_eigenvector_does_not_hide_a_larger_eigenvalue(gap, tol):
    """It met the tolerance at once, and three products were the end of it."""
    diagonal = torch.linspace(0, 3, 10_000, dtype=torch.float64)
    diagonal[:2] = torch.tensor([5 * (1 + gap), 5.0])
    start = torch.zeros(10_000, dtype=torch.float64)
    start[1] = 1.0
    A = FunctionOperator(lambda v: diagonal * v, 10_000)
    for seed in range(5):
        found = ti.top_eigenpairs(A, 1, tol=tol, start=start, seed=seed)
        assert float(found.values[0]) == pytest.approx(5 * (1 + gap), rel=tol)


def test_an_unreachable_tolerance_warns():
    A = MatrixOperator(rotated(spread(60), dtype=torch.float32))
    with (
        pytest.warns(PrecisionWarning, match="float32"),
        pytest.warns(ConvergenceWarning),
    ):
        ti.top_eigenpairs(A, 2, tol=1e-9)


def test_equal_seeds_give_equal_bits():
    A = MatrixOperator(rotated(spread(60)))
    first, second = (ti.top_eigenpairs(A, 3, seed=4) for _ in range(2))
    assert torch.equal(first.vectors, second.vectors)


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    ti.top_eigenpairs(MatrixOperator(rotated(spread(60))), 3)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 20}, "k must be less than the dimension 20, got 20"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"tol": 0.0}, "tol must be positive"),
        ({"max_products": 3}, "max_products must be at least 2 k"),
        ({"block": 0}, "block must be at least 1"),
        ({"max_basis": 3}, "max_basis must be at least"),
        ({"start": torch.ones(7)}, r"start must have shape \(20,\)"),
        ({"start": torch.full((20,), torch.nan)}, "start must be finite"),
    ],
)
def test_bad_input(options, message):
    A = MatrixOperator(torch.eye(20).double())
    with pytest.raises(InputError, match=message):
        ti.top_eigenpairs(A, **({"k": 2} | options))


def test_a_product_that_is_not_finite_raises():
    A = FunctionOperator(lambda v: v * float("nan"), 10)
    with pytest.raises(InputError, match="product 1 of the FunctionOperator"):
        ti.top_eigenpairs(A, 2)


@pytest.mark.slow
def test_millions_of_float32_entries_lose_no_digits():
    """Plain float32 sums over 10 million entries were off by 4e-4, values too."""
    diagonal = torch.linspace(0, 1, 10_000_000) ** 8
    diagonal[:5] = torch.tensor([9.0, 7.0, 5.0, 4.0, 3.0])
    A = FunctionOperator(lambda v: diagonal * v, len(diagonal), dtype=torch.float32)
    pairs = ti.top_eigenpairs(A, 5, memory=400 << 20)
    assert bool(pairs.converged.all())
    np.testing.assert_allclose(pairs.values.numpy(), [9, 7, 5, 4, 3], rtol=1e-5)
