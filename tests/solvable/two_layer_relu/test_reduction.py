"""Dimension reduction of student and Hessian against brute force in R^d."""

import math

import pytest
import torch

from draws import draw
from thalweg.errors import InputError
from thalweg.solvable import ReLUTeacherStudent


def test_spectrum_by_blocks_equals_brute_force_seven_dimensions_up():
    V, W = draw(2, 3, seed=1), draw(3, 3, seed=2)
    small = ReLUTeacherStudent(V, 3)
    big = ReLUTeacherStudent(V, 3, d=10)
    lifted = torch.nn.functional.pad(W, (0, 7))
    brute = torch.linalg.eigvalsh(big.hessian(big.point(lifted)).dense())
    result = small.spectrum(W, d=10)
    assert result.multiplicity == 7
    torch.testing.assert_close(result.values, brute, rtol=0, atol=1e-12)
    torch.testing.assert_close(big.spectrum(lifted).values, brute, rtol=0, atol=1e-12)
    assert result.smallest == pytest.approx(float(brute[0]), abs=1e-12)
    assert result.largest == pytest.approx(float(brute[-1]), abs=1e-12)
    with pytest.raises(InputError, match=r"dim span\(V, W\) = 3, got 2"):
        small.spectrum(W, d=2)


@pytest.mark.parametrize("k", [3, 5, 8])
def test_spectrum_at_the_global_minimum_is_known(k):
    eye = torch.eye(k, dtype=torch.float64)
    p = 1 / (2 * math.pi)
    one = torch.tensor(
        [[0.5 + (k - 1) * p, (k - 1) / 4], [0.25, k / 4 + p]], dtype=torch.float64
    )
    three = torch.tensor(
        [[0.5 - p, -0.25, (k - 1) / 4], [0, 0.25, p], [0.25, p - 0.25, k / 4]],
        dtype=torch.float64,
    )
    expected = (
        [0.25 - p] * (k * (k - 1) // 2)
        + [0.25 + p] * (k * (k - 3) // 2)
        + torch.linalg.eigvals(one).real.tolist()
        + torch.linalg.eigvals(three).real.sort().values[1:].tolist() * (k - 1)
    )
    result = ReLUTeacherStudent(eye, k).spectrum(eye, d=k + 2)
    inside = torch.tensor(sorted(expected), dtype=torch.float64)
    torch.testing.assert_close(result.inside, inside, rtol=0, atol=1e-12)
    outside = torch.full((k,), 0.25, dtype=torch.float64)
    outside[-1] = (k + 1) / 4
    torch.testing.assert_close(result.outside, outside, rtol=0, atol=1e-12)
    assert result.multiplicity == 2


def test_reduce_and_lift_keep_all_overlaps():
    V = draw(3, 6, seed=3)
    V[2] = V[0] - 2 * V[1]  # rank 2
    W = draw(4, 6, seed=4)
    land = ReLUTeacherStudent(V, 4)
    reduction = land.reduce(W)
    assert reduction.rank == 2
    assert reduction.coefficients.shape == (4, 2)
    lifted = land.lift(reduction.coefficients, reduction.gram)
    for ours, theirs in zip(land.overlaps(lifted), land.overlaps(W), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(land.loss(land.point(lifted)), land.loss(land.point(W)))


def test_lift_needs_room():
    land = ReLUTeacherStudent(draw(2, 3), 2)
    C, G = draw(2, 2), torch.eye(2, dtype=torch.float64)
    with pytest.raises(InputError, match=r"rank V \+ rank G = 2 \+ 2.*got 3"):
        land.lift(C, G)
    with pytest.raises(InputError, match="positive semi-definite"):
        land.lift(C, -G)
    with pytest.raises(
        InputError, match=r"must be \(2, 2\) and \(2, 2\), got \(2, 1\)"
    ):
        land.lift(C[:, :1], G)
    with pytest.raises(InputError, match="coefficients must be finite"):
        land.lift(C * torch.nan, G)
    wide = ReLUTeacherStudent(draw(2, 3), 2, d=4)
    Q, R, _ = wide.overlaps(wide.lift(C, G))
    torch.testing.assert_close(Q, C @ C.T + G)
