"""Surfaces: a landscape over a grid, or over points, in k directions."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError, StructureError
from thalweg.execution import OnError, Progress, ProgressName
from thalweg.instruments.directions import Directions, as_directions, resolve_point
from thalweg.instruments.sampling import (
    STATUS,
    Plane,
    Quantity,
    classify,
    curvatures,
    gradients,
    losses,
    sample,
)
from thalweg.landscapes import Landscape, LinearMap, NetworkLandscape, combine
from thalweg.provenance import Meter, attributes, fingerprint

if TYPE_CHECKING:
    import xarray

Axis = Sequence[float] | np.ndarray | Tensor
Land = Landscape | Mapping[str, Landscape]
QUIET = ("variances_held",)  # said where it happened only
EXTRA = {"gradient": ("direction",), "curvature": ("direction", "other_direction")}


def surface(
    land: Land,
    directions: Directions | LinearMap,
    axes: Sequence[Axis],
    at: Float[Tensor, " dim"] | None = None,
    *,
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
        store: Directory in which finished chunks are kept; where it holds this
            surface's begin, that is gone on with, to the identical result.
        executor: "local", "process", "process:N", an executor or a futures object.
        progress: "auto", "plain", "none" or a display.
        on_error: "raise", or "record": the point has NaN and status 4.
        threads: torch threads each worker computes with, part of the plan.
        recipe: Builds the landscape in worker processes, as the recipe of a TARGET
            does; without it the landscape is sent to them.

    Returns:
        Dims `x0`, `x1`, ...; variable `loss` (or one a name), the metrics measured in
        the same pass, `status` (0 ok, 1 NaN, 2 +inf, 3 -inf, 4 exception; with several
        landscapes the largest), and provenance in the attributes, `cost` apart.

    Raises:
        InputError: An axis is empty, not finite or not sorted, or the number of axes
            is not that of the directions.
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
    names = [f"x{j}" for j in range(len(grid))]
    return measure_grid(
        "surface",
        losses,
        land,
        directions,
        dict(zip(names, grid, strict=True)),
        at,
        store=store,
        executor=executor,
        progress=progress,
        on_error=on_error,
        threads=threads,
        recipe=recipe,
    )


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
    coordinates = _float64(points)
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
    named, center = plane.landscapes, plane.center
    provenance = {
        "instrument": kind,
        "landscape": {name: one.describe() for name, one in named.items()},
        "directions": directions.describe(),
        "gram": directions.gram,
        "origin": fingerprint(center),
        "moving_buffers": fingerprint(directions.buffers),
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
            recipe=recipe if plane.direct else None,
        )
        meter.add(points=computed)
    failed = arrays.pop("failed").reshape(shape)
    arrays = {n: a for n, a in arrays.items() if n not in QUIET or a.any()}
    variables: dict[str, Any] = {}
    for name in [*named, *(n for n in arrays if n not in named)]:
        array = arrays.get(name, np.full(failed.size, np.nan))
        inner = EXTRA.get(name, ())
        variables[name] = (dims + inner, array.reshape(*shape, *array.shape[1:]))
    statuses = [classify(variables[name][1], failed) for name in named]
    variables["status"] = (dims, np.max(statuses, axis=0).astype(np.int8))
    gram = directions.gram.cpu().numpy()
    squared = np.einsum("pi,ij,pj->p", coordinates, gram, coordinates)
    displacement = np.sqrt(np.maximum(squared, 0.0)).reshape(shape)
    return xarray.Dataset(
        variables,
        coords={**coords, "displacement": (dims, displacement)},
        attrs=attributes(
            seed=directions.seed,
            cost=meter,
            **provenance,
            status_codes=STATUS,
            **_kept_step(plane, coordinates, displacement),
            threads=threads,
        ),
    )


def _kept_step(
    plane: Plane, coordinates: np.ndarray, displacement: np.ndarray
) -> dict[str, object]:
    """Return what half-precision parameters keep of the smallest step, if not all."""
    moved = np.where(displacement.ravel() > 0, displacement.ravel(), np.inf)
    i = int(np.argmin(moved))
    if not np.isfinite(moved[i]):
        return {}
    (point,) = plane.walk(coordinates[i : i + 1])
    kept = {
        name: land.at(plane.center).effective_step(point)
        for name, land in plane.landscapes.items()
        if isinstance(land, NetworkLandscape)
    }
    if all(share == 1 for share in kept.values()):
        return {}
    return {"effective_step": {"displacement": moved[i], "kept": kept}}


def plane_of(land: Land, directions: Directions, at: Tensor | None = None) -> Plane:
    """Return the plane through the center, in the center's dtype."""
    named = _named(land)
    if directions.buffers is not None and at is None:
        return _moving(named, directions)
    center = _center(named, directions, at)
    basis = directions.basis
    if isinstance(basis, Tensor):
        basis = basis.to(center).T.contiguous().T  # columns: one pass writes a point
    return Plane(named, center, basis, direct=isinstance(land, Landscape))


