"""Loss, gradient and Hessian against Monte Carlo, autograd and finite differences."""

import math

import numpy as np
import pytest
import torch

from draws import draw
from thalweg.errors import InputError, StructureError
from thalweg.seeding import generator
from thalweg.solvable import ReLUTeacherStudent
from thalweg.solvable.two_layer_relu import relu_kernel, relu_loss, student_loss


def plain_loss(W, V):
    """L by the textbook formula on numpy, sharing nothing with the package."""
    X = np.concatenate([W, V])
    sign = np.r_[np.ones(len(W)), -np.ones(len(V))]
    norm = np.linalg.norm(X, axis=1)
    prod = np.outer(norm, norm)
    theta = np.arccos(np.clip(X @ X.T / prod, -1, 1))
    h = prod * (np.sin(theta) + (np.pi - theta) * np.cos(theta)) / (2 * np.pi)
    return sign @ h @ sign / 2


def test_loss_is_the_population_loss_of_a_million_samples():
    W, V = draw(3, 4, seed=1), draw(2, 4, seed=2)
    x = torch.randn(10**6, 4, generator=generator(3), dtype=torch.float64)
    error = (x @ W.T).relu().sum(1) - (x @ V.T).relu().sum(1)
    samples = error.square() / 2
    standard_error = samples.std() / 1e3
    assert abs(samples.mean() - student_loss(W, V)) < 4 * standard_error


