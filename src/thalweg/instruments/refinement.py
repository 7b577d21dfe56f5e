"""Where to look next: boxes over a coarse grid, halved where the surface bends.

Geometry and indicators only; `adaptive` evaluates the points and makes the Dataset.
Positions are integers: multiples of the finest step, 2^depth to a coarse one. They
order, find and hash the points exactly, so that none is evaluated twice.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from thalweg.errors import InputError

MOST_GRID_POINTS = 2**25  # of the regular grid that the result is interpolated on
MOST_DEPTH = 12


@dataclass(frozen=True)
class Refine:
    """How far an adaptive surface goes.

    Args:
        max_points: Most points to evaluate, those of the coarse grid included.
        tol: Cells whose indicator is at most this stay as they are. Where no front is
            crossed it is the largest second difference of log(1 + L) along an edge of
            the cell; linear interpolation is off by about an eighth of it an axis.
        levels: Values of the loss whose level lines are followed to the finest step.
        depth: How often a coarse step can be halved.

    Raises:
        InputError: A number is out of range.
    """

    max_points: int = 2000
    tol: float = 0.0
    levels: Sequence[float] = ()
    depth: int = 3

    def __post_init__(self) -> None:
        if self.max_points < 1:
            raise InputError(f"max_points must be at least 1, got {self.max_points}")
        if not 0 <= self.tol < np.inf:
            raise InputError(f"tol must be finite and at least 0, got {self.tol}")
        if not np.all(np.isfinite(np.asarray(self.levels, dtype=float))):
            raise InputError(f"levels must be finite, got {list(self.levels)}")
        if not 1 <= self.depth <= MOST_DEPTH:
            raise InputError(
                f"depth must lie between 1 and {MOST_DEPTH}, got {self.depth}"
            )

    @property
    def round_size(self) -> int:
        """New points after which the surface is looked at again."""
        return max(8, self.max_points // 32)

    def describe(self) -> dict[str, object]:
        """Return the settings, as a plan and the attributes of a result hold them."""
        return {
            "max_points": self.max_points,
            "tol": self.tol,
            "levels": [float(level) for level in self.levels],
            "depth": self.depth,
            "round_size": self.round_size,
        }

    def check_grid(self, shape: tuple[int, ...]) -> None:
        """Refuse a coarse grid that cannot be refined so.

        Raises:
            InputError: An axis has fewer than three points, the grid has more points
                than `max_points`, or the finest one is too large to hold.
        """
        short = [j for j, n in enumerate(shape) if n < 3]
        if short:
            raise InputError(
                f"refine= needs three points an axis at least, axes[{short[0]}] has "
                f"{shape[short[0]]}: a bend shows in no fewer"
            )
        count = int(np.prod(shape))
        if count > self.max_points:
            raise InputError(
                f"the coarse grid of {' × '.join(map(str, shape))} = {count} points is "
                f"more than max_points={self.max_points}: give shorter axes"
            )
        finest = np.prod([(n - 1.0) * 2**self.depth + 1 for n in shape])
        if finest > MOST_GRID_POINTS:
            raise InputError(
                f"halving {self.depth} times gives a grid of {finest:.3g} points, at "
                f"most {MOST_GRID_POINTS:,} can be held: give a smaller depth or axes"
            )


@dataclass(frozen=True)
class Cut:
    """Cells to halve, the axis of each, and the points that this needs anew."""

    cells: Int[np.ndarray, " cells"]
    axes: Int[np.ndarray, " cells"]
    points: Int[np.ndarray, "points k"]


class Mesh:
    """The cells and their corners.

    Args:
        shape: Points an axis of the coarse grid.
        refine: How far to go.
    """

    def __init__(self, shape: tuple[int, ...], refine: Refine) -> None:
        refine.check_grid(shape)
        self.refine, self.coarse, self.k = refine, shape, len(shape)
        self.unit = 2**refine.depth
        self.shape = tuple((n - 1) * self.unit + 1 for n in shape)
        self.points = _indices(shape) * self.unit
        self.low = _indices(tuple(n - 1 for n in shape)) * self.unit
        self.level = np.zeros_like(self.low)
        self.remaining = 0.0  # largest indicator above `tol` when `cut` was last asked
        self._index()

    def _index(self) -> None:
        keys = np.ravel_multi_index(tuple(self.points.T), self.shape)
        self._order = np.argsort(keys)
        self._keys = keys[self._order]

    def find(self, where: Int[np.ndarray, "*any k"]) -> Int[np.ndarray, "*any"]:
        """Return the number of the evaluated point at each position, -1 for none."""
        inside = np.all((where >= 0) & (where < self.shape), axis=-1)
        safe = np.where(inside[..., None], where, 0)
        keys = np.ravel_multi_index(tuple(np.moveaxis(safe, -1, 0)), self.shape)
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        found = inside & (self._keys[place] == keys)
        return np.where(found, self._order[place], -1)

    # What to do next ----------------------------------------------------------------

    def cut(self, values: Float[np.ndarray, "points variables"]) -> Cut | None:
        """Choose the cells of the next round; None where it is time to stop.

        A cell's indicator is the largest bend of the heights along its edges, plus 1
        where an edge has finite and other ends or crosses a level. Cells come in the
        order of descending indicators, bends times the square root of the cell's size:
        between what makes the largest error small (bends alone) and the mean one (times
        the size). A cell is halved along the axis of its largest bend; where edges are
        crossed, along the longest of those.

        Args:
            values: Of all evaluated points so far, in the order of `points`.
        """
        bend, crossed = self.indicators(values)
        divisible = self.level < self.refine.depth
        crossed &= divisible
        bend = np.where(divisible, bend, -1.0)
        longest = np.where(crossed, self.level, self.refine.depth).argmin(1)
        axes = np.where(crossed.any(1), longest, bend.argmax(1))
        halved = self.level.sum(1)
        indicator = bend.max(1) + crossed.any(1)
        rank = bend.max(1) * 2.0 ** (-halved / 2) + crossed.any(1)
        order = np.lexsort((*self.low.T[::-1], halved, -rank))
        order = order[indicator[order] > self.refine.tol]
        self.remaining = float(indicator[order].max(initial=0.0))
        return self._fitting(order, axes)

    def _fitting(self, order: np.ndarray, axes: np.ndarray) -> Cut | None:
        """Return the first cells in the order whose new points make up a round."""
        room = self.refine.max_points - len(self.points)
        middles = self._middles(order, axes[order])
        keys = np.ravel_multi_index(tuple(np.moveaxis(middles, -1, 0)), self.shape)
        new = self.find(middles) < 0
        _, first = np.unique(keys, return_index=True)
        counted = np.zeros(keys.size, dtype=bool)
        counted[first] = True  # a point that two cells need counts for the first
        counted = counted.reshape(keys.shape) & new
        total = counted.sum(1).cumsum()
        limit = min(max(self.refine.round_size, 2 ** (self.k - 1)), room)
        count = int(np.searchsorted(total, limit, side="right"))
        if count == 0:
            return None
        return Cut(order[:count], axes[order[:count]], middles[:count][counted[:count]])

    def _middles(self, cells: np.ndarray, axes: np.ndarray) -> np.ndarray:
        """Return the midpoints of the cells' edges along their axes, 2^(k-1) each."""
        span = self.unit >> self.level[cells]
        rows = np.arange(len(cells))
        corners = np.stack([_offsets(self.k, j) for j in range(self.k)])[axes]
        corners = self.low[cells][:, None] + corners * span[:, None]
        corners[rows, :, axes] += (span[rows, axes] // 2)[:, None]
        return corners

    def apply(self, cut: Cut) -> None:
        """Halve the cells and take the new points in."""
        cells, rows = cut.cells, np.arange(len(cut.cells))
        level = self.level[cells].copy()
        level[rows, cut.axes] += 1
        upper = self.low[cells].copy()
        upper[rows, cut.axes] += self.unit >> level[rows, cut.axes]
        self.level[cells] = level
        self.low = np.concatenate([self.low, upper])
        self.level = np.concatenate([self.level, level])
        self.points = np.concatenate([self.points, cut.points])
        self._index()

    def indicators(
        self, values: Float[np.ndarray, "points variables"]
    ) -> tuple[Float[np.ndarray, "cells k"], Bool[np.ndarray, "cells k"]]:
        """Return along each axis the largest bend, and whether an edge is crossed."""
        finite = np.isfinite(values)
        heights = _and_last(np.where(finite, to_heights(values), np.nan), np.nan)
        levels = np.sort(np.asarray(self.refine.levels, dtype=float))
        sides = np.where(finite, np.searchsorted(levels, values), -1)
        bend = np.empty(self.low.shape)
        crossed = np.empty(self.low.shape, dtype=bool)
        for j in range(self.k):
            bend[:, j] = self._bends(j, heights)
            crossed[:, j] = self._crossings(j, sides)
        return bend, crossed

    def edges(self, j: int) -> Int[np.ndarray, "cells edges k"]:
        """Return the low ends of the cells' edges along an axis."""
        span = self.unit >> self.level
        return self.low[:, None] + _offsets(self.k, j) * span[:, None]

    def _bends(self, j: int, heights: np.ndarray) -> np.ndarray:
        """Return the largest |second difference| along the edges on an axis.

        Of an edge that is the mean of those at its two ends, so that one jump counts
        more in the cell where it is than in those beside it. Where the neighbor is
        finer the one at the edge's middle counts, too.
        """
        edges, span = self.edges(j), self.unit >> self.level[:, j]

        def at(shift: np.ndarray) -> np.ndarray:
            where = edges.copy()
            where[..., j] += shift[:, None]
            return heights[self.find(where)]  # the last row, NaN, where there is none

        before, low, high, after = (at(i * span) for i in (-1, 0, 1, 2))
        middle = np.where((span > 1)[:, None, None], at(span // 2), np.nan)
        first = np.abs(before - 2 * low + high)
        second = np.abs(low - 2 * high + after)
        both = (first + second) / 2
        ends = np.where(np.isnan(both), np.fmax(first, second), both)
        bends = np.fmax(ends, np.abs(low - 2 * middle + high))
        return np.fmax.reduce(bends, axis=(1, 2), initial=0.0)

    def _crossings(self, j: int, sides: np.ndarray) -> np.ndarray:
        """Say whether points known along an edge lie on different sides."""
        edges, span = self.edges(j), self.unit >> self.level[:, j]
        lowest = _and_last(sides, np.iinfo(np.int64).max)
        highest = _and_last(sides, np.iinfo(np.int64).min)
        crossed = np.empty(len(edges), dtype=bool)
        for step in np.unique(span):
            rows = span == step
            where = np.repeat(edges[rows][:, :, None], step + 1, axis=2)
            where[..., j] += np.arange(step + 1)
            found = self.find(where)
            differs = lowest[found].min(2) != highest[found].max(2)
            crossed[rows] = differs.any((1, 2))
        return crossed


def to_heights(values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Return sign(L) log(1 + |L|), in which surfaces are compared and interpolated."""
    return np.sign(values) * np.log1p(np.abs(values))


def from_heights(heights: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Return the values at these heights."""
    return np.sign(heights) * np.expm1(np.abs(heights))


def _indices(shape: tuple[int, ...]) -> Int[np.ndarray, "points k"]:
    return np.indices(shape).reshape(len(shape), -1).T.astype(np.int64)


def _offsets(k: int, j: int) -> Int[np.ndarray, "edges k"]:
    """Return the corners of a unit cell at the low ends of its edges along an axis."""
    corners = itertools.product(*((0,) if i == j else (0, 1) for i in range(k)))
    return np.array(list(corners), dtype=np.int64)


def _and_last(rows: np.ndarray, value: float) -> np.ndarray:
    """Append a row, which stands for what is not known: index -1."""
    return np.concatenate([rows, np.full_like(rows[:1], value)])
