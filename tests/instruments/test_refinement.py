"""The mesh of an adaptive surface: indicators, halving, and what lies between."""

import itertools
from inspect import unwrap

import numpy as np
import pytest

from thalweg import instruments as ti
from thalweg.errors import InputError
from thalweg.instruments.refinement import Mesh, from_heights, to_heights
from thalweg.instruments.regridding import Regridding, mesh_edges
from thalweg.instruments.sample_graphs import grid_edges


def grown(function, shape, refine):
    """Refine a function of positions in [0, 1]^k; return mesh, values, cuts."""
    mesh, cuts = Mesh(shape, refine), []
    scale = np.array(mesh.shape) - 1.0
    values = function(*(mesh.points / scale).T)
    while (cut := mesh.cut(values[:, None])) is not None:
        mesh.apply(cut)
        cuts.append(cut)
        values = np.concatenate([values, function(*(cut.points / scale).T)])
    return mesh, values, cuts


def leaves_tile_the_grid(mesh):
    """Every smallest cell of the finest grid lies in one cell of the mesh."""
    seen = np.zeros([n - 1 for n in mesh.shape], dtype=int)
    for low, level in zip(mesh.low, mesh.level, strict=True):
        side = mesh.unit >> level
        seen[tuple(slice(a, a + s) for a, s in zip(low, side, strict=True))] += 1
    return (seen == 1).all()


def corners_are_known(mesh):
    for bits in itertools.product((0, 1), repeat=mesh.k):
        if (mesh.find(mesh.low + np.array(bits) * (mesh.unit >> mesh.level)) < 0).any():
            return False
    return True


def test_heights_go_there_and_back():
    values = np.array([-np.inf, -3.0, -0.0, 0.0, 1e-300, 2.5, 1e300, np.inf, np.nan])
    np.testing.assert_allclose(from_heights(to_heights(values)), values, rtol=1e-12)
    assert to_heights(np.array([np.e - 1]))[0] == pytest.approx(1, rel=1e-15)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_what_is_linear_along_the_edges_is_left_alone_and_interpolated_exactly(k):
    def bilinear(*x):
        return from_heights(0.3 + np.prod([a - 0.4 for a in x], axis=0))

    mesh, values, cuts = grown(bilinear, (5,) * k, ti.Refine(5**k + 50, tol=1e-12))
    assert not cuts and mesh.remaining == 0
    # Whatever is refined, the inside is that of the function.
    mesh, values, cuts = grown(
        lambda *x: bilinear(*x) + 0 * x[0], (3,) * k, ti.Refine(200, levels=(0.3,))
    )
    assert cuts
    grid, between = Regridding(mesh).interpolate(to_heights(values))
    axes = [np.linspace(0, 1, n) for n in grid.shape]
    exact = to_heights(bilinear(*np.meshgrid(*axes, indexing="ij")))
    np.testing.assert_allclose(grid, exact, atol=1e-14)
    assert between.sum() == grid.size - len(mesh.points)


def test_indicators_are_second_differences():
    def parabola(x, y):
        return from_heights(0.5 * x**2 + 0.125 * y**2)

    mesh = Mesh((5, 9), ti.Refine(2000, depth=4))
    values = parabola(*(mesh.points / (np.array(mesh.shape) - 1.0)).T)
    bend, crossed = mesh.indicators(values[:, None])
    np.testing.assert_allclose(bend[:, 0], 1.0 * 0.25**2, rtol=1e-10)
    np.testing.assert_allclose(bend[:, 1], 0.25 * 0.125**2, rtol=1e-10)
    assert not crossed.any()


def test_a_parabola_is_halved_along_its_axis_down_to_the_tolerance():
    tol = 1.0001 * 0.25**2 / 16  # two halvings of four cells leave this bend
    mesh, values, _ = grown(
        lambda x, y: from_heights(0.5 * x**2), (5, 3), ti.Refine(1000, tol, depth=5)
    )
    assert (mesh.level == [2, 0]).all() and len(mesh.low) == 4 * 4 * 2
    assert len(mesh.points) == 17 * 3 and mesh.remaining == 0
    grid, _ = Regridding(mesh).interpolate(to_heights(values))
    assert grid.shape == (17, 3)


@pytest.mark.parametrize("shape", [(6,), (5, 4), (3, 4, 3)])
def test_cells_tile_the_grid_and_no_point_comes_twice(shape):
    def ridge(*x):
        return np.exp(-40 * (np.sum(x, axis=0) / len(x) - 0.45) ** 2)

    limit = 40 * len(shape) ** 2
    mesh, values, cuts = grown(ridge, shape, ti.Refine(limit))
    assert leaves_tile_the_grid(mesh) and corners_are_known(mesh)
    assert len(np.unique(mesh.points, axis=0)) == len(mesh.points) <= limit
    assert len(mesh.points) > limit - 2 ** len(shape)
    assert all(len(cut.points) <= mesh.refine.round_size for cut in cuts)
    assert mesh.remaining > 0
    np.testing.assert_array_equal(mesh.find(mesh.points), np.arange(len(values)))
    assert mesh.find(np.array([[-1] * mesh.k, list(mesh.shape)])).tolist() == [-1, -1]


def test_a_round_holds_a_cell_of_any_dimension():
    mesh, _, cuts = grown(
        lambda *x: np.sum(np.square(x), axis=0), (3,) * 5, ti.Refine(280, depth=1)
    )
    assert mesh.refine.round_size < 16 and cuts and len(mesh.points) > 243
    assert corners_are_known(mesh)