@pytest.mark.parametrize(("K", "M", "d"), [(1, 1, 1), (3, 2, 5), (2, 5, 3)])
def test_all_forms_of_the_loss_agree(K, M, d):
    W, V = draw(7, K, d, seed=4), draw(M, d, seed=5)
    land = ReLUTeacherStudent(V, K)
    expected = torch.tensor([plain_loss(w.numpy(), V.numpy()) for w in W])
    for compensated in (True, False):
        values = student_loss(W, V, compensated=compensated)
        torch.testing.assert_close(values, expected, rtol=1e-13, atol=1e-13)
    values = relu_loss(*land.overlaps(W))
    torch.testing.assert_close(values, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(land.loss(W.flatten(-2)), expected, rtol=1e-13, atol=0)


def test_kernel_of_overlaps():
    W, V = draw(2, 3), draw(1, 3, seed=1)
    h = relu_kernel(W @ W.T, W @ V.T, V @ V.T)
    x = torch.randn(10**6, 3, generator=generator(9), dtype=torch.float64)
    u = (x @ torch.cat([W, V]).T).relu()
    torch.testing.assert_close(h, u.T @ u / 1e6, rtol=0.01, atol=0.01)


def test_compensated_loss_is_exact_to_1e_15_at_split_copies():
    V = draw(3, 4, seed=6)
    W = torch.cat([0.3 * V, 0.7 * V])
    assert abs(float(student_loss(W, V))) <= 1e-15
    offset = 1e-6 * draw(6, 4, seed=7)
    exact = extended_precision_loss(W + offset, V)
    value = float(student_loss(W + offset, V))
    assert abs(value - exact) < 1e-15
    assert exact > 1e-13


def extended_precision_loss(W, V):
    """L by the textbook formula in extended precision."""
    X = torch.cat([W, V]).numpy().astype(np.longdouble)
    sign = np.r_[np.ones(len(W)), -np.ones(len(V))].astype(np.longdouble)
    norm = np.sqrt((X**2).sum(1))
    unit = X / norm[:, None]
    difference = np.sqrt(((unit[:, None] - unit[None]) ** 2).sum(-1))
    total = np.sqrt(((unit[:, None] + unit[None]) ** 2).sum(-1))
    theta = 2 * np.arctan2(difference, total)
    pi = 4 * np.arctan(np.longdouble(1))
    h = np.outer(norm, norm) * (np.sin(theta) + (pi - theta) * np.cos(theta)) / (2 * pi)
    return float(sign @ h @ sign / 2)


def test_loss_symmetries_and_scaling():
    W, V = draw(3, 4, seed=8), draw(2, 4, seed=9)
    rotation, _ = torch.linalg.qr(draw(4, 4, seed=10))
    value = student_loss(W, V)
    for w, v, factor in [
        (W @ rotation, V @ rotation, 1),
        (W[[2, 0, 1]], V[[1, 0]], 1),
        (3 * W, 3 * V, 9),
    ]:
        torch.testing.assert_close(student_loss(w, v), factor * value)


@pytest.mark.parametrize(("K", "M", "d"), [(1, 1, 1), (3, 2, 5), (4, 4, 4)])
def test_gradient_and_hessian_against_finite_differences(K, M, d):
    land = ReLUTeacherStudent(draw(M, d, seed=11), K)
    point = draw(K * d, seed=12)
    eye = torch.eye(K * d, dtype=torch.float64)
    step = 1e-5
    numeric = (land.loss(point + step * eye) - land.loss(point - step * eye)) / 2 / step
    torch.testing.assert_close(land.gradient(point), numeric, rtol=0, atol=1e-8)
    numeric = land.gradient(point + step * eye) - land.gradient(point - step * eye)
    H = land.hessian(point)
    dense = H.dense()
    assert H.products == 0
    torch.testing.assert_close(dense, numeric / 2 / step, rtol=0, atol=1e-7)
    assert float((dense - dense.T).abs().max()) <= 1e-14
    torch.testing.assert_close(H @ eye, dense, rtol=0, atol=1e-12)
    torch.testing.assert_close(H @ eye[0], dense[0], rtol=0, atol=1e-12)


def test_hessian_against_autograd():
    V, W = draw(2, 3, seed=13), draw(3, 3, seed=14)

    def smooth_loss(flat):
        X = torch.cat([flat.reshape(3, 3), V])
        sign = torch.tensor([1.0, 1, 1, -1, -1], dtype=torch.float64)
        norm = X.norm(dim=1)
        c = (X @ X.T) / torch.outer(norm, norm)
        off = ~torch.eye(5, dtype=torch.bool)
        theta = torch.acos(c[off])
        h = (theta.sin() + (math.pi - theta) * c[off]) / (2 * math.pi)
        pairs = torch.outer(norm * sign, norm * sign)[off] * h
        return pairs.sum() / 2 + norm.square().sum() / 4

    land = ReLUTeacherStudent(V, 3)
    point = W.reshape(-1)
    expected = torch.func.hessian(smooth_loss)(point)
    torch.testing.assert_close(
        land.hessian(point).dense(), expected, rtol=0, atol=1e-10
    )
    expected = torch.func.grad(smooth_loss)(point)
    torch.testing.assert_close(land.gradient(point), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_hessian_is_continuous_through_collinear_neurons(sign):
    V = draw(2, 4, seed=15)
    W = draw(3, 4, seed=16)
    W[1] = sign * 2 * W[0]
    W[2] = sign * 0.5 * V[1]
    land = ReLUTeacherStudent(V, 3)
    exact = land.hessian(land.point(W))
    matrix = exact.dense()
    assert bool(torch.isfinite(matrix).all())
    eye = torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close(exact @ eye, matrix, rtol=0, atol=1e-12)
    for size in (1e-9, 1e-8):
        near = land.hessian(land.point(W + size * draw(3, 4, seed=17)))
        torch.testing.assert_close(near.dense(), matrix, rtol=0, atol=1e3 * size)
        torch.testing.assert_close(near @ eye, near.dense(), rtol=0, atol=1e-12)


def test_batches_empty_batches_and_dtypes():
    land = ReLUTeacherStudent(draw(2, 3).float(), 2)
    assert land.dtype == torch.float32
    points = draw(4, 5, 6).float()
    assert land.loss(points).shape == (4, 5)
    assert land.loss(points).dtype == torch.float32
    assert land.gradient(points).shape == (4, 5, 6)
    assert land.loss(points[:0]).shape == (0, 5)
    assert land.gradient(points[:0]).shape == (0, 5, 6)
    one = land.gradient(points[1, 2])
    torch.testing.assert_close(land.gradient(points)[1, 2], one)
    assert land.layout["W"].filter_axis == 0
    assert land.origin is None
    arrays = student_loss(draw(2, 3).numpy(), draw(2, 3, seed=1).numpy())
    assert arrays.dtype == torch.float64


def test_tensors_come_back_in_the_dtype_of_the_student():
    land = ReLUTeacherStudent(draw(2, 3), 4)
    W, u = draw(4, 3, seed=1), draw(5, 3, seed=2)
    wide = (*land.overlaps(W), *land.S_B(W), land.split_stability(W))
    low = W.float()
    narrow = (*land.overlaps(low), *land.S_B(low), land.split_stability(low))
    wide, narrow = (
        (*wide, land.dead_direction(W, u)),
        (*narrow, land.dead_direction(W, u.float())),
    )
    for ours, exact in zip(narrow, wide, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)


def test_points_that_closed_forms_would_cast_are_refused():
    land = ReLUTeacherStudent(draw(2, 3), 2)
    assert repr(land) == "ReLUTeacherStudent(M=2, K=2, d=3)"
    for dtype in (torch.complex128, torch.int64):
        with pytest.raises(InputError, match=f"real floating dtype, got {dtype}"):
            land._checked_points(torch.zeros(6, dtype=dtype))
    for call in (land.loss, land.gradient, land.weights):
        with pytest.raises(StructureError, match=r"\(\.\.\., 6\), got \(2, 7\)"):
            call(draw(2, 7))


def test_teachers_of_lower_dimension_are_padded():
    V = draw(2, 3)
    land = ReLUTeacherStudent(V, 2, d=5)
    W = draw(2, 5, seed=1)
    padded = torch.nn.functional.pad(V, (0, 2))
    torch.testing.assert_close(land.loss(land.point(W)), student_loss(W, padded))


def test_zero_neurons():
    land = ReLUTeacherStudent(draw(2, 3), 3)
    W = draw(3, 3, seed=1)
    W[1] = 0
    smaller = student_loss(W[[0, 2]], land.V)
    torch.testing.assert_close(land.loss(land.point(W)), smaller)
    with pytest.raises(InputError, match="zero neuron, index 1"):
        land.gradient(land.point(W))
    with pytest.raises(InputError, match="zero neuron, index 1"):
        land.hessian(land.point(W))
    H = land.hessian(land.point(W), zero_neuron="drop")
    assert H.dropped == (1,)
    rest = ReLUTeacherStudent(land.V, 2)
    kept = rest.hessian(rest.point(W[[0, 2]])).dense()
    full = H.dense().reshape(3, 3, 3, 3)
    assert float(full[1].abs().max()) == 0
    block = full[[0, 2]][:, :, [0, 2]].reshape(6, 6)
    torch.testing.assert_close(block, kept)
    torch.testing.assert_close(
        H @ torch.eye(9, dtype=torch.float64), H.dense(), rtol=0, atol=1e-12
    )
    with pytest.raises(InputError, match='"raise" or "drop", got'):
        land.hessian(land.point(W), zero_neuron="keep")


NAN = torch.full((2, 3), math.nan, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ReLUTeacherStudent(draw(2, 3), 0), "K must be an int.*got 0"),
        (lambda: ReLUTeacherStudent(draw(0, 3), 1), r"M >= 1 .*got \(0, 3\)"),
        (lambda: ReLUTeacherStudent(draw(2, 3), 1, d=2), "dimension 3, got 2"),
        (lambda: ReLUTeacherStudent(NAN, 1), "V must be finite, got an entry nan"),
        (lambda: ReLUTeacherStudent(torch.ones(2, 3).long(), 1), "real floating.*int"),
        (lambda: ReLUTeacherStudent(torch.ones(2, 3) * 1j, 1), "real floating.*compl"),
        (lambda: ReLUTeacherStudent(torch.eye(2, 3) * torch.eye(2)[0, :, None], 1),
         "row 1 is zero"),
        (lambda: student_loss(NAN, draw(2, 3)), "W must be finite"),
        (lambda: student_loss(draw(0, 3), draw(2, 3)), r"K >= 1, got \(0, 3\)"),
        (lambda: student_loss(draw(2, 4), draw(2, 3)), "got 4 and 3"),
    ],
)  # fmt: skip
def test_bad_weights_and_teachers(call, message):
    with pytest.raises((InputError, StructureError), match=message):
        call()


