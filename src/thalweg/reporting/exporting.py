"""Datasets as files of other programs, chosen by the suffix."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, get_args

import numpy as np
from jaxtyping import Float

from thalweg.errors import DataWarning, InputError
from thalweg.execution import atomic_file, save_dataset
from thalweg.reporting._samples import (
    grid_axes,
    grid_variables,
    read_lines,
    read_samples,
    read_scattered,
)
from thalweg.reporting._scales import Scale, ScaleName, scale_of
from thalweg.reporting._vtk import Encoding, poly_data, structured_grid
from thalweg.reporting.static import PICTURES, save_figure

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["check_suffix", "export"]


class _Wanted(NamedTuple):
    """What is asked of a VTK file."""

    variable: str | None
    scale: ScaleName
    clip: float | None
    encoding: Encoding


_Writer: TypeAlias = Callable[["xr.Dataset", _Wanted], bytes]
_SUFFIXES = (".nc", ".zarr", ".vts", ".vtp", *PICTURES)
_ACCEPTED = (
    ".nc or .zarr (the whole dataset), .vts (a surface) or .vtp (points and lines) for "
    f"ParaView, {', '.join(PICTURES)} (a figure)"
)


def check_suffix(path: str | os.PathLike[str]) -> str:
    """Return the suffix that chooses the format of `export`.

    Raises:
        InputError: It is none of those.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise InputError(f"path must end in {_ACCEPTED}; got {Path(path).name!r}")
    return suffix


def export(
    dataset: "xr.Dataset",
    path: str | os.PathLike[str],
    *,
    variable: str | None = None,
    scale: ScaleName = "auto",
    clip: float | None = None,
    encoding: Encoding = "base64",
) -> Path:
    """Write a dataset in the format of the path's suffix, and return the path.

    - `.nc` (NetCDF 4), `.zarr`: everything, bit for bit: NaN, infinities, signed zeros
      and 64-bit integers too. Read it with `thalweg.execution.load_dataset`.
    - `.vts`: a surface over two directions as a structured grid at (x0, x1, height), or
      a sample of three directions at (x0, x1, x2). ParaView opens it.
    - `.vtp`: scattered points at (x0, x1, height), of an adaptive surface those where
      it was evaluated; with the dim `step` they are a path, joined in order; a line
      over `t` or x0 stands upright at (x, 0, height).
    - `.png`, `.svg`, `.pdf`: the figure of `save_figure`, which has more options.

    The height is the value, or its base-10 logarithm, as the figures have it; the
    file's arrays hold the values as they are, every other variable, and the height.
    Where a value is not finite there is no height: such points lie at the lowest one,
    hidden (`vtkGhostType`) with the cells around them in a .vts, in no vertex or line
    in a .vtp; a `DataWarning` counts them.

    Args:
        dataset: A surface, a line, scattered points; for the other formats any result.
        path: File to write, replaced where it exists; its folder is made.
        variable: What the height or the figure shows; `loss`, or else the first.
        scale: "log" heights for positive values, "linear", or "auto": "log" where
            values are positive and far apart.
        clip: Values above have this height.
        encoding: Of VTK files: "base64", or "ascii" to read by eye, which arrays with
            NaN or infinities are kept out of (VTK misreads them there). Either keeps
            every bit.

    Raises:
        InputError: The suffix is none of these, or the dataset does not go into that
            format.
    """
    target = Path(path)
    suffix = check_suffix(target)
    if suffix in PICTURES:
        return save_figure(dataset, target, variable=variable, scale=scale, clip=clip)
    if encoding not in get_args(Encoding):
        raise InputError(f"encoding must be 'base64' or 'ascii', got {encoding!r}")
    if suffix in (".nc", ".zarr"):
        target.parent.mkdir(parents=True, exist_ok=True)
        save_dataset(dataset, target)
        return target
    if suffix == ".vtp" and "point_x0" in dataset.coords:
        dataset = _evaluated(dataset)
    writer = _structured if suffix == ".vts" else _unstructured(dataset)
    content = writer(dataset, _Wanted(variable, scale, clip, encoding))
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(target) as file:
        file.write(content)
    return target


def _structured(dataset: "xr.Dataset", wanted: _Wanted) -> bytes:
    if not grid_variables(dataset) and _is_scattered(dataset):
        raise InputError("a .vts is a grid; scattered points go into a .vtp")
    samples = read_samples(dataset, wanted.variable)
    k = len(samples.axes)
    if k not in (2, 3):
        advice = ": a line goes into a .vtp" if k == 1 else ""
        raise InputError(
            f"a .vts is a surface over 2 or 3 axes, the dataset has {k}{advice}"
        )
    how = scale_of(samples.values, wanted.scale, wanted.clip)
    coordinates = [*np.meshgrid(*samples.axes, indexing="ij")]
    arrays = _arrays(dataset, grid_axes(dataset), samples.name)
    if k == 2:
        coordinates.append(_height(samples.values, how, arrays))
    points = np.stack(coordinates, axis=-1)
    shape = (*samples.values.shape, 1)[:3]
    hidden = ~samples.finite
    _tell(samples.name, hidden)
    return structured_grid(
        points.reshape(*shape, 3),
        {name: array.reshape(shape) for name, array in arrays.items()},
        hidden.reshape(shape),
        _notes(dataset, samples.name, how, hidden),
        wanted.encoding,
    )


