"""Samples and their neighbors: on grids, scattered, or with edges of one's own."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from thalweg.errors import InputError

if TYPE_CHECKING:
    import xarray

Connectivity = Literal["axis", "full"]


@dataclass(frozen=True)
class SampleGraph:
    """Values, and who is whose neighbor.

    Args:
        values: On a grid, or (M,); NaN as +inf.
        edges: Pairs (E, 2) of flat indices; None for a grid's own neighbors.
        nonfinite: How many values were NaN.
    """

    values: Float[np.ndarray, "*shape"]
    edges: Int[np.ndarray, "edges 2"] | None
    nonfinite: int


def read_graph(
    surface: object, edges: np.ndarray | Tensor | None, variable: str
) -> SampleGraph:
    """Return values and neighbors of a surface, a grid, or samples with edges.

    Of an adaptive surface these are the points evaluated, joined where they follow one
    another on an edge of a cell; of one at scattered points their triangulation.

    Raises:
        InputError: There is no such variable, no value, or edges do not fit.
    """
    if edges is None and hasattr(surface, "data_vars"):
        surface, edges = _of_points(surface, variable)  # type: ignore[arg-type]  # a Dataset
    values, nonfinite = read_values(surface, variable)
    if edges is None:
        return SampleGraph(values, None, nonfinite)
    links = np.asarray(edges, dtype=np.int64)
    if links.size and (links.ndim != 2 or links.shape[1] != 2):
        raise InputError(f"edges must have shape (E, 2), got {links.shape}")
    if values.ndim != 1:
        raise InputError(
            f"edges join samples of shape (M,), got values of shape {values.shape}"
        )
    if links.size and not 0 <= links.min() <= links.max() < values.size:
        raise InputError(
            f"edges must join samples 0 to {values.size - 1}, got {links.min()} "
            f"to {links.max()}"
        )
    return SampleGraph(values, links.reshape(-1, 2), nonfinite)


def _of_points(
    dataset: "xarray.Dataset", variable: str
) -> tuple[object, np.ndarray | None]:
    """Return the scattered values of a Dataset and their edges; itself if on a grid."""
    if f"point_{variable}" in dataset and "neighbors" in dataset:
        return dataset[f"point_{variable}"], dataset["neighbors"].values
    if variable in dataset and dataset[variable].dims == ("point",):
        names = [f"x{j}" for j in range(len(dataset.coords)) if f"x{j}" in dataset]
        points = np.stack([dataset[name].values for name in names], axis=1)
        return dataset[variable], neighbor_edges(points)
    return dataset, None


def read_values(surface: object, variable: str) -> tuple[np.ndarray, int]:
    """Return float64 values with NaN as +inf, and how many were NaN.

    Raises:
        InputError: There is no such variable, or no value.
    """
    if hasattr(surface, "data_vars"):
        names: Iterable[str] = list(surface.data_vars)
        if variable not in names:
            raise InputError(f"the surface has no variable {variable!r}, only {names}")
        surface = surface[variable]  # type: ignore[index]  # a Dataset
    if isinstance(surface, Tensor):
        surface = surface.detach().cpu().numpy()
    values = np.array(surface, dtype=np.float64)
    if values.size == 0 or values.ndim == 0:
        raise InputError(f"a surface has values on a grid, got shape {values.shape}")
    bad = np.isnan(values)
    values[bad] = np.inf
    return values, int(bad.sum())


def check_connectivity(connectivity: str) -> None:
    """Raise unless it is "axis" or "full"."""
    if connectivity not in ("axis", "full"):
        raise InputError(f"connectivity must be 'axis' or 'full', got {connectivity!r}")


def grid_edges(shape: tuple[int, ...], connectivity: str = "axis") -> np.ndarray:
    """Return the pairs (E, 2) of neighboring flat indices of a grid."""
    index = np.arange(int(np.prod(shape))).reshape(shape)
    parts = [np.empty((0, 2), dtype=np.int64)]
    for step in itertools.product((-1, 0, 1), repeat=len(shape)):
        forward = step > (0,) * len(shape)
        if not forward or (connectivity == "axis" and sum(map(abs, step)) > 1):
            continue
        here = tuple(
            slice(max(0, -s), n - max(0, s)) for s, n in zip(step, shape, strict=True)
        )
        there = tuple(
            slice(max(0, s), n - max(0, -s)) for s, n in zip(step, shape, strict=True)
        )
        parts.append(np.stack([index[here].ravel(), index[there].ravel()], axis=1))
    return np.concatenate(parts)


def neighbor_edges(
    points: np.ndarray | Tensor, neighbors: int | None = None
) -> np.ndarray:
    """Return the edges (E, 2) of scattered points: Delaunay, or nearest neighbors.

    Args:
        points: Coordinates (M, k).
        neighbors: Number of nearest neighbors each point is joined to; by default the
            edges of the Delaunay triangulation (a path of sorted points for k = 1).

    Raises:
        InputError: There are too few points.
    """
    from scipy.spatial import Delaunay, KDTree

    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or len(points) < 2:
        raise InputError(f"points must have shape (M, k), M >= 2, got {points.shape}")
    count, dim = points.shape
    if neighbors is not None:
        if not 1 <= neighbors < count:
            raise InputError(
                f"neighbors must lie between 1 and {count - 1}, got {neighbors}"
            )
        _, found = KDTree(points).query(points, k=neighbors + 1)
        pairs = np.stack(
            [np.repeat(np.arange(count), neighbors + 1), found.reshape(-1)], axis=1
        )
    elif dim == 1:
        order = np.argsort(points[:, 0], kind="stable")
        pairs = np.stack([order[:-1], order[1:]], axis=1)
    else:
        if count < dim + 2:
            raise InputError(
                f"a triangulation in {dim} dimensions needs {dim + 2} points, got "
                f"{count}"
            )
        corners = Delaunay(points).simplices
        pairs = np.concatenate(
            [corners[:, pair] for pair in itertools.combinations(range(dim + 1), 2)]
        )
    pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
    return np.unique(pairs, axis=0)
