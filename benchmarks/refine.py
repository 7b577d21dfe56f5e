"""Adaptive surfaces against uniform grids: a front located, an error reached.

    python -m benchmarks refine

Prints JSON and keeps it under results/. Evaluations are counted, not timed. Both kinds
of surfaces are interpolated alike: linearly in log(1 + L) on the grid they are given
on. A cliff and a gap are known in closed form; the random planes are those of the
network on the digits.
"""

import numpy as np
import torch
from scipy.interpolate import RegularGridInterpolator
from torch import Tensor

from benchmarks.subject import subject
from thalweg import instruments as ti
from thalweg.landscapes import Landscape

Grid = tuple[np.ndarray, np.ndarray]

COARSE = np.linspace(-1, 1, 9)
FINE = np.linspace(-1, 1, 513)
UNIFORM = 65
CELL = 2 / (UNIFORM - 1)
BUDGETS = (300, 400, 500, 600, 700, 800, 900, 1056)
PLANES = (0, 1, 2, 3)
REFERENCE = 129
POINTS = (110, 150, 200, 289, 400, 600, 800, 1089, 1400, 1700, 2000)
SIDES = range(9, 49)


class Plane(Landscape):
    """1 + x/2 + 3y/10 with a front of distance `front(x, y)`: a cliff, or a gap."""

    def __init__(self, front: str, *, gap: bool) -> None:
        super().__init__(2, origin=torch.zeros(2, dtype=torch.float64))
        self.front, self.gap = front, gap

    def distance(self, points: Tensor) -> Tensor:
        """Return the signed distance from the front."""
        x, y = points[..., 0], points[..., 1]
        if self.front == "line":
            return (y - 0.4 * x - 0.13) / 1.16**0.5
        if self.front == "circle":
            return (x - 0.1).hypot(y + 0.2) - 0.55
        return 0.3 - (x - 0.5).hypot(y - 0.4)  # the inside of a small disc

    def loss(self, points: Tensor) -> Tensor:
        """Return the loss: 2 higher beyond the front, or NaN there."""
        plain = 1 + points[..., 0] / 2 + 0.3 * points[..., 1]
        beyond = self.distance(points) > 0
        if self.gap:
            return torch.where(beyond, float("nan"), plain)
        return plain + 2 * beyond


def interpolated(axes: Grid, values: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """Return values on the square grid of one axis, linear in log(1 + L)."""
    where = np.stack(np.meshgrid(onto, onto, indexing="ij"), axis=-1)
    heights = RegularGridInterpolator(axes, np.log1p(values))(where)
    return np.expm1(heights)


def misjudged(land: Plane, axes: Grid, values: np.ndarray) -> float:
    """Return the largest distance, in cells, of a wrong or open place from the front.

    Wrong: off by more than a tenth of the cliff, or a value where there is none.
    """
    mesh = np.stack(np.meshgrid(FINE, FINE, indexing="ij"), axis=-1)
    points = torch.from_numpy(mesh)
    exact, found = land.loss(points).numpy(), interpolated(axes, values, FINE)
    wrong = np.isnan(exact) != np.isnan(found)
    if not land.gap:
        wrong |= np.abs(exact - found) > 0.2
    distance = np.abs(land.distance(points).numpy())
    return float(distance[wrong].max(initial=0.0) / CELL)


def front(name: str, *, gap: bool) -> dict[str, object]:
    """Locate one front: the uniform grid, and the budgets of adaptive ones."""
    land = Plane(name, gap=gap)
    basis = torch.eye(2, dtype=torch.float64)
    axis = np.linspace(-1, 1, UNIFORM)
    even = ti.surface(land, basis, [axis, axis])["loss"].values
    reached = misjudged(land, (axis, axis), even)
    tried = {}
    for budget in BUDGETS:
        found = ti.surface(land, basis, [COARSE, COARSE], refine=ti.Refine(budget))
        axes = found["x0"].values, found["x1"].values
        distance = misjudged(land, axes, found["loss"].values)
        tried[found.sizes["point"]] = distance
    enough = [n for n, distance in tried.items() if distance <= reached]
    return {
        "front": name,
        "kind": "gap" if gap else "cliff",
        "uniform_evaluations": UNIFORM**2,
        "uniform_distance_in_cells": reached,
        "adaptive_distance_in_cells_by_evaluations": tried,
        "adaptive_evaluations": min(enough, default=None),
        "times_fewer": UNIFORM**2 / min(enough) if enough else None,
    }


def errors(found: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Return the largest and mean error, in log(1 + L) and in the loss."""
    heights = np.abs(np.log1p(found) - np.log1p(exact))
    plain = np.abs(found - exact)
    return {
        "largest": float(heights.max()),
        "mean": float(heights.mean()),
        "largest_in_loss": float(plain.max()),
        "mean_in_loss": float(plain.mean()),
    }


def plane(seed: int) -> dict[str, object]:
    """Compare errors over points on one random plane of the digits network."""
    s = subject(torch.float32)
    land = s.land.with_loss(s.land.objective.loss, metrics=None)
    directions = ti.random_directions(land, 2, seed=seed)
    reference = np.linspace(-1, 1, REFERENCE)
    exact = ti.surface(land, directions, [reference, reference])["loss"].values
    uniform = {}
    for side in SIDES:
        axis = np.linspace(-1, 1, side)
        values = ti.surface(land, directions, [axis, axis])["loss"].values
        on_reference = interpolated((axis, axis), values, reference)
        uniform[side**2] = errors(on_reference, exact)
    adaptive = {}
    for budget in POINTS:
        refine = ti.Refine(budget, depth=4)
        found = ti.surface(land, directions, [COARSE, COARSE], refine=refine)
        axes = found["x0"].values, found["x1"].values
        on_reference = interpolated(axes, found["loss"].values, reference)
        adaptive[found.sizes["point"]] = errors(on_reference, exact)
    ratios = {
        n: {name: ratio(n, uniform, name, error) for name, error in row.items()}
        for n, row in adaptive.items()
    }
    worst = {
        name: max(row[name] or 0.0 for row in ratios.values())
        for name in ratios[min(ratios)]
    }
    return {
        "seed": seed,
        "range": [float(exact.min()), float(exact.max())],
        "uniform": uniform,
        "adaptive": adaptive,
        "adaptive_points_over_uniform_at_equal_error": ratios,
        "worst": worst,
    }


def ratio(
    points: int, uniform: dict[int, dict[str, float]], name: str, error: float
) -> float | None:
    """Return points over those of the smallest uniform grid with no larger an error.

    None where no uniform grid that was tried has so small an error.
    """
    enough = [n for n, row in uniform.items() if row[name] <= error]
    return points / min(enough) if enough else None


def measure() -> dict[str, object]:
    """Count evaluations for four fronts, and points for the random planes."""
    return {
        "fronts": [
            front("line", gap=False),
            front("circle", gap=False),
            front("circle", gap=True),
            front("disc", gap=True),
        ],
        "planes": [plane(seed) for seed in PLANES],
    }
