"""Orbits, families and classification against brute force."""

import itertools

import pytest
import torch

from draws import draw
from thalweg.errors import InputError
from thalweg.solvable import ReLUTeacherStudent
from thalweg.solvable.two_layer_relu import same_function, same_orbit, wilson
from thalweg.solvable.two_layer_relu.orbits import merged


def eye(k):
    return torch.eye(k, dtype=torch.float64)


def brute_force_orbit(A, B, V):
    """Try every permutation of teachers that keeps P, and of students."""
    P = V @ V.T
    for sigma in itertools.permutations(range(len(V))):
        s = list(sigma)
        if float((P[s][:, s] - P).abs().max()) > 1e-9:
            continue
        for pi in itertools.permutations(range(len(A))):
            if float((A @ V.T - (B @ V.T)[list(pi)][:, s]).abs().max()) < 1e-6:
                return True
    return False


@pytest.mark.parametrize("teacher", ["orthonormal", "one pair", "generic"])
def test_orbits_against_enumeration(teacher):
    V = eye(4)
    if teacher == "one pair":
        V = torch.diag(torch.tensor([1.0, 1.0, 2.0, 3.0], dtype=torch.float64))
    if teacher == "generic":
        V = draw(4, 4, seed=1)
    found = set()
    for seed in range(12):
        A = draw(4, 4, seed=seed).round()  # many equal entries: hard ties
        sigma = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
        pi = torch.randperm(4, generator=torch.Generator().manual_seed(seed + 50))
        B = A[pi] if seed % 3 == 0 else A[pi][:, sigma]
        if seed % 4 == 3:
            B = B.clone()
            B[0, 0] += 0.01
        expected = brute_force_orbit(A, B, V)
        assert same_orbit(A, B, V) == expected
        found.add(expected)
    assert found == {True, False}


def test_orbits_of_wide_orthonormal_teachers_need_no_enumeration():
    V = eye(16)
    pi, sigma = (torch.randperm(16, generator=torch.Generator().manual_seed(s))
                 for s in (1, 2))  # fmt: skip
    assert same_orbit(V, V[pi][:, sigma], V)
    W = V.clone()
    W[15, 15] = -0.8
    assert same_orbit(W, W[pi][:, sigma], V)
    assert not same_orbit(W, V[pi][:, sigma], V)


def test_same_function_merges_and_drops():
    A = draw(3, 4)
    B = torch.cat([0.25 * A[:1], A[1:], 0.75 * A[:1], 1e-10 * A[:1]])
    assert merged(B).shape == (3, 4)
    assert same_function(merged(A), merged(B))
    assert not same_function(A, A + 1e-3)
    assert merged(0 * A).shape == (0, 4)


def test_families_of_width_eight():
    land = ReLUTeacherStudent(eye(8), 8)
    ends = land.find_minima(150)
    found = land.families(ends)
    assert sum(f.count for f in found) == 150
    best, second = found[:2]
    assert best.isotropy == (8,) and best.what.level == "global"
    assert second.isotropy == (7, 1) and second.what.level == "spurious"
    assert second.what.kind == "minimum"
    assert second.functions == 8
    assert second.loss == pytest.approx(land.symmetric_minimum((7, 1)).loss, abs=1e-10)
    assert second.low < second.fraction < second.high
    assert "spurious minimum" in repr(second)
    functions = land.families(ends, level="function")
    assert len(found) < len(functions) <= 1 + 8 * (len(found) - 1)
    with pytest.raises(InputError, match='"orbit" or "function", got'):
        land.families(ends, level="network")


def test_coarse_ends_fall_into_the_same_families():
    """Ends that stop early lie |∇L| / λ_min apart, more than the tolerance."""
    land = ReLUTeacherStudent(eye(8), 8)
    fine = land.families(land.find_minima(100))
    coarse = land.families(land.find_minima(100, tol=1e-5), tol=1e-8)
    assert [f.count for f in coarse] == [f.count for f in fine]
    assert max(f.what.grad_norm for f in coarse) > 1e-9


