"""Sublevel sets of a sampled surface: persistent homology of degree 0 by gudhi.

The minima of a slice are not minima of the loss: a minimum of the restriction to a
plane has, as a rule, descending directions outside of it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from thalweg.instruments.sample_graphs import (
    Connectivity,
    SampleGraph,
    check_connectivity,
    read_graph,
)

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class Pairs:
    """Components of the sublevel sets: born at a minimum, dead at a saddle.

    Sorted by descending persistence, then by index of birth. Pairs of no persistence
    are left out, so the points of a flat minimum count once.

    Args:
        birth: Value at the minimum.
        death: Value at the saddle where it joins a deeper component; inf where it
            never does (the essential class) or does so only through values of +inf.
        birth_index: Flat index (C order) of the minimum.
        saddle_index: Flat index of the saddle, -1 for an essential class.
        shape: Shape of the sampled grid, (points,) of a graph.
        nonfinite: Number of samples that were NaN, taken as +inf.
    """

    birth: np.ndarray
    death: np.ndarray
    birth_index: np.ndarray
    saddle_index: np.ndarray
    shape: tuple[int, ...]
    nonfinite: int = 0

    def __len__(self) -> int:
        return len(self.birth)

    @property
    def persistence(self) -> np.ndarray:
        """Death - birth."""
        return self.death - self.birth

    @property
    def essential(self) -> np.ndarray:
        """Whether the class never dies: one on a grid, one a component of a graph."""
        return self.saddle_index < 0

    def capped(self, cap: float) -> np.ndarray:
        """Return (pairs, 2) births and deaths, no death above `cap`."""
        return np.stack([self.birth, np.minimum(self.death, cap)], axis=1)

    def shares(self, cap: float) -> np.ndarray:
        """Return each persistence, deaths capped, as a fraction of their total."""
        births, deaths = self.capped(cap).T
        lengths = np.maximum(deaths - births, 0)
        total = lengths.sum()
        return lengths / total if total > 0 else lengths

    def above(self, threshold: float) -> "Pairs":
        """Return the pairs of more than this persistence."""
        keep = self.persistence > threshold
        return Pairs(
            self.birth[keep],
            self.death[keep],
            self.birth_index[keep],
            self.saddle_index[keep],
            self.shape,
            self.nonfinite,
        )

    def positions(self) -> np.ndarray:
        """Return the grid indices of the minima, (pairs, axes)."""
        return np.stack(np.unravel_index(self.birth_index, self.shape), axis=1)

    def saddle_positions(self) -> np.ndarray:
        """Return the grid indices of the saddles, (pairs, axes); -1 for essential."""
        flat = np.where(self.essential, 0, self.saddle_index)
        positions = np.stack(np.unravel_index(flat, self.shape), axis=1)
        return np.where(self.essential[:, None], -1, positions)

    def to_dataset(self) -> "xarray.Dataset":
        """Return the table as a Dataset with dimension `pair`, as figures take it."""
        import xarray

        columns = {
            "birth": self.birth,
            "death": self.death,
            "persistence": self.persistence,
            "birth_index": self.birth_index,
            "saddle_index": self.saddle_index,
        }
        return xarray.Dataset(
            {name: ("pair", column) for name, column in columns.items()},
            attrs={"shape": str(self.shape), "nonfinite": str(self.nonfinite)},
        )

    def rows(self) -> list[dict[str, object]]:
        """Return one dict a pair: birth, death, persistence and their positions."""
        return [
            {
                "birth": float(self.birth[i]),
                "death": float(self.death[i]),
                "persistence": float(self.persistence[i]),
                "minimum": tuple(int(p) for p in minimum),
                "saddle": None if self.essential[i] else tuple(int(p) for p in saddle),
                "essential": bool(self.essential[i]),
            }
            for i, (minimum, saddle) in enumerate(
                zip(self.positions(), self.saddle_positions(), strict=True)
            )
        ]


def persistence(
    surface: "xarray.Dataset | xarray.DataArray | np.ndarray | Tensor",
    edges: np.ndarray | Tensor | None = None,
    *,
    connectivity: Connectivity = "axis",
    variable: str = "loss",
) -> Pairs:
    """Return the 0-dimensional persistence of the sublevel sets of a sampled surface.

    The samples are vertices of a cubical complex, or of a graph. A component is born at
    a local minimum and dies, the younger of two, where the level reaches the lowest
    pass between them. NaN counts as +inf and its samples are counted.

    Args:
        surface: Dataset of `ti.surface`, also an adaptive one, or of
            `ti.surface_at_points`; values on a grid, or values (M,) with `edges`.
        edges: Pairs (E, 2) of neighboring samples, see `ti.neighbor_edges`.
        connectivity: "axis": neighbors along the axes; "full": diagonal ones too.
        variable: Variable of the Dataset.

    Raises:
        InputError: There are no values, edges name samples that do not exist, or an
            option is unknown.

    Source: Edelsbrunner, Harer, "Computational topology", 2010; computed by gudhi.
    """
    check_connectivity(connectivity)
    graph = read_graph(surface, edges, variable)
    if graph.edges is None:
        births, saddles = _on_grid(graph.values, connectivity)
    else:
        births, saddles = _on_graph(graph, graph.edges)
    return make_pairs(graph.values, births, saddles, graph.nonfinite)


def _on_grid(values: np.ndarray, connectivity: str) -> tuple[np.ndarray, np.ndarray]:
    """Return flat indices of minima and of their saddles, -1 for essential ones."""
    from gudhi import CubicalComplex

    if connectivity == "axis":
        complex_ = CubicalComplex(vertices=values)
        complex_.compute_persistence(homology_coeff_field=2, min_persistence=0)
        regular, essential = complex_.vertices_of_persistence_pairs()
    else:
        complex_ = CubicalComplex(top_dimensional_cells=values)
        complex_.compute_persistence(homology_coeff_field=2, min_persistence=0)
        regular, essential = complex_.cofaces_of_persistence_pairs()
    finite = np.asarray(regular[0] if regular else [], dtype=np.int64).reshape(-1, 2)
    lasting = np.asarray(essential[0], dtype=np.int64)
    births = _row_major(np.concatenate([finite[:, 0], lasting]), values.shape)
    saddles = _row_major(finite[:, 1], values.shape)
    return births, np.concatenate([saddles, np.full(len(lasting), -1)])


def _on_graph(graph: SampleGraph, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the same for a graph: an edge is there when both its ends are."""
    from gudhi import SimplexTree

    # Ranks stand for the values: equal ones become distinct by index, +inf finite.
    order = np.argsort(graph.values, kind="stable")
    rank = np.empty(len(order))
    rank[order] = np.arange(len(order))
    tree = SimplexTree()
    tree.insert_batch(np.arange(len(order))[None], rank)
    edges = edges[edges[:, 0] != edges[:, 1]]
    if len(edges):
        tree.insert_batch(edges.T, rank[edges].max(1))
    tree.compute_persistence(homology_coeff_field=2, min_persistence=-1)
    pairs = [
        (born[0], -1 if not died else max(died, key=rank.__getitem__))
        for born, died in tree.persistence_pairs()
        if len(born) == 1
    ]
    found = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def _row_major(indices: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return C-order indices of gudhi's, whose first axis runs fastest."""
    return np.ravel_multi_index(np.unravel_index(indices, shape, order="F"), shape)


def make_pairs(
    values: np.ndarray, births: np.ndarray, saddles: np.ndarray, nonfinite: int
) -> Pairs:
    """Return sorted pairs from flat indices; a saddle of -1 means never."""
    flat = values.reshape(-1)
    birth = flat[births]
    death = np.where(saddles < 0, np.inf, flat[saddles])
    keep = (saddles < 0) | (death > birth)
    births, saddles, birth, death = (x[keep] for x in (births, saddles, birth, death))
    with np.errstate(invalid="ignore"):
        lasting = np.nan_to_num(death - birth, nan=0.0, posinf=np.inf)
    order = np.lexsort((births, birth, -lasting, saddles >= 0))
    return Pairs(
        birth[order],
        death[order],
        births[order],
        saddles[order],
        values.shape,
        nonfinite,
    )
