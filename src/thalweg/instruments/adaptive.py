"""Surfaces whose points go where the surface bends, breaks off or crosses a level."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg.execution import OnError, Progress, ProgressName, in_rounds
from thalweg.instruments.directions import Directions
from thalweg.instruments.plane_setup import (
    Land,
    describe_plane,
    distances,
    kept_step,
    plane_of,
)
from thalweg.instruments.refinement import Mesh, Refine, from_heights, to_heights
from thalweg.instruments.regridding import Regridding, mesh_edges
from thalweg.instruments.sampling import (
    OK,
    PENDING,
    QUIET,
    STATUS,
    Arrays,
    Plane,
    joined,
    losses,
    open_store,
    sample_part,
    worst_status,
)
from thalweg.landscapes import Landscape
from thalweg.provenance import Meter, attributes, fingerprint, versions

if TYPE_CHECKING:
    import xarray
    from torch import Tensor


def adaptive_surface(
    land: Land,
    directions: Directions,
    axes: list[np.ndarray],
    refine: Refine,
    at: "Tensor | None",
    *,
    store: str | Path | None,
    executor: Any,
    progress: ProgressName | Progress | None,
    on_error: OnError,
    threads: int,
    recipe: Callable[[], Landscape] | None,
) -> "xarray.Dataset":
    """Evaluate the loss at chosen points, in rounds; see `ti.surface`.

    What a round evaluates follows from the values of those before it, and all that
    decides it is in the plan: executors and interruptions change nothing.
    """
    mesh = Mesh(tuple(axis.size for axis in axes), refine)
    plane = plane_of(land, directions, at)
    names = list(plane.landscapes)
    ticks = [_ticks(axis, mesh.unit) for axis in axes]
    provenance = {
        **describe_plane("adaptive surface", plane, directions),
        "axes": axes,
        "refine": refine.describe(),
    }
    chunk = -(-refine.round_size // 8)
    plan = {"chunk": chunk, "threads": threads, "versions": versions()}
    kept = open_store(plane, store, {**provenance, **plan})
    with (
        Meter() as meter,
        in_rounds(executor, progress, refine.max_points) as (workers, display),
    ):

        def evaluate(points: np.ndarray, number: int) -> Arrays:
            coordinates = _coordinates(points, ticks)
            arrays, computed = sample_part(
                plane,
                coordinates,
                losses,
                # The points stand in the key: where an earlier round comes out
                # otherwise (a failure was recorded), what was kept is not theirs.
                f"round-{number:04d}-{fingerprint(coordinates)}",
                chunk,
                store=kept,
                executor=workers,
                progress=display,
                on_error=on_error,
                threads=threads,
                recipe=recipe,
            )
            display.found += len(points) - computed
            meter.add(points=computed)
            return _complete(arrays, names, len(points))

        arrays = evaluate(mesh.points, 0)
        rounds = [len(mesh.points)]
        while (cut := mesh.cut(np.stack([arrays[n] for n in names], 1))) is not None:
            mesh.apply(cut)
            if not len(cut.points):
                continue
            found = evaluate(cut.points, len(rounds))
            arrays = joined([(sum(rounds), arrays), (len(cut.points), found)])
            rounds.append(len(cut.points))
    dataset = _dataset(mesh, plane, directions, ticks, arrays, rounds)
    reached = _coordinates(mesh.points, ticks)
    return dataset.assign_attrs(
        attributes(
            seed=directions.seed,
            cost=meter,
            **provenance,
            evaluated=len(mesh.points),
            remaining=mesh.remaining,
            status_codes=STATUS,
            **kept_step(plane, reached, distances(directions, reached)),
            threads=threads,
        )
    )


def _ticks(axis: np.ndarray, unit: int) -> np.ndarray:
    """Return the axis with each step divided into `unit` equal parts."""
    share = np.arange(unit) / unit
    parts = axis[:-1, None] * (1 - share) + axis[1:, None] * share
    return np.append(parts.reshape(-1), axis[-1])


def _coordinates(points: np.ndarray, ticks: list[np.ndarray]) -> np.ndarray:
    return np.stack([tick[points[:, j]] for j, tick in enumerate(ticks)], axis=1)


def _complete(arrays: Arrays, names: list[str], count: int) -> Arrays:
    """Return arrays with a loss for each landscape, NaN where all points failed."""
    blank = {name: np.full(count, np.nan) for name in names}
    return {**blank, **arrays}


def _dataset(
    mesh: Mesh,
    plane: Plane,
    directions: Directions,
    ticks: list[np.ndarray],
    arrays: Arrays,
    rounds: list[int],
) -> "xarray.Dataset":
    """Return the points, the graph of neighbors, and the regular grid."""
    import xarray

    names = list(plane.landscapes)
    failed = arrays.pop("failed")
    status = worst_status([arrays[name] for name in names], failed)
    regrid = Regridding(mesh)
    dims = tuple(f"x{j}" for j in range(mesh.k))
    axes = [tick[::stride] for tick, stride in zip(ticks, regrid.stride, strict=True)]
    variables: dict[str, Any] = {}
    interpolated = ~regrid.evaluated
    for name in [*names, *(n for n in arrays if n not in names)]:
        if name in QUIET and not arrays[name].any():
            continue
        grid, between = _interpolated(regrid, arrays[name], name in names)
        variables[name] = (dims, grid)
        if name in names:
            interpolated &= between
    known = regrid.place(status, PENDING)
    variables["status"] = (dims, np.where(interpolated, np.int8(OK), known))
    variables["interpolated"] = (dims, interpolated)
    for name in [name for name in variables if name in arrays]:
        variables[f"point_{name}"] = ("point", arrays[name])
    variables["point_status"] = ("point", status)
    variables["point_round"] = ("point", np.repeat(np.arange(len(rounds)), rounds))
    variables["neighbors"] = (("edge", "end"), mesh_edges(mesh))
    at = _coordinates(mesh.points, ticks)
    grid_points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    coords: dict[str, Any] = dict(zip(dims, zip(dims, axes, strict=True), strict=True))
    coords["displacement"] = (dims, distances(directions, grid_points))
    for j in range(mesh.k):
        coords[f"point_x{j}"] = ("point", at[:, j])
    return xarray.Dataset(variables, coords=coords)


def _interpolated(
    regrid: Regridding, values: np.ndarray, is_loss: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return a variable on the grid: losses by their heights, metrics as they are."""
    if not is_loss:
        return regrid.interpolate(values)
    grid, between = regrid.interpolate(to_heights(values))
    known = regrid.place(values, np.nan)
    return np.where(between, from_heights(grid), known), between