def test_families_where_no_certificate_exists_are_ranked():
    land = ReLUTeacherStudent(eye(5), 3)
    found = land.families(land.find_minima(100))
    levels = [f.what.level for f in found]
    assert levels[0] == "lowest_found"
    assert set(levels[1:]) <= {"above_lowest"}


def test_all_zeros_of_a_wide_student_are_one_family():
    land = ReLUTeacherStudent(eye(4), 6)
    (only,) = land.families(land.find_minima(30, loss_tol=1e-12))
    assert only.count == 30
    assert only.what.level == "global"
    assert only.what.kind == "degenerate"


@pytest.mark.parametrize(("groups", "d"), [((2, 1, 1), 3), ((3, 2), 2), ((2, 2), 5)])
def test_nullity_of_zero_loss_points_and_its_split(groups, d):
    M, K = len(groups), sum(groups)
    V = draw(M, M, seed=2)
    masses = [torch.rand(m, dtype=torch.float64) + 0.2 for m in groups]
    W = torch.cat([(a / a.sum())[:, None] * v for a, v in zip(masses, V, strict=True)])
    land = ReLUTeacherStudent(V, K, d=d)
    what = land.classify(torch.nn.functional.pad(W, (0, d - M)))
    assert (what.kind, what.level) == ("degenerate", "global")
    assert what.nullity == sum(m - 1 for m in groups) * d
    assert what.flat == K - M
    assert what.cubic == what.nullity - what.flat


def test_loss_across_the_zero_set_is_cubic_with_the_known_coefficient():
    masses = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    phi = torch.tensor([[1.0, 0.0], [-2.0, 1.0], [0.8, -0.6]], dtype=torch.float64)
    v = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    V = v[None]
    W = masses[:, None] * v
    across = torch.cat([torch.zeros(3, 1), phi], 1) * masses[:, None]
    pairs = (phi[:, None] - phi).norm(dim=-1) ** 3 * torch.outer(masses, masses)
    expected = (pairs.sum() / 2 - (masses * phi.norm(dim=1) ** 3).sum()) / (
        6 * torch.pi
    )
    land = ReLUTeacherStudent(V, 3)
    for eps in (1e-2, 1e-3):
        ratio = land.loss(land.point(W + eps * across)) / eps**3
        # The next order is relative eps².
        torch.testing.assert_close(ratio, expected, rtol=20 * eps, atol=1e-6)


def test_classification_says_where_neurons_lie():
    land = ReLUTeacherStudent(eye(2), 2, d=4)
    what = land.classify(torch.eye(2, 4, dtype=torch.float64))
    assert what.case.startswith("S is regular")
    assert what.orthogonal_norm == 0
    assert what.S_min == pytest.approx(0.25)
    what = land.classify(draw(2, 4))
    assert what.kind == "not stationary"
    assert what.case.startswith("W leaves span(V)")
    split = ReLUTeacherStudent(eye(2), 3)
    what = split.classify(torch.cat([0.5 * eye(2)[:1], 0.5 * eye(2)[:1], eye(2)[1:]]))
    assert what.S_min == pytest.approx(0, abs=1e-15)  # two rows of A are equal
    assert what.case.startswith("S is singular")
    equal = torch.tensor([[0.5, 0.5]], dtype=torch.float64).expand(2, 2)
    narrow = ReLUTeacherStudent(eye(2), 2)
    (start,) = narrow.find_minima(1, init=equal[None], escape_saddles=False).W
    what = narrow.classify(start)
    assert (what.kind, what.level) == ("saddle", "spurious")
    assert "spurious saddle" in repr(what)


def test_wilson_interval():
    low, high = wilson(5, 50)
    # Roots of (p - 0.1)² = z² p (1 - p) / n.
    for p in (low, high):
        assert (p - 0.1) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / 50)
    assert wilson(0, 10)[0] == 0
    with pytest.raises(InputError, match="got 3 of 2"):
        wilson(3, 2)


def test_basin_fractions_by_gradient_descent():
    (only,) = ReLUTeacherStudent(eye(4), 4).basin_fractions(40)
    assert only.fraction == 1
    assert only.what.level == "global"