def _moving(named: dict[str, Landscape], directions: Directions) -> Plane:
    """Return the plane over checkpoints whose buffers move with the point.

    It is one of the landscapes between the checkpoints, whose coordinates are the
    affine ones.
    """
    assert directions.origin is not None and directions.buffers is not None
    origin = directions.origin
    anchors = torch.stack(list(directions.anchors.values())).to(origin)
    corners = origin + combine(directions.basis, anchors)
    lands: dict[str, Landscape] = {}
    for name, land in named.items():
        if not isinstance(land, NetworkLandscape):
            raise InputError(
                f"directions with buffers need a NetworkLandscape, {name!r} is a "
                f"{type(land).__name__}"
            )
        states = [
            land.unflatten(corner) | buffers
            for corner, buffers in zip(corners, directions.buffers, strict=True)
        ]
        lands[name] = land.between(*states)
    weights = directions.affine(torch.eye(directions.k + 1, directions.k))[:, 1:]
    center = weights[-1]  # the last row is the origin of the plane
    basis = (weights[:-1] - center).T.to(origin)
    return Plane(lands, center.to(origin), basis, direct=False)


def first(land: Land) -> Landscape:
    """Return the landscape, or the first of several after checking that they agree.

    Raises:
        InputError: There is none, or a name is taken.
        StructureError: Their dimensions differ.
    """
    named = _named(land)
    dims = {name: one.dim for name, one in named.items()}
    if len(set(dims.values())) > 1:
        raise StructureError(f"landscapes must have one dimension, got {dims}")
    return next(iter(named.values()))


def _named(land: Land) -> dict[str, Landscape]:
    if isinstance(land, Landscape):
        return {"loss": land}
    if not land:
        raise InputError("land is an empty dict: give at least one landscape")
    taken = sorted({"status", "displacement", "failed"} & set(land))
    if taken:
        raise InputError(f"{taken[0]!r} is the name of another variable")
    return dict(land)


def _center(
    named: dict[str, Landscape], directions: Directions, at: Tensor | None
) -> Tensor:
    lands = list(named.values())
    center = resolve_point(lands[0], directions, at)
    if at is None and directions.origin is None:
        for name, other in named.items():
            if other.origin is None or not torch.equal(other.origin, center):
                raise InputError(
                    f"landscape {name!r} stands at another point than the first: "
                    "give `at=`"
                )
    return center


def _float64(values: Axis) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def check_axes(axes: Sequence[Axis], k: int) -> list[np.ndarray]:
    """Return the axes as float64 arrays.

    Raises:
        InputError: Not one axis a direction, or one of them is no sorted finite array.
    """
    if len(axes) != k:
        raise InputError(f"axes must be {k}, one a direction, got {len(axes)}")
    grid = []
    for j, axis in enumerate(axes):
        values = _float64(axis)
        if values.ndim != 1 or not values.size:
            raise InputError(
                f"axes[{j}] must be a non-empty 1-D array, got shape {values.shape}"
            )
        if not np.isfinite(values).all():
            raise InputError(f"axes[{j}] must be finite, got {values}")
        steps = np.diff(values)
        if not ((steps > 0).all() or (steps < 0).all()):
            raise InputError(
                f"axes[{j}] must be strictly increasing or decreasing, got {values}"
            )
        grid.append(values)
    return grid
