"""The set of zero loss, splitting and new neurons, against brute force."""

import itertools

import pytest
import torch

from draws import draw
from thalweg.errors import DataWarning, InputError
from thalweg.solvable import ReLUTeacherStudent
from thalweg.solvable.two_layer_relu import count_cells, split_neuron, student_loss


@pytest.mark.parametrize(("K", "M"), [(3, 3), (4, 2), (5, 3), (2, 3)])
def test_cells_are_the_onto_maps(K, M):
    maps = itertools.product(range(M), repeat=K)
    assert count_cells(K, M) == sum(len(set(m)) == M for m in maps)


def along(path, points=11):
    t = torch.linspace(0, 1, points, dtype=torch.float64)[:, None, None]
    return torch.cat(
        [(1 - t) * a + t * b for a, b in itertools.pairwise(path.unbind())]
    )


@pytest.mark.parametrize("seed", range(6))
def test_zeros_of_a_wide_student_are_connected(seed):
    V = draw(3, 4, seed=seed)
    land = ReLUTeacherStudent(V, 4)
    orders = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    W0 = torch.stack([0.3 * V[0], 0.7 * V[0], V[1], V[2]])
    W1 = torch.stack([V[2], 0.9 * V[1], V[0], 0.1 * V[1]])[orders]
    path = land.zero_path(W0, W1)
    torch.testing.assert_close(path[0], W0)
    torch.testing.assert_close(path[-1], W1)
    assert len(path) <= 2 * 3 + 4
    assert all(float((b - a).abs().max()) > 0 for a, b in itertools.pairwise(path))
    assert float(land.loss(along(path).flatten(-2)).abs().max()) <= 1e-12


def test_zeros_of_a_narrow_student_are_isolated():
    V = draw(3, 3)
    land = ReLUTeacherStudent(V, 3)
    with pytest.raises(InputError, match="K = 3 and M = 3.*isolated"):
        land.zero_path(V, V[[1, 0, 2]])
    with pytest.raises(InputError, match="W1 must have zero loss, got"):
        land.zero_path(V, V + 0.1)
    assert land.zero_path(V, V).shape == (2, 3, 3)


def test_anti_aligned_zeros_of_dependent_teachers_are_no_assignment():
    """ReLU(z) - ReLU(-z) = z: three teachers in balance, negated, are the same."""
    V = draw(2, 2)
    V = torch.cat([V, -V.sum(0, keepdim=True)])
    land = ReLUTeacherStudent(V, 3)
    assert abs(float(land.loss(land.point(-V)))) < 1e-14
    assert land.classify(-V).level == "global"
    with pytest.raises(InputError, match="W1 must assign each student"):
        land.zero_path(V, -V)


def test_parallel_teachers_are_merged_with_a_warning():
    V = draw(2, 3)
    doubled = torch.cat([V, 2 * V[:1]])
    land = ReLUTeacherStudent(doubled, 3)
    W0 = torch.stack([3 * V[0], 0.5 * V[1], 0.5 * V[1]])
    W1 = torch.stack([V[1], V[0], 2 * V[0]])
    with pytest.warns(DataWarning, match=r"rows \[2\] are parallel"):
        path = land.zero_path(W0, W1)
    assert float(land.loss(along(path).flatten(-2)).abs().max()) <= 1e-12


def test_split_stability_is_the_sign_of_the_split_hessian():
    k = 6
    V = torch.eye(k, dtype=torch.float64)
    W = ReLUTeacherStudent(V, k).symmetric_minimum((k - 1, 1)).W
    land, wide = ReLUTeacherStudent(V, k), ReLUTeacherStudent(V, k + 1)
    values = land.split_stability(W)
    assert values.shape == (k,)
    for index, share in ((0, 0.3), (k - 1, 0.5)):
        split = split_neuron(W, index, share)
        torch.testing.assert_close(student_loss(split, V), student_loss(W, V))
        flat = wide.point(split)
        assert float(wide.gradient(flat).norm()) < 1e-10
        H = wide.hessian(flat).dense().reshape(k + 1, k, k + 1, k)
        block = H[index, :, index] + H[k, :, k] - H[index, :, k] - H[k, :, index]
        factor = 1 / share + 1 / (1 - share)
        eigenvalues = torch.linalg.eigvalsh(block) / factor
        torch.testing.assert_close(eigenvalues[0], values[index], rtol=0, atol=1e-10)
        assert wide.classify(split).kind == "saddle"
    assert bool((values < 0).all())


def test_split_stability_in_more_dimensions_and_in_one():
    V, W = draw(2, 2), draw(2, 2, seed=1)
    S, _ = ReLUTeacherStudent(V, 2).S_B(W)
    c = S.diagonal() - 0.5
    pad = torch.nn.functional.pad
    wide = ReLUTeacherStudent(V, 2, d=4).split_stability(pad(W, (0, 2)))
    narrow = ReLUTeacherStudent(V, 2).split_stability(W)
    torch.testing.assert_close(wide, torch.minimum(narrow, c))
    one = ReLUTeacherStudent(torch.ones(1, 1).double(), 1)
    assert float(one.split_stability(torch.ones(1, 1).double())) == torch.inf


def test_a_stable_minimum_is_found_too():
    """At a unique student of one teacher, its own copy splits without descent."""
    V = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    land = ReLUTeacherStudent(V, 1)
    values = land.split_stability(V)
    torch.testing.assert_close(values, torch.zeros(1, dtype=torch.float64))


def test_dead_directions_are_the_slope_of_a_new_neuron():
    V, W, u = draw(3, 4), draw(2, 4, seed=1), draw(5, 4, seed=2)
    land, wide = ReLUTeacherStudent(V, 2), ReLUTeacherStudent(V, 3)
    slopes = land.dead_direction(W, u)
    size = 1e-6
    base = land.loss(land.point(W))
    for slope, direction in zip(slopes, u, strict=True):
        grown = wide.loss(wide.point(torch.cat([W, size * direction[None]])))
        assert float((grown - base) / size) == pytest.approx(float(slope), abs=1e-5)


def test_steepest_birth_beats_a_fine_sampling_of_the_sphere():
    V, W = draw(3, 3, seed=4), draw(2, 3, seed=5)
    land = ReLUTeacherStudent(V, 2)
    value, u = land.steepest_birth(W)
    assert float(u.norm()) == pytest.approx(1)
    samples = draw(20_000, 3, seed=6)
    samples = samples / samples.norm(dim=1, keepdim=True)
    assert value <= float(land.dead_direction(W, samples).min()) + 1e-12
    assert value == pytest.approx(float(land.dead_direction(W, u)))
    value, _ = ReLUTeacherStudent(V, 3).steepest_birth(V)
    assert abs(value) < 1e-12  # at zero loss nothing helps


def test_bad_directions():
    land = ReLUTeacherStudent(draw(2, 3), 2)
    W, u = draw(2, 3), draw(3, seed=1)
    expected = land.dead_direction(W, u)
    torch.testing.assert_close(land.dead_direction(W.numpy(), u.numpy()), expected)
    with pytest.raises(
        InputError, match=r"u must have shape \(\.\.\., 3\), got \(2,\)"
    ):
        land.dead_direction(W, u[:2])
    with pytest.raises(InputError, match="u must be finite, got an entry nan"):
        land.dead_direction(W, u * torch.nan)


def test_bad_splits():
    with pytest.raises(InputError, match="share must be between 0 and 1, got 1"):
        split_neuron(draw(2, 2), 0, 1.0)
    with pytest.raises(InputError, match=r"index must be in 0\.\.1, got 2"):
        split_neuron(draw(2, 2), 2, 0.5)
