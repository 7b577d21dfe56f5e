"""The merge tree of sublevel sets by union-find, on grids and on graphs."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from thalweg.errors import MissingExtraError
from thalweg.instruments.sample_graphs import (
    Connectivity,
    check_connectivity,
    grid_edges,
    read_graph,
)
from thalweg.instruments.topology import Pairs, make_pairs

if TYPE_CHECKING:
    import networkx
    import xarray


@dataclass(frozen=True)
class MergeTree:
    """How the components of the sublevel sets join as the level rises.

    Nodes are the minima and the saddles where components join; children come before
    their parents.

    Args:
        pairs: Births and deaths, as `ti.persistence` gives them.
        vertex: Flat index of the sample at each node.
        value: Value there.
        parent: Node of the saddle above, -1 at a root.
        descent: For every sample the flat index of the minimum that steepest descent
            over neighbors reaches.
        joins: For every minimum but the essential ones: its persistence and the
            minimum on the other side of its saddle.
        elders: For every minimum but the essential ones: the deeper minimum whose
            component takes it in.
        heights: The value of every sample, flat; NaN as +inf.
    """

    pairs: Pairs
    vertex: np.ndarray
    value: np.ndarray
    parent: np.ndarray
    descent: np.ndarray = field(repr=False)
    joins: dict[int, tuple[float, int]] = field(repr=False)
    elders: dict[int, int] = field(repr=False)
    heights: np.ndarray = field(repr=False)

    @property
    def parents(self) -> np.ndarray:
        """For each pair the number of the pair that takes it in, -1 for essential."""
        minima = self.pairs.birth_index.tolist()
        number = {minimum: i for i, minimum in enumerate(minima)}
        return np.array([number.get(self.elders.get(m, -1), -1) for m in minima])

    def basins(self, threshold: float = 0.0) -> np.ndarray:
        """Return for every sample the flat index of the minimum of its basin.

        Minima of at most `threshold` persistence give their basin to the one across
        their saddle. Shape: that of the grid.
        """
        survivor: dict[int, int] = {}
        for minimum in np.unique(self.descent).tolist():
            passed = []
            while minimum not in survivor:
                passed.append(minimum)
                depth, other = self.joins.get(minimum, (np.inf, minimum))
                if depth > threshold:
                    survivor[minimum] = minimum
                else:
                    minimum = other
            for each in passed:
                survivor[each] = survivor[minimum]
        minima, inverse = np.unique(self.descent, return_inverse=True)
        labels = np.array([survivor[m] for m in minima.tolist()])
        return labels[inverse].reshape(self.pairs.shape)

    def volumes(self, threshold: float = 0.0) -> dict[int, float]:
        """Return the share of the samples in each basin, by flat index, largest first.

        Samples of +inf (and NaN) belong to no basin and do not count.
        """
        labels = self.basins(threshold).reshape(-1)[self.heights < np.inf]
        minima, counts = np.unique(labels, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        total = max(1, len(labels))
        return {int(minima[i]): float(counts[i] / total) for i in order}

    def newick(self) -> str:
        """Return the tree in Newick form, branch lengths in units of the value.

        Leaves are named `m` and saddles `s`, each with its flat index; one line a
        component.
        """
        texts: list[str] = []
        children: list[list[str]] = [[] for _ in self.vertex]
        for node, above in enumerate(self.parent.tolist()):
            inner = children[node]
            name = f"{'s' if inner else 'm'}{self.vertex[node]}"
            text = f"({','.join(inner)}){name}" if inner else name
            if above < 0:
                texts.append(f"{text};")
            else:
                length = self.value[above] - self.value[node]
                children[above].append(f"{text}:{length:.17g}")
            children[node] = []
        return "\n".join(texts)

    def to_networkx(self) -> "networkx.DiGraph":
        """Return the tree as a directed graph from parents to children.

        Raises:
            MissingExtraError: networkx is not installed.
        """
        try:
            import networkx
        except ImportError:
            raise MissingExtraError(
                "a graph needs networkx: pip install networkx"
            ) from None
        graph = networkx.DiGraph()
        for node, (vertex, value) in enumerate(
            zip(self.vertex.tolist(), self.value.tolist(), strict=True)
        ):
            graph.add_node(node, vertex=vertex, value=value)
        edges = enumerate(self.parent.tolist())
        graph.add_edges_from((above, node) for node, above in edges if above >= 0)
        return graph


def merge_tree(
    surface: "xarray.Dataset | xarray.DataArray | np.ndarray | Tensor",
    edges: np.ndarray | Tensor | None = None,
    *,
    connectivity: Connectivity = "axis",
    variable: str = "loss",
) -> MergeTree:
    """Return the merge tree of the sublevel sets of a surface or of scattered samples.

    Samples are added in the order of (value, index). One that touches no component is
    a minimum; one that touches several is a saddle, where all but the deepest die (the
    elder rule, ties by index). O(M log M) for M samples.

    Args:
        surface: Dataset of `ti.surface`, also an adaptive one, or of
            `ti.surface_at_points`; values on a grid, or values (M,) with `edges`.
        edges: Pairs (E, 2) of neighboring samples, see `ti.neighbor_edges`; by default
            those of the grid, of the adaptive mesh, or of a triangulation.
        connectivity: Neighbors on a grid: "axis", or "full" with the diagonals.
        variable: Variable of the Dataset.

    Raises:
        InputError: There are no values, or edges name samples that do not exist.
    """
    check_connectivity(connectivity)
    graph = read_graph(surface, edges, variable)
    values, links = graph.values, graph.edges
    if links is None:
        links = grid_edges(values.shape, connectivity)
    sweep = _Sweep(values.reshape(-1), links)
    births = np.array(sweep.births, dtype=np.int64)
    saddles = np.array(sweep.saddles, dtype=np.int64)
    return MergeTree(
        pairs=make_pairs(values, births, saddles, graph.nonfinite),
        vertex=np.array(sweep.vertex, dtype=np.int64),
        value=values.reshape(-1)[sweep.vertex],
        parent=np.array(sweep.parent, dtype=np.int64),
        descent=np.array(sweep.descent, dtype=np.int64),
        joins=sweep.joins,
        elders=sweep.elders,
        heights=values.reshape(-1),
    )


class _Sweep:
    """One pass upwards over all samples."""

    def __init__(self, values: np.ndarray, edges: np.ndarray) -> None:
        size = len(values)
        order = np.argsort(values, kind="stable")
        rank = np.empty(size, dtype=np.int64)
        rank[order] = np.arange(size)
        self.values: list[float] = values.tolist()
        self.rank: list[int] = rank.tolist()
        self.root = list(range(size))  # union-find, roots are the deepest minima
        self.node: dict[int, int] = {}  # of a component's root, once it has a saddle
        self.descent = list(range(size))
        self.joins: dict[int, tuple[float, int]] = {}
        self.elders: dict[int, int] = {}
        self.births: list[int] = []
        self.saddles: list[int] = []
        self.vertex: list[int] = []
        self.parent: list[int] = []
        below = _lower_neighbors(edges, rank)
        for vertex in order.tolist():
            self._add(vertex, below[0][below[1][vertex] : below[1][vertex + 1]])
        for vertex in order.tolist():
            if self.root[vertex] == vertex:
                self._leaf(vertex)
                self._pair(vertex, -1)

    def _add(self, vertex: int, lower: list[int]) -> None:
        if not lower:
            return
        rank = self.rank
        # The lowest neighbor on each side; `lower` is sorted by rank.
        sides: dict[int, int] = {}
        for neighbor in lower:
            sides.setdefault(self._find(neighbor), neighbor)
        elder = min(sides, key=rank.__getitem__)
        self.descent[vertex] = self.descent[lower[0]]
        self.root[vertex] = elder
        if len(sides) == 1:
            return
        across = self.descent[sides[elder]]
        height = self.values[vertex]
        ending = []
        for minimum in sorted(sides, key=rank.__getitem__):
            if minimum == elder:
                continue
            self.root[minimum] = self.elders[minimum] = elder
            if height > self.values[minimum]:
                ending.append(minimum)
                self.joins[minimum] = height - self.values[minimum], across
                self._pair(minimum, vertex)
            else:
                self.joins[minimum] = 0.0, across
        if not ending:
            return
        children = [self._leaf(minimum) for minimum in (elder, *ending)]
        saddle = self._grow(vertex)
        for child in children:
            self.parent[child] = saddle
        self.node[elder] = saddle

    def _find(self, vertex: int) -> int:
        root = self.root
        while root[vertex] != vertex:
            root[vertex] = root[root[vertex]]
            vertex = root[vertex]
        return vertex

    def _leaf(self, minimum: int) -> int:
        """Return the node of a component, made where it has none yet."""
        if minimum not in self.node:
            self.node[minimum] = self._grow(minimum)
        return self.node[minimum]

    def _grow(self, vertex: int) -> int:
        self.vertex.append(vertex)
        self.parent.append(-1)
        return len(self.vertex) - 1

    def _pair(self, birth: int, saddle: int) -> None:
        self.births.append(birth)
        self.saddles.append(saddle)


def _lower_neighbors(
    edges: np.ndarray, rank: np.ndarray
) -> tuple[list[int], list[int]]:
    """Return for each sample its lower neighbors by rank, as (neighbors, starts)."""
    edges = edges[edges[:, 0] != edges[:, 1]]
    first_lower = rank[edges[:, 0]] < rank[edges[:, 1]]
    low = np.where(first_lower, edges[:, 0], edges[:, 1])
    high = np.where(first_lower, edges[:, 1], edges[:, 0])
    order = np.lexsort((rank[low], high))
    counts = np.bincount(high, minlength=len(rank))
    starts = np.concatenate([[0], np.cumsum(counts)])
    return low[order].tolist(), starts.tolist()
