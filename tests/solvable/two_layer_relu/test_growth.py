"""Minima one neuron wider, against descents from random starts at that width."""

import pytest
import torch

from thalweg.solvable import ReLUTeacherStudent
from thalweg.solvable.two_layer_relu import KIND


def orthonormal(M, K):
    return ReLUTeacherStudent(torch.eye(M, dtype=torch.float64), K)


def test_narrow_minima_grow_into_those_of_random_starts():
    narrow, wide = orthonormal(5, 3), orthonormal(5, 4)
    (goal,) = wide.families(wide.find_minima(60))
    found = narrow.families(narrow.find_minima(60))
    assert len(found) == 2
    for family in found:
        growth = narrow.grow(family.W)
        assert not growth.survives
        assert len(growth.ends) == 4  # three splits and a new neuron
        assert bool((growth.ends.kind == KIND.index("minimum")).all())
        torch.testing.assert_close(
            growth.ends.loss, torch.full_like(growth.ends.loss, goal.loss)
        )
        assert "4 ways down, to losses from 0.0647" in repr(growth)


def test_a_spurious_minimum_does_not_survive_and_leads_down():
    land = orthonormal(8, 8)
    point = land.symmetric_minimum((7, 1))
    growth = land.grow(point.W)
    torch.testing.assert_close(growth.split, land.split_stability(point.W))
    assert growth.birth == pytest.approx(land.steepest_birth(point.W)[0])
    assert growth.ends.W.shape == (9, 9, 8)
    assert bool(growth.ends.converged.all())
    assert bool((growth.ends.loss < point.loss - 1e-4).all())
    assert float(growth.ends.loss.min()) < 1e-10


def test_the_global_minimum_survives():
    land = orthonormal(3, 3)
    growth = land.grow(land.V)
    assert growth.survives
    assert growth.ends is None
    assert "survives" in repr(growth)
