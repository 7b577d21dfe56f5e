"""Block-constant students against the full loss and Hessian."""

import pytest
import torch

from draws import draw
from thalweg.errors import InputError
from thalweg.solvable import ReLUTeacherStudent
from thalweg.solvable.two_layer_relu import (
    block_embed,
    block_loss,
    continue_blocks,
    detect_blocks,
    solve_blocks,
    student_loss,
)
from thalweg.solvable.two_layer_relu.symmetry import count_unknowns, orbit_sizes


def orthonormal(k):
    return ReLUTeacherStudent(torch.eye(k, dtype=torch.float64), k)


@pytest.mark.parametrize("p", [(4,), (1, 1, 1), (3, 1), (2, 1, 3), (6, 4)])
def test_block_loss_is_the_loss_of_the_embedded_student(p):
    values = draw(count_unknowns(p), seed=sum(p)) / sum(p)
    W = block_embed(values, p)
    full = student_loss(W, torch.eye(len(W), dtype=torch.float64))
    torch.testing.assert_close(block_loss(values, p), full, rtol=1e-13, atol=1e-13)
    gradient = torch.func.grad(lambda v: block_loss(v, p))(values)
    land = orthonormal(len(W))
    exact = land.gradient(land.point(W)).reshape(W.shape)
    spread = block_embed(gradient / orbit_sizes(p), p)
    torch.testing.assert_close(spread, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("p", [(4,), (1, 1, 1), (3, 1), (3, 2, 1), (6, 4)])
def test_blocks_are_found_behind_permutations(p):
    values = draw(count_unknowns(p), seed=sum(p))
    W = block_embed(values, p)
    k = len(W)
    pi, sigma = (torch.randperm(k, generator=torch.Generator().manual_seed(s))
                 for s in (1, 2))  # fmt: skip
    found = detect_blocks(W[pi][:, sigma])
    assert found is not None
    assert sorted(found[0]) == sorted(p)
    land = orthonormal(k)
    same = block_loss(found[1], found[0])
    torch.testing.assert_close(same, land.loss(land.point(W)), rtol=1e-10, atol=1e-12)
    assert detect_blocks(draw(4, 5)) is None


@pytest.mark.parametrize(("k", "kind"), [(5, "saddle"), (6, "minimum")])
def test_the_family_of_one_deviating_neuron_turns_into_minima_at_six(k, kind):
    land = orthonormal(k)
    point = land.symmetric_minimum((k - 1, 1))
    assert point.grad_norm < 1e-11
    what = land.classify(point.W)
    assert (what.kind, what.level) == (kind, "spurious")
    assert what.grad_norm < 1e-10


def test_newton_steps_and_continuation_in_width():
    start = orthonormal(6).symmetric_minimum((5, 1))
    off = start.values + 1e-2 * draw(5, seed=3)
    again = solve_blocks(off, (5, 1))
    torch.testing.assert_close(again.values, start.values, rtol=0, atol=1e-12)
    wide = continue_blocks(start, (9, 1))
    assert wide.grad_norm < 1e-13
    expected = orthonormal(10).symmetric_minimum((9, 1)).loss
    assert wide.loss == pytest.approx(expected, abs=1e-12)
    between = continue_blocks(start, (5.5, 1))
    assert between.W is None
    assert between.grad_norm < 1e-13
    assert orthonormal(7).symmetric_minimum((6, 1)).loss < between.loss < start.loss


def test_rotated_teachers_get_rotated_minima():
    rotation, _ = torch.linalg.qr(draw(6, 6, seed=4))
    land = ReLUTeacherStudent(rotation, 6)
    point = land.symmetric_minimum((5, 1))
    assert float(land.gradient(land.point(point.W)).norm()) < 1e-10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: block_embed(draw(5), (2.5, 1)), "integer block sizes, got"),
        (lambda: block_embed(draw(4), (4, 1)), r"shape \(5,\).*got \(4,\)"),
        (lambda: block_loss(draw(1), (-1,)), "positive block sizes"),
        (lambda: orthonormal(5).symmetric_minimum((3, 1)), "sum to K = 5"),
        (lambda: orthonormal(5).symmetric_minimum((4.5, 0.5)), "p must be integers"),
        (
            lambda: ReLUTeacherStudent(draw(3, 3), 3).symmetric_minimum((2, 1)),
            "orthonormal teacher",
        ),
        (
            lambda: continue_blocks(solve_blocks(draw(5), (4, 1)), (3,)),
            "must have the blocks",
        ),
    ],
)
def test_bad_blocks(call, message):
    with pytest.raises(InputError, match=message):
        call()
