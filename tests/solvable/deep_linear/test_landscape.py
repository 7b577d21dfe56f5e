"""Loss, gradient, Hessian and critical points against dense automatic derivatives."""

import itertools

import numpy as np
import pytest
import torch

from draws import draw
from thalweg.errors import InputError, StructureError
from thalweg.solvable import DeepLinear
from thalweg.solvable.deep_linear import (
    critical_point,
    is_strict,
    minimum_curvature,
    mse_learning_rate,
    negative_eigenvalues,
    saddle_index,
)
from thalweg.solvable.deep_linear.checks import at_least_one, widths_of


def plain_loss(point, widths, M, Sigma):
    """The loss, written independently: ½ mean |Sigma^½ (W - M)|² by a Cholesky root."""
    W, offset = torch.eye(widths[0], dtype=torch.float64), 0
    for rows, columns in zip(widths[1:], widths[:-1], strict=True):
        W = point[offset : offset + rows * columns].reshape(rows, columns) @ W
        offset += rows * columns
    return 0.5 * ((W - M) @ torch.linalg.cholesky(Sigma)).square().sum()


@pytest.mark.parametrize("widths", [(3, 2), (3, 4, 2), (2, 3, 2, 3), (2, 1, 3, 2, 2)])
def test_derivatives_against_autograd(widths):
    M, X = draw(widths[-1], widths[0]), draw(widths[0], 2 * widths[0], seed=1)
    Sigma = X @ X.T
    land = DeepLinear(M, widths, Sigma=Sigma, sigma=0.5)
    points = draw(3, land.dim, seed=2)
    values, gradients = land.value_and_gradient(points)
    assert land.noise_floor == widths[-1] * 0.125
    for point, value, gradient in zip(points, values, gradients, strict=True):
        args = widths, M, Sigma
        torch.testing.assert_close(value, plain_loss(point, *args), rtol=1e-12, atol=0)
        torch.testing.assert_close(land.loss(point), value, rtol=1e-13, atol=0)
        expected = torch.func.grad(plain_loss)(point, *args)
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)
        H = torch.func.hessian(plain_loss)(point, *args)
        torch.testing.assert_close(
            land.hessian(point).dense(), H, rtol=1e-10, atol=1e-10
        )
        v = draw(land.dim, seed=3)
        torch.testing.assert_close(
            land.hessian(point) @ v, H @ v, rtol=1e-10, atol=1e-9
        )


def test_points_that_closed_forms_would_cast_are_refused():
    land = DeepLinear(torch.eye(2), (2, 3, 2), sigma=0.1)
    assert repr(land) == "DeepLinear(widths=(2, 3, 2), sigma=0.1)"
    for dtype in (torch.complex64, torch.int64):
        with pytest.raises(InputError, match=f"real floating dtype, got {dtype}"):
            land._checked_points(torch.zeros(12, dtype=dtype))
    for call in (land.loss, land.gradient, land.product, land.balance):
        with pytest.raises(StructureError, match=r"\(\.\.\., 12\), got \(3, 13\)"):
            call(draw(3, 13))


@pytest.mark.parametrize("value", [0, 2.5, np.inf, np.nan, True])
def test_counts_are_integers(value):
    with pytest.raises(InputError, match=f"B must be an integer.*got {value}"):
        at_least_one("B", value)
    with pytest.raises(InputError, match="every width an integer of at least 1"):
        widths_of((2, 2.5, 2))


def test_float32_keeps_its_dtype():
    land = DeepLinear(torch.eye(2), (2, 3, 2))
    point = draw(land.dim).float()
    value, gradient = land.value_and_gradient(point)
    assert value.dtype == gradient.dtype == torch.float32
    assert (land.hessian(point) @ point).dtype == torch.float32


def test_layout_and_modes():
    U, V = (torch.linalg.qr(draw(n, n, seed=n)).Q for n in (3, 4))
    S = torch.tensor([3.0, 2.0, 0.5], dtype=torch.float64)
    land = DeepLinear(U @ torch.diag(S) @ V[:3], (4, 2, 5, 3))
    assert land.layout.names == ("W_1", "W_2", "W_3")
    assert {block.filter_axis for block in land.layout.blocks} == {0}
    torch.testing.assert_close(land.modes.S, S, rtol=1e-12, atol=0)
    assert land.modes.learnable == 2 and not land.modes.repeated
    point = land.aligned([0.7, 0.3, 0.0])
    expected = torch.diag(torch.tensor([0.7, 0.3, 0.0], dtype=torch.float64))
    torch.testing.assert_close(land.mode_matrix(point), expected, rtol=0, atol=1e-12)
    assert all(float(gap.abs().max()) < 1e-12 for gap in land.balance(point))
    torch.testing.assert_close(land.flatten(land.weights(point)), point)
    with pytest.raises(InputError, match="s must be zero beyond the 2 modes"):
        land.aligned(0.1)
    assert DeepLinear(torch.eye(2), (2, 2)).modes.repeated


