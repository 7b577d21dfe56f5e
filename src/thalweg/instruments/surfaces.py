"""Surfaces: a landscape over a grid, or over points, in k directions."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError
from thalweg.execution import OnError, Progress, ProgressName
from thalweg.instruments.adaptive import adaptive_surface
from thalweg.instruments.directions import Directions, as_directions
from thalweg.instruments.plane_setup import (
    Axis,
    Land,
    as_float64,
    check_axes,
    describe_plane,
    distances,
    first,
    kept_step,
    plane_of,
)
from thalweg.instruments.refinement import Refine
from thalweg.instruments.sampling import (
    QUIET,
    STATUS,
    Quantity,
    curvatures,
    gradients,
    losses,
    sample,
    worst_status,
)
from thalweg.landscapes import Landscape, LinearMap
from thalweg.provenance import Meter, attributes, fingerprint

if TYPE_CHECKING:
    import xarray

EXTRA = {"gradient": ("direction",), "curvature": ("direction", "other_direction")}


def surface(
    land: Land,
    directions: Directions | LinearMap,
    axes: Sequence[Axis],
    at: Float[Tensor, " dim"] | None = None,
    *,
    refine: Refine | None = None,
    store: str | Path | None = None,
    executor: Any = None,
    progress: ProgressName | Progress | None = None,
    on_error: OnError = "raise",
    threads: int = 1,
    recipe: Callable[[], Landscape] | None = None,
) -> "xarray.Dataset":
    """Evaluate the loss on a grid in k directions: loss(center + sum_j c_j d_j).

    Every point is built from the center anew, so no rounding drifts along a row. The
    coordinate is the multiplier of the direction as it stands; the distance moved,
    |sum_j c_j d_j|, is the coordinate `displacement`. Costs one evaluation a point.

    Args:
        land: A landscape, or several of one dimension by name.
        directions: k directions.
        axes: k arrays of coordinates, each strictly increasing or decreasing.
        at: The center; by default the plane's origin, else the landscape's.
        refine: Where to add points to the grid of `axes`, which then is the coarse one
            to begin with: see Returns.
        store: Directory in which finished chunks are kept; where it holds this
            surface's begin, that is gone on with, to the identical result.
        executor: "local", "process", "process:N", "ray", "ray:N", an executor
            (`thalweg.execution.RayExecutor(address="auto")`) or a futures object.
        progress: "auto", "plain", "none" or a display.
        on_error: "raise", or "record": the point has NaN and status 4.
        threads: torch threads each worker computes with, part of the plan.
        recipe: Builds the landscape in worker processes, as the recipe of a TARGET
            does; without it the landscape is sent to them.

    Returns:
        Dims `x0`, `x1`, ...; variable `loss` (or one a name), the metrics measured in
        the same pass, `status` (0 ok, 1 NaN, 2 +inf, 3 -inf, 4 exception; with several
        landscapes the largest), and provenance in the attributes, `cost` apart.

        With `refine` the points evaluated lie along the dim `point`: `point_loss` (and
        the metrics likewise), `point_status`, `point_round` (0 is the coarse grid),
        coordinates `point_x0`, ...; `neighbors` (edge, 2) joins those that follow one
        another on an edge of a cell. `loss` is on the regular grid of the smallest
        steps: where the mask `interpolated` is set, it is linear in log(1 + loss)
        between the points of the cell around. In a cell with a point that is not
        finite nothing is interpolated: NaN, and status 5.

    Raises:
        InputError: An axis is empty, not finite or not sorted, the number of axes is
            not that of the directions, or the grid cannot be refined as asked.
        StructureError: Directions or landscapes of another dimension.
        StoreError: The store holds something else.
        ExecutionError: A point failed, named by its chunk.

    Examples:
        >>> from thalweg.landscapes import Quadratic
        >>> bowl = Quadratic(torch.diag(torch.tensor([2.0, 4.0])))
        >>> grid = surface(bowl, torch.eye(2), [[-1.0, 0.0, 1.0], [0.0, 1.0]])
        >>> grid["loss"].values.tolist()
        [[1.0, 3.0], [0.0, 2.0], [1.0, 3.0]]
    """
    directions = as_directions(directions, first(land))
    grid = check_axes(axes, directions.k)
    settings: dict[str, Any] = {
        "store": store,
        "executor": executor,
        "progress": progress,
        "on_error": on_error,
        "threads": threads,
        "recipe": recipe,
    }
    if refine is not None:
        if not isinstance(refine, Refine):
            raise InputError(
                f"refine must be ti.Refine(max_points=...), got {refine!r}"
            )
        return adaptive_surface(land, directions, grid, refine, at, **settings)
    named = {f"x{j}": axis for j, axis in enumerate(grid)}
    return measure_grid("surface", losses, land, directions, named, at, **settings)


def surface_at_points(
    land: Land,
    directions: Directions | LinearMap,
    points: Float[np.ndarray, "points k"] | Float[Tensor, "points k"],
    at: Float[Tensor, " dim"] | None = None,
    *,
    store: str | Path | None = None,
    executor: Any = None,
    progress: ProgressName | Progress | None = None,
    on_error: OnError = "raise",
    threads: int = 1,
    recipe: Callable[[], Landscape] | None = None,
) -> "xarray.Dataset":
    """Evaluate the loss at scattered coordinates (M, k) of the directions.

    As `surface`, with the one dim `point` and the coordinates `x0`, `x1`, ... along it.

    Raises:
        InputError: The coordinates are not (M, k), empty or not finite.
    """
    directions = as_directions(directions, first(land))
    coordinates = as_float64(points)
    if coordinates.ndim != 2 or coordinates.shape[1] != directions.k:
        raise InputError(
            f"points must have shape (M, {directions.k}), one column a direction, got "
            f"{coordinates.shape}"
        )
    if not len(coordinates) or not np.isfinite(coordinates).all():
        raise InputError("points must be finite and at least one")
    return _measured(
        "points",
        losses,
        land,
        directions,
        coordinates,
        ("point",),
        (len(coordinates),),
        {f"x{j}": ("point", coordinates[:, j]) for j in range(directions.k)},
        at,
        store=store,
        executor=executor,
        progress=progress,
        on_error=on_error,
        threads=threads,
        recipe=recipe,
    )


def gradient_on_plane(
    land: Landscape,
    directions: Directions | LinearMap,
    axes: Sequence[Axis],
    at: Float[Tensor, " dim"] | None = None,
    **settings: Any,
) -> "xarray.Dataset":
    """Evaluate the gradient along the directions, Dᵀ g, on a grid.

    As `surface` with the variable `gradient`, dims (x0, x1, ..., direction). It is the
    gradient of the surface itself; |g| may be much larger. One backward pass a point.
    """
    directions = as_directions(directions, land)
    axes = check_axes(axes, directions.k)
    grid = {f"x{j}": axis for j, axis in enumerate(axes)}
    return measure_grid("gradient", gradients, land, directions, grid, at, **settings)


def curvature_on_plane(
    land: Landscape,
    directions: Directions | LinearMap,
    axes: Sequence[Axis],
    at: Float[Tensor, " dim"] | None = None,
    **settings: Any,
) -> "xarray.Dataset":
    """Evaluate the curvature in the plane, Dᵀ H D, on a grid.

    As `surface` with the variable `curvature`, dims (x0, x1, ..., direction,
    other_direction). k Hessian products a point.
    """
    directions = as_directions(directions, land)
    axes = check_axes(axes, directions.k)
    grid = {f"x{j}": axis for j, axis in enumerate(axes)}
    return measure_grid("curvature", curvatures, land, directions, grid, at, **settings)


def measure_grid(
    kind: str,
    quantity: Quantity,
    land: Land,
    directions: Directions,
    axes: dict[str, np.ndarray],
    at: Tensor | None,
    **settings: Any,
) -> "xarray.Dataset":
    """Return a quantity on the grid of named axes."""
    mesh = np.meshgrid(*axes.values(), indexing="ij")
    coordinates = np.stack(mesh, axis=-1).reshape(-1, len(axes))
    coords: dict[str, Any] = {name: (name, axis) for name, axis in axes.items()}
    return _measured(
        kind,
        quantity,
        land,
        directions,
        coordinates,
        tuple(axes),
        tuple(axis.size for axis in axes.values()),
        coords,
        at,
        **settings,
    )


def _measured(
    kind: str,
    quantity: Quantity,
    land: Land,
    directions: Directions,
    coordinates: np.ndarray,
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    coords: dict[str, Any],
    at: Tensor | None,
    *,
    on_error: OnError = "raise",
    threads: int = 1,
    store: str | Path | None = None,
    executor: Any = None,
    progress: ProgressName | Progress | None = None,
    recipe: Callable[[], Landscape] | None = None,
) -> "xarray.Dataset":
    import xarray

    plane = plane_of(land, directions, at)
    named = plane.landscapes
    provenance = {
        **describe_plane(kind, plane, directions),
        "grid": fingerprint(coordinates),
    }
    with Meter() as meter:
        arrays, computed = sample(
            plane,
            coordinates,
            quantity,
            {**provenance, "axes": [coords[d][1] for d in dims if d in coords]},
            store=store,
            executor=executor,
            progress=progress,
            on_error=on_error,
            threads=threads,
            recipe=recipe,
        )
        meter.add(points=computed)
    failed = arrays.pop("failed").reshape(shape)
    arrays = {n: a for n, a in arrays.items() if n not in QUIET or a.any()}
    variables: dict[str, Any] = {}
    for name in [*named, *(n for n in arrays if n not in named)]:
        array = arrays.get(name, np.full(failed.size, np.nan))
        inner = EXTRA.get(name, ())
        variables[name] = (dims + inner, array.reshape(*shape, *array.shape[1:]))
    status = worst_status([variables[name][1] for name in named], failed)
    variables["status"] = (dims, status)
    displacement = distances(directions, coordinates).reshape(shape)
    return xarray.Dataset(
        variables,
        coords={**coords, "displacement": (dims, displacement)},
        attrs=attributes(
            seed=directions.seed,
            cost=meter,
            **provenance,
            status_codes=STATUS,
            **kept_step(plane, coordinates, displacement),
            threads=threads,
        ),
    )
