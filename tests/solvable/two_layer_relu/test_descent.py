"""Descents: where they end, that the ends are certified, and their protocol."""

import math

import pytest
import torch

from draws import draw
from thalweg.errors import InputError
from thalweg.solvable import ReLUTeacherStudent
from thalweg.solvable.two_layer_relu import KIND, STATUS
from thalweg.solvable.two_layer_relu.objective import Objective
from thalweg.solvable.two_layer_relu.polish import certify, newton_polish


def orthonormal(k, K=None, d=None):
    return ReLUTeacherStudent(torch.eye(k, dtype=torch.float64), K or k, d=d)


def spurious(ends):
    return float((ends.loss > 1e-10).double().mean())


def test_inner_loop_equals_the_closed_forms():
    land = ReLUTeacherStudent(draw(3, 5), 4)
    W = draw(6, 4, 5, seed=1)
    W[0, 0] = 2 * land.V[1]  # collinear with a teacher
    W[1, 0] = W[1, 1] * (1 + 1e-9)
    W[2, 0] = -W[2, 1]
    loss, gradient = Objective(land.V, 4)(W)
    expected, exact = land.value_and_gradient(W.flatten(-2))
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gradient.flatten(-2), exact, rtol=0, atol=1e-13)


def test_gradient_of_the_inner_loop_vanishes_to_rounding_at_the_teacher():
    V = draw(5, 5)
    near = V + 1e-9 * draw(5, 5, seed=1)
    land = ReLUTeacherStudent(V, 5)
    _, gradient = Objective(V, 5)(near[None])
    exact = land.gradient(land.point(near))
    torch.testing.assert_close(gradient.flatten(), exact, rtol=0, atol=1e-14)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_small_orthonormal_teachers_are_always_learned(k):
    ends = orthonormal(k).find_minima(100)
    assert bool(ends.converged.all())
    assert float(ends.loss.abs().max()) < 1e-12
    assert float(ends.grad_norm.max()) <= 1e-10
    assert bool((ends.kind == KIND.index("minimum")).all())


def test_spurious_minima_grow_with_width_and_vanish_one_neuron_later():
    at_six = spurious(orthonormal(6).find_minima(2000))
    at_eight = spurious(orthonormal(8).find_minima(500))
    at_ten = spurious(orthonormal(10).find_minima(300))
    assert 0 < at_six < at_eight < at_ten
    for k in (6, 8):
        ends = orthonormal(k, K=k + 1).find_minima(200, loss_tol=1e-12)
        assert bool(ends.converged.all())
        assert spurious(ends) <= 0.01
        assert bool((ends.kind == KIND.index("degenerate")).all())
    assert bool(ends.by_loss.any())


def test_correlated_teachers_have_spurious_minima_at_width_four():
    gram = torch.full((4, 4), -0.3, dtype=torch.float64)
    gram.fill_diagonal_(1.0)
    V = torch.linalg.cholesky(gram)
    ends = ReLUTeacherStudent(V, 4).find_minima(200)
    assert spurious(ends) > 0.1
    assert bool((ends.kind == KIND.index("minimum")).all())


def test_students_end_in_the_span_of_the_teacher():
    land = orthonormal(3, d=9)
    ends = land.find_minima(50)
    assert ends.W.shape == (50, 3, 9)
    assert float(ends.W[..., 3:].norm(dim=(1, 2)).max()) < 1e-8
    gradients = land.gradient(ends.W.flatten(-2))
    assert float(gradients.norm(dim=-1).max()) <= 2e-10


def test_reduced_descents_equal_descents_in_full_space():
    """The rotation into r + K dimensions is undone: every step is that of R^d."""
    land = orthonormal(2, K=2, d=7)
    starts = draw(5, 2, 7, seed=3) / math.sqrt(7)
    options = {"init": starts, "method": "gd", "max_iter": 40}
    ends = land.find_minima(5, **options)
    x = starts
    for _ in range(39):
        x = x - 1.25 * land.weights(land.gradient(x.flatten(-2)))
    torch.testing.assert_close(ends.W, x, rtol=0, atol=1e-11)
    assert bool((ends.status == STATUS.index("max_iter")).all())
    assert bool((ends.kind == KIND.index("unknown")).all())


def test_gradient_descent_reaches_the_same_minima():
    ends = orthonormal(6).find_minima(100, method="gd", escape_saddles=False)
    assert bool(ends.converged.all())
    assert int(ends.shrunk.sum()) == 0
    assert spurious(ends) <= 0.05
    longer = ReLUTeacherStudent(3 * draw(4, 4, seed=5), 4)
    rough = longer.find_minima(20, method="gd", max_iter=2000)
    assert bool(torch.isfinite(rough.loss).all())


def test_starts_do_not_depend_on_their_company():
    land = orthonormal(6)
    many, few = land.find_minima(300, seed=4), land.find_minima(20, seed=4)
    torch.testing.assert_close(many.loss[:20], few.loss, rtol=0, atol=1e-9)
    again = land.find_minima(300, seed=4)
    assert torch.equal(many.W, again.W)


def test_descents_leave_saddles():
    """Equal neurons stay equal under the gradient: the start lies on a saddle's way."""
    land = orthonormal(2)
    starts = draw(4, 1, 2, seed=6).expand(4, 2, 2).contiguous()
    stuck = land.find_minima(4, init=starts, escape_saddles=False)
    assert bool((stuck.kind == KIND.index("saddle")).all())
    assert bool((stuck.loss > 0.01).all())
    free = land.find_minima(4, init=starts)
    assert bool((free.n_escapes >= 1).all())
    assert bool((free.kind == KIND.index("minimum")).all())
    assert float(free.loss.max()) < 1e-12


def test_certificates_and_newton_steps_agree_with_eigenvalues():
    V = torch.eye(4, dtype=torch.float64)
    near = V + 1e-3 * draw(5, 4, 4, seed=7)
    ends, norms = newton_polish(near, V, 1e-12, -math.inf)
    assert float(norms.max()) <= 1e-12
    torch.testing.assert_close(ends, V.expand(5, 4, 4), rtol=0, atol=1e-10)
    assert bool(certify(ends, V, fresh=True).all())
    equal = torch.full((1, 2, 2), 0.5, dtype=torch.float64)
    assert not bool(certify(equal, torch.eye(2, dtype=torch.float64), fresh=True).any())


def test_trust_region_crosses_an_indefinite_region():
    V = torch.eye(3, dtype=torch.float64)
    far = draw(10, 3, 3, seed=8)
    ends, norms = newton_polish(far, V, 1e-11, -math.inf)
    assert float(norms.max()) <= 1e-11
    land = ReLUTeacherStudent(V, 3)
    assert bool((land.loss(ends.flatten(-2)) <= land.loss(far.flatten(-2))).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_starts": 0}, "n_starts must be at least 1, got 0"),
        ({"scale": 0.0}, "scale must be positive, got 0"),
        ({"tol": 0.0}, "tol must be positive, got 0"),
        ({"max_iter": 0}, "max_iter must be at least 1, got 0"),
        ({"init": "uniform"}, "init must be .*got 'uniform'"),
        ({"init": torch.zeros(2, 3, 3, dtype=torch.float64)}, r"shape \(5, 3, 3\)"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        orthonormal(3).find_minima(**({"n_starts": 5} | options))
