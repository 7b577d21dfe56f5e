"""What a surface is measured on: landscapes by name, checked axes, the plane."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import InputError, StructureError
from thalweg.instruments.directions import Directions, resolve_point
from thalweg.instruments.sampling import Plane
from thalweg.landscapes import Landscape, NetworkLandscape, combine
from thalweg.provenance import fingerprint

Axis = Sequence[float] | np.ndarray | Tensor
Land = Landscape | Mapping[str, Landscape]
TAKEN = ("status", "displacement", "failed", "interpolated", "neighbors")


def describe_plane(
    kind: str, plane: Plane, directions: Directions
) -> dict[str, object]:
    """Return what a result says about where it was measured."""
    named = plane.landscapes
    return {
        "instrument": kind,
        "landscape": {name: one.describe() for name, one in named.items()},
        "directions": directions.describe(),
        "gram": directions.gram,
        "origin": fingerprint(plane.center),
        "moving_buffers": fingerprint(directions.buffers),
    }


def distances(directions: Directions, coordinates: np.ndarray) -> np.ndarray:
    """Return |sum_j c_j d_j| at coordinates (..., k)."""
    gram = directions.gram.cpu().numpy()
    squared = np.einsum("...i,ij,...j->...", coordinates, gram, coordinates)
    return np.sqrt(np.maximum(squared, 0.0))


def kept_step(
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
    taken = [name for name in TAKEN if name in land]
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


def as_float64(values: Axis) -> np.ndarray:
    """Return values of any kind as a float64 array."""
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
        values = as_float64(axis)
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