def _scattered(dataset: "xr.Dataset", wanted: _Wanted) -> bytes:
    samples = read_scattered(dataset, wanted.variable)
    count, k = samples.coordinates.shape
    if k > 3:
        raise InputError(f"a .vtp has points in 1 to 3 axes, the dataset has {k}")
    how = scale_of(samples.values, wanted.scale, wanted.clip)
    arrays = _arrays(dataset, (samples.dim,), samples.name)
    points = np.zeros((count, 3))
    points[:, :k] = samples.coordinates
    if k < 3:
        points[:, 2] = _height(samples.values, how, arrays)
    finite = np.isfinite(samples.values)
    _tell(samples.name, ~finite)
    order = np.arange(count)
    return poly_data(
        points,
        arrays,
        order[finite],
        _runs(finite, order) if samples.dim == "step" else [],
        _notes(dataset, samples.name, how, ~finite),
        wanted.encoding,
    )


def _lines(dataset: "xr.Dataset", wanted: _Wanted) -> bytes:
    sampled = read_lines(dataset, wanted.variable)
    values = np.concatenate(list(sampled.lines.values()))
    how = scale_of(values, wanted.scale, wanted.clip)
    count = len(sampled.lines)
    name = next(iter(sampled.lines)) if count == 1 else sampled.y_label or "value"
    arrays = {name: values}
    points = np.zeros((len(values), 3))
    points[:, 0] = np.tile(sampled.x, count)
    points[:, 2] = _height(values, how, arrays)
    arrays["line"] = np.repeat(np.arange(count), len(sampled.x))
    finite = np.isfinite(values)
    _tell(name, ~finite)
    order = np.arange(len(values)).reshape(count, -1)
    lines = [run for row in order for run in _runs(finite[row], row)]
    notes = _notes(dataset, name, how, ~finite)
    notes["lines"] = "\n".join(sampled.lines)
    return poly_data(
        points, arrays, order[:, :0].ravel(), lines, notes, wanted.encoding
    )


def _evaluated(dataset: "xr.Dataset") -> "xr.Dataset":
    """Return the points of an adaptive surface where it was not interpolated."""
    names = {
        str(name): str(name).removeprefix("point_")
        for name, variable in dataset.variables.items()
        if variable.dims == ("point",)
    }
    return dataset[list(names)].rename(names)


def _unstructured(dataset: "xr.Dataset") -> _Writer:
    if _is_scattered(dataset):
        return _scattered
    axes = grid_axes(dataset)
    if len(axes) > 1:
        raise InputError(
            f"a .vtp holds points and lines; a surface over {len(axes)} axes goes into "
            "a .vts"
        )
    return _lines


def _is_scattered(dataset: "xr.Dataset") -> bool:
    return "x0" in dataset.coords and dataset["x0"].dims not in ((), ("x0",))


def _arrays(
    dataset: "xr.Dataset", dims: tuple[str, ...], first: str
) -> dict[str, np.ndarray]:
    """Return every number along these dims, the drawn variable first."""
    names = [first, *(str(name) for name in dataset.variables if name != first)]
    found = {
        name: dataset[name].values
        for name in names
        if dataset[name].dims == dims and dataset[name].dtype.kind in "biuf"
    }
    return {
        name: array.astype(np.float32) if array.dtype == np.float16 else array
        for name, array in found.items()
        if name not in dims
    }


def _height(
    values: Float[np.ndarray, "*shape"], how: Scale, arrays: dict[str, np.ndarray]
) -> Float[np.ndarray, "*shape"]:
    """Return finite heights, and put them beside the values where they differ."""
    heights = how.heights(values)
    if how.log or how.clipped:
        arrays["height"] = heights
    return np.where(np.isfinite(heights), heights, how.limits[0])


def _runs(finite: np.ndarray, order: np.ndarray) -> list[np.ndarray]:
    """Return the stretches of at least two points without a gap."""
    borders = np.flatnonzero(np.diff(finite.astype(int))) + 1
    parts = np.split(np.arange(len(finite)), borders)
    return [order[part] for part in parts if len(part) > 1 and finite[part[0]]]


def _tell(name: str, hidden: np.ndarray) -> None:
    if hidden.any():
        warnings.warn(_gaps(name, hidden), DataWarning, stacklevel=4)


def _gaps(name: str, hidden: np.ndarray) -> str:
    return (
        f"{name} is not finite at {int(hidden.sum())} of {hidden.size} points: they "
        "are hidden, and keep their values in the file's arrays"
    )


def _notes(
    dataset: "xr.Dataset", name: str, how: Scale, hidden: np.ndarray
) -> dict[str, str]:
    """Return what the file says about itself, beside the dataset's attributes."""
    words = [f"The height is {'log10 of ' if how.log else ''}{name}."]
    if how.clipped:
        words.append(f"{how.clipped} values above {how.high:.6g} are drawn at it.")
    if hidden.any():
        words.append(f"{_gaps(name, hidden)}.")
    attributes = {str(key): str(value) for key, value in dataset.attrs.items()}
    return {"note": " ".join(words), **attributes}
