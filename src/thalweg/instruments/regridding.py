"""From scattered points of a mesh to a regular grid, and to a graph of neighbors."""

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int

from thalweg.instruments.refinement import Mesh


class Regridding:
    """The regular grid of the smallest steps that a mesh has along each axis.

    Args:
        mesh: Its cells give values between its points.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        reached = mesh.level.max(0)
        self.stride = mesh.unit >> reached
        self.parts = tuple((2**reached).tolist())  # of a coarse step
        self.shape = tuple(
            (n - 1) * parts + 1
            for n, parts in zip(mesh.coarse, self.parts, strict=True)
        )
        places = (mesh.points // self.stride).T
        self.evaluated = np.zeros(self.shape, dtype=bool)
        self.evaluated[tuple(places)] = True
        self._places = tuple(places)

    def place(self, values: np.ndarray, blank: float) -> np.ndarray:
        """Return values of the points at their places, `blank` elsewhere."""
        grid = np.full(self.shape, blank, dtype=values.dtype)
        grid[self._places] = values
        return grid

    def interpolate(
        self, values: Float[np.ndarray, " points"]
    ) -> tuple[Float[np.ndarray, "*grid"], Bool[np.ndarray, "*grid"]]:
        """Return values on the grid, and where they are interpolated.

        Linear along the edges of the cells, between all points that lie on them, and
        blended from the edges inwards (transfinite: Gordon, Hall, "Construction of
        curvilinear co-ordinate systems and applications to mesh generation", 1973), so
        continuous; on a grid that is not refined this is multilinear. A cell with a
        point that is not finite, also on its border, says nothing about the rest of
        it: NaN, and not interpolated.
        """
        known = self.place(values, np.nan)
        broken = self.evaluated & ~np.isfinite(known)
        grid = known.copy()
        for index in self._cells():
            inner = tuple(range(1, index.ndim))
            index = index[~broken.flat[index].any(inner)]
            grid.flat[index] = _filled(grid.flat[index])
        return grid, ~self.evaluated & np.isfinite(grid)

    def _cells(self) -> Iterator[Int[np.ndarray, "cells *block"]]:
        """Yield the flat indices of all cells of one size, the smallest first.

        So a border has the values of its finer side before the other side is filled.
        """
        mesh = self.mesh
        sizes = np.unique(mesh.level, axis=0)
        for level in sizes[np.lexsort((*sizes.T, -sizes.sum(1)))]:
            low = mesh.low[(mesh.level == level).all(1)] // self.stride
            sides = ((mesh.unit >> level) // self.stride + 1).tolist()
            inner = np.indices(sides).reshape(mesh.k, -1).T
            where = np.moveaxis(low[:, None] + inner, -1, 0)
            index = np.ravel_multi_index(tuple(where), self.shape)
            yield index.reshape(-1, *sides)


def _filled(blocks: Float[np.ndarray, "cells *block"]) -> np.ndarray:
    """Return blocks with the gaps filled: edges first, then faces, then the inside."""
    blocks = blocks.copy()
    k = blocks.ndim - 1
    for d in range(1, k + 1):
        for axes in itertools.combinations(range(1, k + 1), d):
            for ends in itertools.product((0, -1), repeat=k - d):
                face: list[int | slice] = [slice(None)] * (k + 1)
                others = [axis for axis in range(1, k + 1) if axis not in axes]
                for axis, end in zip(others, ends, strict=True):
                    face[axis] = end
                part = blocks[tuple(face)]
                found = _between(part) if d == 1 else _blended(part)
                blocks[tuple(face)] = np.where(np.isnan(part), found, part)
    return blocks


def _between(rows: Float[np.ndarray, "rows points"]) -> np.ndarray:
    """Return each row linear between its known points; the ends are known."""
    places = np.arange(rows.shape[1])
    known = ~np.isnan(rows)
    before = np.maximum.accumulate(np.where(known, places, 0), axis=1)
    after = np.where(known, places, places[-1])[:, ::-1]
    after = np.minimum.accumulate(after, axis=1)[:, ::-1]
    share = (places - before) / np.maximum(after - before, 1)
    low, high = (np.take_along_axis(rows, at, axis=1) for at in (before, after))
    return low * (1 - share) + high * share


def _blended(blocks: Float[np.ndarray, "cells *block"]) -> np.ndarray:
    """Return the Boolean sum of the linear interpolations between opposite faces.

    That is f - (1 - P_1)...(1 - P_d) f, whose values inside of f cancel out.
    """
    start = np.where(np.isnan(blocks), 0.0, blocks)
    rest = start
    for axis in range(1, blocks.ndim):
        share = np.linspace(0, 1, blocks.shape[axis])
        share = share.reshape(-1, *[1] * (blocks.ndim - 1 - axis))
        low, high = (np.take(rest, [end], axis=axis) for end in (0, -1))
        rest = rest - (low * (1 - share) + high * share)
    return start - rest


def mesh_edges(mesh: Mesh) -> Int[np.ndarray, "edges 2"]:
    """Return the pairs of points that follow one another on an edge of a cell.

    On a grid that is not refined these are the neighbors along the axes.
    """
    parts = [np.empty((0, 2), dtype=np.int64)]
    for j in range(mesh.k):
        low, span = mesh.edges(j), mesh.unit >> mesh.level[:, j]
        for step in np.unique(span):
            where = np.repeat(low[span == step][:, :, None], step + 1, axis=2)
            where[..., j] += np.arange(step + 1)
            found = mesh.find(where).reshape(-1, step + 1)
            rows, columns = np.nonzero(found >= 0)
            follows = rows[1:] == rows[:-1]
            points = found[rows, columns]
            parts.append(np.stack([points[:-1], points[1:]], axis=1)[follows])
    return np.unique(np.sort(np.concatenate(parts), axis=1), axis=0)
