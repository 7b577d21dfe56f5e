"""Statistics of an ensemble, taken as it runs."""

import math

import numpy as np

from thalweg.errors import InputError
from thalweg.solvable.deep_linear.checks import Reals


class Table:
    """Statistics of the finite paths at each record; no path is stored.

    Args:
        r: Number of quantities of each path.
        levels: Quantiles to take.
        edges: Ascending edges of a histogram of visits, or None.
        burn_in: First step whose record enters the histogram.
    """

    def __init__(
        self,
        r: int,
        levels: tuple[float, ...],
        edges: np.ndarray | None = None,
        burn_in: int = 0,
    ) -> None:
        self._levels = checked_levels(levels)
        self._edges, self._burn_in = edges, burn_in
        self._rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.counts = (
            None if edges is None else np.zeros((r, len(edges) - 1), dtype=np.int64)
        )

    def record(self, step: int, s: np.ndarray) -> None:
        """Add the values (r, paths) at a step."""
        rows = [self._mode(values[np.isfinite(values)]) for values in s]
        mean, variance, quantiles = zip(*rows, strict=True)
        self._rows.append(
            (np.array(mean), np.array(variance), np.stack(quantiles, axis=1))
        )
        if self.counts is None or self._edges is None or step < self._burn_in:
            return
        for counts, values in zip(self.counts, s, strict=True):
            finite = values[np.isfinite(values)]
            counts += np.histogram(finite, self._edges)[0]

    def _mode(self, values: np.ndarray) -> tuple[float, float, np.ndarray]:
        if not len(values):
            return math.nan, math.nan, np.full(len(self._levels), math.nan)
        variance = values.var(ddof=1) if len(values) > 1 else math.nan
        return float(values.mean()), float(variance), np.quantile(values, self._levels)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return mean and variance (records, r) and quantiles (levels, records, r)."""
        mean, variance, quantiles = zip(*self._rows, strict=True)
        return np.stack(mean), np.stack(variance), np.stack(quantiles, axis=1)


def checked_levels(levels: tuple[float, ...]) -> tuple[float, ...]:
    """Return the levels of quantiles.

    Raises:
        InputError: One lies outside [0, 1].
    """
    if not all(0 <= level <= 1 for level in levels):
        raise InputError(f"levels must lie in [0, 1], got {levels}")
    return levels


def checked_bins(bins: Reals | None) -> np.ndarray | None:
    """Return the edges of a histogram.

    Raises:
        InputError: They are fewer than two or not ascending.
    """
    if bins is None:
        return None
    edges = np.asarray(bins, dtype=np.float64)
    if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise InputError(
            f"bins must be at least two ascending edges, got {edges.tolist()}"
        )
    return edges