SUBSETS = [c for k in range(4) for c in itertools.combinations(range(3), k)]


@pytest.mark.parametrize(
    "widths", [(3, 3, 3), (4, 5, 3), (3, 3, 3, 3), (3, 4, 3, 3), (3, 3, 3, 3, 3)]
)
@pytest.mark.parametrize("subset", SUBSETS)
def test_saddle_index_against_autograd(widths, subset):
    S = [2.0, 1.3, 0.6]
    M = torch.zeros(widths[-1], widths[0], dtype=torch.float64)
    M[:3, :3] = torch.diag(torch.tensor(S, dtype=torch.float64))
    land = DeepLinear(M, widths)
    point = land.flatten(critical_point(S, subset, widths))
    assert float(land.gradient(point).norm()) < 1e-13
    eye = torch.eye(widths[0], dtype=torch.float64)
    H = torch.func.hessian(plain_loss)(point, widths, M, eye)
    values = torch.linalg.eigvalsh(H)
    negative = values[values < -1e-9].numpy()
    np.testing.assert_allclose(
        negative, negative_eigenvalues(S, subset, widths), rtol=1e-9
    )
    assert saddle_index(S, subset, widths) == len(negative)
    assert is_strict(S, subset, widths) == bool(len(negative))
    if len(subset) == 3:
        expected = minimum_curvature(S, len(widths) - 1)
        assert float(values[-1]) == pytest.approx(expected, rel=1e-10)


def test_top_saddles_of_deeper_networks_are_not_strict():
    S = [3.0, 2.0, 1.0]
    assert [is_strict(S, range(k), (3, 3, 3)) for k in range(3)] == [True] * 3
    assert [is_strict(S, range(k), (3, 3, 3, 3)) for k in range(3)] == [False] * 3


def test_matrix_calls_survive_a_sigma_that_does_not_commute():
    Sigma = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    land = DeepLinear(
        torch.diag(torch.tensor([2.0, 1.0])).double(), (2, 2), Sigma=Sigma
    )
    assert float(land.loss(torch.zeros(4, dtype=torch.float64))) > 0
    with pytest.raises(ValueError, match="Sigma must be diagonal in the teacher's"):
        _ = land.modes


def test_mse_learning_rate():
    assert mse_learning_rate(0.3, 6) == pytest.approx(0.1)
    with pytest.raises(InputError, match="d_L must be at least 1"):
        mse_learning_rate(0.1, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": (2,)}, r"widths must be \(d_0"),
        ({"widths": (2, 0, 2)}, "every width an integer of at least 1"),
        ({"widths": (2, 3)}, r"teacher must have shape \(d_L, d_0\)"),
        ({"sigma": -1.0}, "sigma must be non-negative, got -1.0"),
        ({"Sigma": torch.eye(3)}, "Sigma must have shape"),
        ({"Sigma": -torch.eye(2)}, "Sigma must be positive semi-definite"),
        ({"Sigma": torch.tensor([[1.0, 1.0], [0.0, 1.0]])}, "Sigma must be symmetric"),
        ({"teacher": torch.full((2, 2), float("nan"))}, "teacher must be finite"),
        ({"teacher": torch.ones(2)}, "teacher must be a real matrix"),
    ],
)
def test_bad_landscapes(arguments, message):
    settings = {"teacher": torch.eye(2), "widths": (2, 2)} | arguments
    with pytest.raises(ValueError, match=message):
        DeepLinear(**settings)


@pytest.mark.parametrize(
    ("S", "subset", "widths", "message"),
    [
        ([1.0, 2.0], (0,), (2, 2, 2), "S must be one axis of strengths in descending"),
        ([1.0, 0.0], (0,), (2, 2, 2), "S must be positive"),
        ([2.0, 1.0], (2,), (2, 2, 2), "subset must be different indices"),
        ([2.0, 1.0], (0, 1), (2, 1, 2), "subset has 2 modes, more than"),
        ([2.0, 1.0], (0,), (1, 2, 2), "widths must begin and end with"),
        ([2.0, 1.0], (0,), (2, 2), "subset must hold every mode at L = 1"),
    ],
)
def test_bad_critical_points(S, subset, widths, message):
    with pytest.raises(InputError, match=message):
        saddle_index(S, subset, widths)
