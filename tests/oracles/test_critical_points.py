"""Critical points of solvable landscapes against the lists that theory gives."""

import itertools

import numpy as np
import pytest
import torch

from thalweg import instruments as ti
from thalweg.seeding import normal
from thalweg.solvable import DeepLinear, ReLUTeacherStudent
from thalweg.solvable.deep_linear import (
    critical_point,
    negative_eigenvalues,
    saddle_index,
)

S = [2.0, 1.3, 0.6]
M = torch.diag(torch.tensor(S, dtype=torch.float64))
WIDTHS = (3, 3, 3)


def table():
    """Return loss and index of every subset of learned modes."""
    rows = {}
    for k in range(4):
        for learned in itertools.combinations(range(3), k):
            loss = sum(S[b] ** 2 for b in range(3) if b not in learned) / 2
            rows[learned] = loss, saddle_index(S, learned, WIDTHS)
    return rows


def subsets(found):
    """Return the subset of modes that each end has learned, checking loss and index."""
    names = []
    for one in found:
        assert one.status == "critical"
        losses = {name: abs(loss - one.value) for name, (loss, _) in table().items()}
        name = min(losses, key=losses.get)
        assert losses[name] < 1e-9
        assert one.index == table()[name][1]
        names.append(name)
    return names


def starts(dim, n, scale):
    like = torch.empty(0, dtype=torch.float64)
    return scale * normal((n, dim), 0, "starts", like=like)


def test_newton_finds_every_saddle_of_a_deep_linear_network():
    land = DeepLinear(M, WIDTHS)
    found = ti.find_critical_points(land, starts(land.dim, 80, 0.7), 1e-10)
    assert set(subsets(found)) == set(table())


def test_gradient_norm_minimization_ends_at_the_same_saddles():
    land = DeepLinear(M, WIDTHS)
    found = ti.find_critical_points(
        land, starts(land.dim, 8, 0.7), 1e-8, method="gradient_norm", max_steps=1000
    )
    ends = [one for one in found if one.status == "critical"]
    assert len(ends) >= 6
    assert len(set(subsets(ends))) >= 3


def test_following_index_zero_learns_every_mode():
    """All local minima of a deep linear network are global."""
    land = DeepLinear(M, WIDTHS)
    found = ti.find_critical_points(
        land, starts(land.dim, 20, 0.7), 1e-10, method="follow", index=0
    )
    assert set(subsets(found)) == {(0, 1, 2)}
    assert all(one.kind == "minimum" and one.nullity == 9 for one in found)  # GL(3)


@pytest.mark.parametrize(
    ("widths", "learned"), [((3, 2, 3), (0,)), ((3, 4, 3), (1,)), ((3, 3, 3, 3), (2,))]
)
def test_saddle_index_and_negative_eigenvalues(widths, learned):
    land = DeepLinear(M, widths)
    exact = land.flatten(critical_point(S, learned, widths))
    (here,) = ti.find_critical_points(land, exact)
    assert (here.status, here.kind) == ("critical", "saddle")
    assert here.index == saddle_index(S, learned, widths)
    np.testing.assert_allclose(
        here.eigenvalues[: here.index].numpy(),
        negative_eigenvalues(S, learned, widths),
        atol=1e-10,
    )


def student(k):
    return ReLUTeacherStudent(torch.eye(k, dtype=torch.float64), k)


@pytest.mark.parametrize(
    ("k", "settings"),
    [(5, {}), (6, {}), (6, {"method": "follow", "index": 0})],
)
def test_the_spurious_family_turns_from_saddle_to_minimum_at_width_six(k, settings):
    land = student(k)
    exact = land.symmetric_minimum((k - 1, 1)).W
    start = land.point(exact) + starts(land.dim, 1, 0.02)[0]
    (one,) = ti.find_critical_points(land, start, 1e-10, **settings)
    torch.testing.assert_close(one.point, land.point(exact), rtol=0, atol=1e-8)
    spectrum = torch.sort(land.spectrum(exact).values).values
    torch.testing.assert_close(one.eigenvalues, spectrum, rtol=1e-7, atol=1e-8)
    assert one.kind == ("saddle" if k == 5 else "minimum")
    assert one.index == int((spectrum < 0).sum())


def test_random_students_end_at_the_minima_that_certified_descents_find():
    land = student(8)
    known = sorted(family.loss for family in land.families(land.find_minima(100)))
    found = ti.find_critical_points(
        land, starts(land.dim, 20, 1 / 8), 1e-9, method="follow", index=0
    )
    assert {one.kind for one in found} == {"minimum"}
    losses = np.array([one.value for one in found])
    gaps = abs(losses[:, None] - np.array(known))
    assert gaps.min(axis=1).max() < 1e-10
    assert set(gaps.argmin(axis=1)) == {0, 1} and len(known) == 2