@pytest.mark.parametrize(
    "name",
    ["spectrum", "classify", "split_stability", "steepest_birth", "ode_jacobian"],
)
def test_what_takes_one_student_refuses_a_batch(name):
    land = ReLUTeacherStudent(draw(2, 3), 2)
    with pytest.raises(InputError, match=r"one student \(K, d\), got \(5, 2, 3\)"):
        getattr(land, name)(draw(5, 2, 3))
    with pytest.raises(InputError, match="W must have K = 2 rows, got 3"):
        getattr(land, name)(draw(3, 3))
    with pytest.raises(InputError, match="zero neuron, index 1"):
        getattr(land, name)(torch.cat([draw(1, 3), torch.zeros(1, 3)]))


def test_empty_batches_keep_their_shapes():
    land = ReLUTeacherStudent(draw(2, 3), 4)
    none = draw(0, 4, 3)
    Q, R, P = land.overlaps(none)
    S, B = land.S_B(none)
    assert (Q.shape, R.shape) == ((0, 4, 4), (0, 4, 2))
    assert (S.shape, B.shape) == (Q.shape, R.shape)
    assert relu_loss(Q, R, P).shape == student_loss(none, land.V).shape == (0,)
    assert relu_kernel(Q, R, P).shape == (0, 6, 6)
    assert land.dead_direction(draw(4, 3), draw(0, 3)).shape == (0,)
    reduction = land.reduce(none)
    assert reduction.coefficients.shape == (0, 4, 2)
    assert reduction.gram.shape == (0, 4, 4)


def test_bad_overlaps():
    eye = torch.eye(2, dtype=torch.float64)
    skew = eye + torch.tensor([[0.0, 1e-3], [0.0, 0.0]], dtype=torch.float64)
    with pytest.raises(InputError, match=r"Q must be symmetric.*1\.0e-03"):
        relu_loss(skew, eye, eye)
    with pytest.raises(InputError, match="P must be symmetric"):
        relu_loss(eye, eye, skew)
    with pytest.raises(InputError, match="positive semi-definite.*-2.5e-01"):
        relu_loss(eye, 2 * eye, eye)
    with pytest.raises(StructureError, match="needs Q"):
        relu_loss(torch.eye(3, dtype=torch.float64), eye, eye)
