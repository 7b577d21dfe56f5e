"""Persistence by gudhi and the merge tree by union-find: two routes, one answer."""

from inspect import unwrap

import networkx
import numpy as np
import pytest
import torch
import xarray

from thalweg import instruments as ti
from thalweg.errors import InputError
from thalweg.instruments.sample_graphs import grid_edges
from thalweg.landscapes import Landscape

LINE = ti.persistence(np.zeros(3))
SHAPES = [(60,), (1,), (9, 11), (1, 6), (5, 4, 6)]


def grid(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def same(a, b):
    np.testing.assert_array_equal(a.birth_index, b.birth_index)
    np.testing.assert_array_equal(a.saddle_index, b.saddle_index)
    np.testing.assert_array_equal(a.birth, b.birth)
    np.testing.assert_array_equal(a.death, b.death)


def flood(values, level, start):
    """The component of {values <= level} around a sample, by brute force."""
    seen, stack = {start}, [start]
    while stack:
        here = stack.pop()
        for axis in range(values.ndim):
            for step in (-1, 1):
                there = list(here)
                there[axis] += step
                there = tuple(there)
                inside = all(
                    0 <= i < n for i, n in zip(there, values.shape, strict=True)
                )
                if inside and there not in seen and values[there] <= level:
                    seen.add(there)
                    stack.append(there)
    return seen


@pytest.mark.parametrize("connectivity", ["axis", "full"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_both_routes_agree_on_random_grids(shape, connectivity, seed):
    values = grid(shape, seed)
    a = ti.persistence(values, connectivity=connectivity)
    b = ti.merge_tree(values, connectivity=connectivity).pairs
    same(a, b)
    assert a.essential.sum() == 1 and a.birth[0] == values.min()


def test_deaths_are_the_lowest_passes():
    values = grid((8, 9), 4)
    pairs = ti.persistence(values)
    for row in pairs.rows():
        if row["essential"]:
            continue
        before = flood(values, np.nextafter(row["death"], -np.inf), row["minimum"])
        after = flood(values, row["death"], row["minimum"])
        assert min(values[p] for p in before) == row["birth"]
        assert min(values[p] for p in after) < row["birth"]
        assert values[row["saddle"]] == row["death"]


@pytest.mark.parametrize("shape", [(50,), (7, 8), (4, 5, 4)])
def test_plateaus_count_once_and_both_routes_agree_on_values(shape):
    values = np.random.default_rng(1).integers(0, 4, size=shape).astype(float)
    a, b = ti.persistence(values), ti.merge_tree(values).pairs
    for first, second in ((a.birth, b.birth), (a.death, b.death)):
        np.testing.assert_array_equal(np.sort(first), np.sort(second))
    assert (a.persistence > 0).all()
    flat = ti.merge_tree(np.zeros(shape))
    assert len(flat.pairs) == 1 and set(flat.basins().ravel()) == {0}


def test_a_plateau_entered_from_two_ends_is_one_basin():
    tree = ti.merge_tree(np.array([3.0, 1.0, 1.0]), edges=np.array([[0, 1], [0, 2]]))
    assert len(tree.pairs) == 2
    bridge = np.array([1.0, 1.0, 1.0])
    tree = ti.merge_tree(bridge, edges=np.array([[0, 2], [1, 2]]))
    assert len(tree.pairs) == 1 and tree.basins().tolist() == [0, 0, 0]
    assert tree.newick() == "m0;"


def test_nan_is_a_wall_and_counted():
    values = grid((6, 7), 2)
    values[3] = np.nan
    a, b = ti.persistence(values), ti.merge_tree(values).pairs
    assert a.nonfinite == b.nonfinite == 7
    np.testing.assert_array_equal(np.sort(a.birth), np.sort(b.birth))
    np.testing.assert_array_equal(np.sort(a.death), np.sort(b.death))
    assert np.isinf(a.death).sum() == 2 and a.essential.sum() == 1
    tree = ti.merge_tree(values)
    assert sum(tree.volumes().values()) == pytest.approx(1)
    assert np.isfinite(values.ravel()[list(tree.volumes())]).all()
    everything = ti.persistence(np.full((3, 3), np.nan))
    assert everything.nonfinite == 9


def test_a_double_well_has_two_basins_and_one_saddle():
    x = np.linspace(-1.5, 1.5, 31)
    values = (x**2 - 1) ** 2 + 0.1 * x
    tree = ti.merge_tree(values)
    assert len(tree.pairs) == 2
    left, right = int(values.argmin()), 15 + int(values[15:].argmin())
    top = int(values[left:right].argmax()) + left
    assert tree.pairs.birth_index.tolist() == [left, right]
    assert tree.pairs.saddle_index.tolist() == [-1, top]
    labels = tree.basins()
    assert (labels[:top] == left).all() and (labels[top + 1 :] == right).all()
    gap = values[top] - values[right]
    assert (
        set(tree.basins(gap * 1.01)) == {left}
        and len(set(tree.basins(gap * 0.99))) == 2
    )
    assert sum(tree.volumes().values()) == pytest.approx(1)
    assert tree.newick() == (
        f"(m{left}:{values[top] - values[left]:.17g},"
        f"m{right}:{values[top] - values[right]:.17g})s{top};"
    )


def test_the_tree_is_a_tree_of_its_pairs():
    values = grid((9, 9), 6)
    tree = ti.merge_tree(values)
    graph = tree.to_networkx()
    assert networkx.is_arborescence(graph)
    leaves = [n for n in graph if graph.out_degree(n) == 0]
    assert sorted(tree.vertex[leaves]) == sorted(tree.pairs.birth_index)
    inner = [n for n in graph if graph.out_degree(n) > 0]
    saddles = set(tree.pairs.saddle_index.tolist()) - {-1}
    assert set(tree.vertex[inner].tolist()) == saddles
    below = tree.parent >= 0
    assert (tree.value[tree.parent[below]] > tree.value[below]).all()
    assert (tree.parent[below] > np.flatnonzero(below)).all()
    counts = [graph.out_degree(n) - 1 for n in inner]
    assert sum(counts) == len(tree.pairs) - 1


def test_every_pair_is_taken_in_by_a_deeper_one_that_lives_longer():
    tree = ti.merge_tree(grid((9, 9), 6))
    pairs, parents = tree.pairs, tree.parents
    assert (parents < 0).tolist() == pairs.essential.tolist()
    for i in np.flatnonzero(parents >= 0):
        assert pairs.birth[parents[i]] < pairs.birth[i]
        assert pairs.death[parents[i]] >= pairs.death[i]
    table = pairs.to_dataset()
    np.testing.assert_array_equal(table.persistence, pairs.persistence)


def test_basins_merge_as_the_threshold_rises():
    values = grid((12, 12), 8)
    tree = ti.merge_tree(values)
    for threshold in np.linspace(0, 4, 9):
        labels = tree.basins(threshold)
        expected = set(tree.pairs.above(threshold).birth_index.tolist())
        assert set(labels.ravel().tolist()) == expected
    # Without a threshold a sample's basin is where steepest descent ends.
    for start in np.ndindex(values.shape):
        here = start
        while True:
            around = [
                (here[0] + i, here[1] + j)
                for i, j in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
                if 0 <= here[0] + i < 12 and 0 <= here[1] + j < 12
            ]
            lowest = min(around, key=values.__getitem__)
            if lowest == here:
                break
            here = lowest
        assert tree.basins()[start] == np.ravel_multi_index(here, (12, 12))


def test_scattered_points_by_graph():
    points = np.random.default_rng(0).uniform(-1.5, 1.5, size=(400, 2))
    values = (points[:, 0] ** 2 - 1) ** 2 + points[:, 1] ** 2 + 0.1 * points[:, 0]
    for edges in (ti.neighbor_edges(points), ti.neighbor_edges(points, 12)):
        tree = ti.merge_tree(values, edges)
        deep = tree.pairs.above(0.4)
        assert len(deep) == 2
        assert np.sign(points[deep.birth_index, 0]).tolist() == [-1, 1]
    apart = ti.merge_tree(np.array([0.0, 1.0, 2.0]), edges=np.array([[0, 1]]))
    assert apart.pairs.essential.sum() == 2 and apart.newick() == "m0;\nm2;"
    line = np.array([[0.3], [0.1], [0.2]])
    assert ti.neighbor_edges(line).tolist() == [[0, 2], [1, 2]]
    shuffled = np.random.default_rng(1).permutation(60)
    values = grid((60,), 3)
    on_grid = ti.merge_tree(values).pairs
    scattered = ti.merge_tree(values[shuffled], ti.neighbor_edges(shuffled[:, None]))
    np.testing.assert_array_equal(scattered.pairs.death, on_grid.death)


def test_surfaces_tensors_and_shares():
    values = grid((5, 6), 3)
    dataset = xarray.Dataset({"loss": (("x0", "x1"), values)})
    same(ti.persistence(dataset), ti.persistence(torch.from_numpy(values)))
    same(ti.merge_tree(dataset).pairs, ti.persistence(dataset["loss"]))
    pairs = ti.persistence(dataset)
    shares = pairs.shares(values.max())
    assert shares.sum() == pytest.approx(1)
    assert shares[0] == pytest.approx(
        (values.max() - values.min()) * shares[1] / pairs.persistence[1]
    )
    with pytest.raises(InputError, match="no variable 'accuracy'"):
        ti.persistence(dataset, variable="accuracy")


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("neighbors", [None, 5])
def test_both_routes_agree_on_scattered_points(dim, neighbors):
    random = np.random.default_rng(dim)
    points, values = random.uniform(size=(150, dim)), random.normal(size=150)
    edges = ti.neighbor_edges(points, neighbors)
    a, b = ti.persistence(values, edges), ti.merge_tree(values, edges).pairs
    same(a, b)
    values[random.permutation(150)[:20]] = np.nan
    values = np.round(values, 1)  # ties, too
    a, b = ti.persistence(values, edges), ti.merge_tree(values, edges).pairs
    assert a.nonfinite == b.nonfinite == 20
    for first, second in ((a.birth, b.birth), (a.death, b.death)):
        np.testing.assert_array_equal(np.sort(first), np.sort(second))


def test_a_grid_is_the_graph_of_its_neighbors():
    values = grid((7, 9), 5)
    for connectivity in ("axis", "full"):
        edges = grid_edges(values.shape, connectivity)
        on_graph = ti.persistence(values.ravel(), edges)
        on_grid = ti.persistence(values, connectivity=connectivity)
        same(on_graph, on_grid)


def test_datasets_of_scattered_points_bring_their_neighbors():
    well = DoubleWell(2, origin=torch.zeros(2, dtype=torch.float64))
    plane = torch.eye(2, dtype=torch.float64)
    axis = np.linspace(-1.6, 1.6, 9)
    fine = ti.surface(well, plane, [axis, axis], refine=ti.Refine(400))
    tree, pairs = ti.merge_tree(fine), ti.persistence(fine)
    same(tree.pairs, pairs)
    assert pairs.shape == (fine.sizes["point"],)
    deep = pairs.above(0.2)
    at = np.stack([fine["point_x0"], fine["point_x1"]], 1)[deep.birth_index]
    np.testing.assert_allclose(np.abs(at), [[1, 0], [1, 0]], atol=0.06)
    top = deep.saddle_index[1]
    assert abs(fine["point_x0"].values[top]) < 0.06 and deep.death[1] == pytest.approx(
        1, abs=0.01
    )
    labels = tree.basins(0.2)
    assert (np.sign(fine["point_x0"].values) == np.sign(at[:, 0])[0])[
        labels == deep.birth_index[0]
    ].mean() > 0.9
    points = np.random.default_rng(0).uniform(-1.6, 1.6, size=(500, 2))
    scattered = ti.surface_at_points(well, plane, points)
    deep = ti.merge_tree(scattered).pairs.above(0.4)
    assert len(deep) == 2 and deep.shape == (500,)
    same(ti.persistence(scattered).above(0.4), deep)


class DoubleWell(Landscape):
    def loss(self, points):
        x, y = points[..., 0], points[..., 1]
        return (x**2 - 1) ** 2 + y**2 + 0.05 * x


def test_bottleneck_distance():
    a = ti.persistence(np.array([0.0, 2.0, 1.0, 3.0]))
    b = ti.persistence(np.array([0.0, 2.0, 1.5, 3.0]))
    assert ti.bottleneck_distance(a, a) == 0
    # Matching the two saddle pairs costs 0.5, sending both to the diagonal too.
    assert ti.bottleneck_distance(a, b) == pytest.approx(0.5)


def test_distances_against_their_closed_forms():
    a = ti.persistence(np.array([0.0, 2.0, 1.0, 3.0]))
    b = ti.persistence(np.array([0.0, 2.0, 1.5, 3.0]))
    for order in (1, 2, 5):
        assert ti.wasserstein_distance(a, a, order) == 0
        assert ti.wasserstein_distance(a, b, order) == pytest.approx(0.5)
    # One pair less: (1, 2) and (4, 4.5) go to the diagonal, half their length each.
    both = ti.persistence(np.array([0.0, 2.0, 1.0, 4.5, 4.0, 5.0]))
    one = ti.persistence(np.array([0.0, 5.0]))
    assert ti.wasserstein_distance(both, one) == pytest.approx(0.5 + 0.25)
    assert ti.wasserstein_distance(both, one, 2) == pytest.approx(
        (0.25 + 0.0625) ** 0.5
    )
    assert ti.bottleneck_distance(both, one) == pytest.approx(0.5)
    nothing = ti.persistence(np.full(3, np.nan))
    assert ti.wasserstein_distance(nothing, nothing) == 0
    assert ti.bottleneck_distance(nothing, nothing) == 0


@pytest.mark.parametrize("order", [1.0, 2.0])
def test_the_wasserstein_distance_agrees_with_an_independent_one(order):
    from gudhi.hera import wasserstein_distance

    a, b = ti.persistence(grid((9, 9), 1)), ti.persistence(grid((9, 9), 2))
    cap = max(p[np.isfinite(p)].max() for p in (a.birth, a.death, b.birth, b.death))
    peer = wasserstein_distance(
        a.capped(cap), b.capped(cap), order=order, internal_p=np.inf, delta=1e-4
    )
    assert ti.wasserstein_distance(a, b, order) == pytest.approx(peer, rel=2e-4)
    large = ti.wasserstein_distance(a, b, 200)
    assert large == pytest.approx(ti.bottleneck_distance(a, b), rel=0.03)


def test_diagrams_move_no_more_than_the_surface():
    first = grid((12, 12), 3)
    second = first + np.random.default_rng(4).uniform(-0.1, 0.1, size=first.shape)
    a, b = ti.persistence(first), ti.persistence(second)
    gap = np.abs(first - second).max()
    assert 0 < ti.bottleneck_distance(a, b) <= gap + 1e-12


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="got shape"):
        ti.persistence(np.zeros((0, 3)))
    with pytest.raises(InputError, match="connectivity must be"):
        unwrap(ti.persistence)(np.zeros(3), connectivity="diagonal")
    with pytest.raises(InputError, match=r"edges must have shape \(E, 2\)"):
        ti.merge_tree(np.zeros(3), edges=np.array([[0, 1, 2]]))
    with pytest.raises(InputError, match=r"shape \(M,\)"):
        ti.persistence(np.zeros((3, 3)), edges=np.array([[0, 1]]))
    with pytest.raises(InputError, match="order must be finite and at least 1"):
        ti.wasserstein_distance(LINE, LINE, 0.5)
    with pytest.raises(InputError, match="for infinity use ti.bottleneck_distance"):
        ti.wasserstein_distance(LINE, LINE, float("inf"))
    many = ti.persistence(np.arange(8000) % 2.0)
    with pytest.raises(InputError, match="leave the short ones out"):
        ti.wasserstein_distance(many, many)
    with pytest.raises(InputError, match="samples 0 to 2, got 0 to 3"):
        ti.merge_tree(np.zeros(3), edges=np.array([[0, 3]]))
    with pytest.raises(InputError, match=r"shape \(M,\)"):
        ti.merge_tree(np.zeros((3, 3)), edges=np.array([[0, 1]]))
    with pytest.raises(InputError, match="neighbors must lie"):
        ti.neighbor_edges(np.zeros((4, 2)), 4)
    with pytest.raises(InputError, match="needs 4 points"):
        ti.neighbor_edges(np.zeros((3, 2)))