def test_depth_bounds_the_halving():
    mesh, _, _ = grown(
        lambda x, y: np.where(x > 0.55, 5.0, 0.0), (9, 3), ti.Refine(5000, depth=2)
    )
    assert mesh.level.max() == 2 and mesh.remaining == 0
    assert (mesh.level[:, 1] == 0).all()  # it is halved across the jump only
    ends = (mesh.low[:, 0], mesh.low[:, 0] + (mesh.unit >> mesh.level[:, 0]))
    where = 0.55 * (mesh.shape[0] - 1)
    beside = (ends[0] - where) * (ends[1] - where) <= 0
    assert (mesh.level[beside, 0] == 2).all()


def test_a_front_of_missing_values_is_followed_and_nothing_drawn_across():
    def disc(x, y):
        return np.where(np.hypot(x - 0.55, y - 0.4) < 0.3, np.nan, 1 + x + y)

    mesh, values, _ = grown(disc, (9, 9), ti.Refine(700))
    regrid = Regridding(mesh)
    grid, between = regrid.interpolate(to_heights(values))
    assert regrid.shape == (65, 65)
    x, y = np.meshgrid(*[np.linspace(0, 1, 65)] * 2, indexing="ij")
    inside = np.hypot(x - 0.55, y - 0.4) < 0.3
    distance = np.abs(np.hypot(x - 0.55, y - 0.4) - 0.3)
    assert not (between & inside).any()
    unknown = ~between & ~regrid.evaluated & ~inside
    assert distance[unknown].max(initial=0) < 2**0.5 / 64  # a cell of the 65 x 65 grid
    assert np.isfinite(grid[between]).all()


def test_level_lines_are_followed():
    mesh, values, _ = grown(
        lambda x, y: x**2 + y**2, (5, 5), ti.Refine(400, tol=0.9, levels=(0.5,))
    )
    for j in range(2):
        edges = mesh.edges(j)
        ends = edges.copy()
        ends[..., j] += (mesh.unit >> mesh.level[:, j])[:, None]
        sides = values[mesh.find(edges)] > 0.5, values[mesh.find(ends)] > 0.5
        crossed = (sides[0] != sides[1]).any(1)
        assert crossed.any() and (mesh.level[crossed, j] == 3).all()
    assert mesh.level.min() == 0


def test_interpolation_is_continuous_where_cells_of_two_sizes_meet():
    mesh, values, _ = grown(
        lambda x, y: np.exp(-30 * (x - 0.2) ** 2 - 50 * (y - 0.7) ** 2),
        (4, 4),
        ti.Refine(120, depth=4),
    )
    assert len(np.unique(mesh.level, axis=0)) > 3
    regrid = Regridding(mesh)
    whole, _ = regrid.interpolate(values)
    # Each cell alone, from what is known on its border, gives the same values.
    known = regrid.place(values, np.nan)
    for low, level in zip(mesh.low, mesh.level, strict=True):
        start = low // regrid.stride
        stop = start + (mesh.unit >> level) // regrid.stride + 1
        box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        for border in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
            line, there = whole[box][border], known[box][border]
            at = np.flatnonzero(~np.isnan(there))
            expected = np.interp(np.arange(len(line)), at, there[at])
            np.testing.assert_allclose(line, expected, atol=1e-14)


def test_neighbors_of_a_plain_grid_are_those_along_the_axes():
    mesh = Mesh((4, 3, 5), ti.Refine(100))
    expected = np.sort(grid_edges((4, 3, 5)), axis=1)
    np.testing.assert_array_equal(mesh_edges(mesh), np.unique(expected, axis=0))


def test_neighbors_share_a_line_and_enclose_no_point():
    mesh, _, _ = grown(
        lambda x, y: np.exp(-30 * (x - y) ** 2), (4, 4), ti.Refine(150, depth=3)
    )
    edges = mesh_edges(mesh)
    steps = mesh.points[edges[:, 1]] - mesh.points[edges[:, 0]]
    assert ((steps != 0).sum(1) == 1).all()
    for (a, b), step in zip(edges, steps, strict=True):
        count = np.abs(step).sum()
        between = mesh.points[a] + np.outer(np.arange(1, count), step // count)
        assert (mesh.find(between) < 0).all() and b >= 0
    assert set(edges.ravel().tolist()) == set(range(len(mesh.points)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_points": 0}, "max_points must be at least 1, got 0"),
        ({"tol": -1.0}, "tol must be finite and at least 0, got -1.0"),
        ({"tol": float("nan")}, "tol must be finite and at least 0, got nan"),
        ({"levels": (1.0, float("inf"))}, r"levels must be finite, got \[1.0, inf\]"),
        ({"depth": 0}, "depth must lie between 1 and 12, got 0"),
        ({"depth": 13}, "depth must lie between 1 and 12, got 13"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        ti.Refine(**settings)


@pytest.mark.parametrize(
    ("shape", "refine", "message"),
    [
        ((3, 2), ti.Refine(), r"axes\[1\] has 2: a bend shows in no fewer"),
        ((30, 30), ti.Refine(800), "30 × 30 = 900 points is more than max_points=800"),
        ((9, 9, 9), ti.Refine(depth=9), "at most 33,554,432 can be held"),
    ],
)
def test_grids_that_cannot_be_refined(shape, refine, message):
    with pytest.raises(InputError, match=message):
        unwrap(Mesh)(shape, refine)
