"""Read datasets for drawing: surfaces, lines, eigenvalues, layers.

Both kinds of figures, interactive and static, are drawn from these.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from thalweg.errors import InputError
from thalweg.reporting._scales import SymmetricLog

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "FADED_FROM",
    "Lines",
    "Refined",
    "Samples",
    "Scattered",
    "attribute",
    "cell_edges",
    "grid_axes",
    "grid_variables",
    "need",
    "read_density",
    "read_eigenvalues",
    "read_layers",
    "read_lines",
    "read_pairs",
    "read_samples",
    "read_scattered",
]
# Densities below this share of the highest are not drawn: they are Gaussian tails.
_FLOOR = 1e-7
#: A trajectory's points farther than this from the plane are faded.
FADED_FROM = 0.5
_MASKS = ("status", "interpolated")
_PENDING = 5  # status of a place where nothing was evaluated or interpolated


@dataclass(frozen=True)
class Refined:
    """Where an adaptive surface was evaluated, and where it is only interpolated.

    Args:
        interpolated: Places of the grid between evaluated points.
        unknown: Places in cells with a point that is not finite: nothing is known.
        points: Coordinates of the evaluated points.
        rounds: The round each was evaluated in, 0 for the coarse grid.
        values: The variable there.
    """

    interpolated: Bool[np.ndarray, "*grid"]
    unknown: Bool[np.ndarray, "*grid"]
    points: Float[np.ndarray, "points k"]
    rounds: Int[np.ndarray, " points"]
    values: Float[np.ndarray, " points"]


@dataclass(frozen=True)
class Samples:
    """A variable sampled on a grid, as the figures want it.

    Args:
        name: Name of the variable.
        axes: One array of coordinates a dimension.
        values: The samples, NaN and the infinities as they are.
        labels: One axis title a dimension.
        lengths: Length of each direction in parameter distance, or None if unknown.
        anchors: Named points -> their coordinates.
        refined: Where the samples of an adaptive surface come from.
    """

    name: str
    axes: tuple[Float[np.ndarray, " _"], ...]
    values: Float[np.ndarray, "*grid"]
    labels: tuple[str, ...]
    lengths: tuple[float, ...] | None
    anchors: Mapping[str, tuple[float, ...]]
    refined: Refined | None = None

    @property
    def finite(self) -> Bool[np.ndarray, "*grid"]:
        """Where the value is finite."""
        return np.isfinite(self.values)

    def missing(self) -> dict[str, Bool[np.ndarray, "*grid"]]:
        """Where it is not, by what stands there; kinds that do not occur are left out.

        The kinds are "NaN", "+∞" and "−∞"; what was not evaluated is none of them.
        """
        nan = np.isnan(self.values)
        kinds = {
            "NaN": nan if self.refined is None else nan & ~self.refined.unknown,
            "+∞": np.isposinf(self.values),
            "−∞": np.isneginf(self.values),
        }
        return {name: mask for name, mask in kinds.items() if mask.any()}

    def points(self) -> dict[str, tuple[float, ...]]:
        """Return the named points: the anchors, and the center where it is inside."""
        inside = all(axis.min() <= 0 <= axis.max() for axis in self.axes)
        center = {"center": (0.0,) * len(self.axes)} if inside else {}
        return {**center, **self.anchors}

    def aspect(self) -> float | None:
        """Return units of x0 that equal one of x1 in parameter distance, or None.

        None where the lengths are unknown, or differ so that equal axes would squeeze
        one of them below a quarter of the other.
        """
        if self.lengths is None or len(self.lengths) != 2 or min(self.lengths) <= 0:
            return None
        spans = [
            length * np.ptp(axis)
            for length, axis in zip(self.lengths, self.axes, strict=True)
        ]
        if min(spans) <= 0 or max(spans) > 4 * min(spans):
            return None
        return self.lengths[1] / self.lengths[0]


def cell_edges(axis: Float[np.ndarray, " points"]) -> Float[np.ndarray, " edges"]:
    """Return the borders of the cells around the coordinates, one more than those."""
    if len(axis) == 1:
        return axis[0] + np.array([-0.5, 0.5])
    middles = (axis[1:] + axis[:-1]) / 2
    ends = [2 * axis[0] - middles[0]], [2 * axis[-1] - middles[-1]]
    return np.concatenate([ends[0], middles, ends[1]])


def attribute(dataset: "xr.Dataset", name: str) -> object:
    """Return an attribute, read from its JSON where it is some; None where absent."""
    entry = dataset.attrs.get(name)
    if not isinstance(entry, str):
        return entry
    try:
        return json.loads(entry)
    except json.JSONDecodeError:
        return entry


def need(dataset: "xr.Dataset", *names: str) -> None:
    """Refuse a dataset that lacks variables.

    Raises:
        InputError: One is missing; the message lists what there is.
    """
    missing = [name for name in names if name not in dataset.variables]
    if missing:
        there = ", ".join(map(str, dataset.variables)) or "none"
        raise InputError(
            f"the dataset lacks the variable {missing[0]!r}; its variables are: {there}"
        )


def grid_variables(dataset: "xr.Dataset") -> list[str]:
    """Return the sampled variables: all over every axis x0, x1, ..., but the masks."""
    axes = grid_axes(dataset)
    return [
        str(name)
        for name, variable in dataset.data_vars.items()
        if axes and variable.dims == axes and name not in _MASKS
    ]


def grid_axes(dataset: "xr.Dataset") -> tuple[str, ...]:
    """Return the axes x0, x1, ... that the dataset has, in this order."""
    axes = [f"x{j}" for j in range(len(dataset.sizes))]
    return tuple(axis for axis in axes if axis in dataset.sizes)


def read_samples(dataset: "xr.Dataset", variable: str | None = None) -> Samples:
    """Return a variable of a surface dataset; `loss`, or else the first, by default.

    Raises:
        InputError: There is no such variable over the axes x0, x1, ...
    """
    axes = grid_axes(dataset)
    found = grid_variables(dataset)
    if not found:
        there = ", ".join(map(str, dataset.variables)) or "none"
        raise InputError(
            "the dataset has no variable over axes x0, x1, ...; its variables are: "
            f"{there}"
        )
    if variable is None:
        variable = "loss" if "loss" in found else found[0]
    if variable not in found:
        raise InputError(
            f"variable must be one of {', '.join(found)}, got {variable!r}"
        )
    described = _described(dataset)
    return Samples(
        name=variable,
        axes=tuple(np.asarray(dataset[axis].values, dtype=float) for axis in axes),
        values=np.asarray(dataset[variable].values, dtype=float),
        labels=_labels(axes, described.get("labels")),
        lengths=_lengths(attribute(dataset, "gram"), len(axes)),
        anchors=_anchors(described.get("anchors"), len(axes)),
        refined=_refined(dataset, axes, variable),
    )


def _refined(
    dataset: "xr.Dataset", axes: Sequence[str], variable: str
) -> Refined | None:
    columns = [f"point_{axis}" for axis in axes]
    needed = ["interpolated", "status", "point_round", f"point_{variable}", *columns]
    if any(name not in dataset.variables for name in needed):
        return None
    return Refined(
        interpolated=dataset["interpolated"].values.astype(bool),
        unknown=dataset["status"].values == _PENDING,
        points=np.stack([dataset[name].values for name in columns], axis=1),
        rounds=dataset["point_round"].values,
        values=np.asarray(dataset[f"point_{variable}"].values, dtype=float),
    )


def _labels(axes: Sequence[str], labels: object) -> tuple[str, ...]:
    given = list(labels) if isinstance(labels, Sequence) else []
    if isinstance(labels, str) or len(given) != len(axes):
        return tuple(f"direction {j + 1}" for j in range(len(axes)))
    return tuple(str(label) for label in given)


def _lengths(gram: object, k: int) -> tuple[float, ...] | None:
    matrix = np.asarray(gram, dtype=float) if gram is not None else np.empty(0)
    if matrix.size != k * k:
        return None
    return tuple(float(entry) for entry in np.sqrt(np.diag(matrix.reshape(k, k))))


def _anchors(anchors: object, k: int) -> dict[str, tuple[float, ...]]:
    if not isinstance(anchors, Mapping):
        return {}
    points = {str(name): np.ravel(point) for name, point in anchors.items()}
    return {
        name: tuple(float(c) for c in point)
        for name, point in points.items()
        if len(point) == k
    }


@dataclass(frozen=True)
class Scattered:
    """A variable sampled at points along one dim, each with coordinates x0, x1, ..."""

    name: str
    dim: str
    coordinates: Float[np.ndarray, "points k"]
    values: Float[np.ndarray, " points"]


def read_scattered(dataset: "xr.Dataset", variable: str | None = None) -> Scattered:
    """Return a variable of scattered points; `loss`, or else the first, by default.

    Raises:
        InputError: There is no such variable along the dim of the coordinate x0.
    """
    need(dataset, "x0")
    dims = dataset["x0"].dims
    found = [
        str(name)
        for name, one in dataset.data_vars.items()
        if one.dims == dims and name != "status" and one.dtype.kind in "biuf"
    ]
    if variable is None:
        variable = "loss" if "loss" in found or not found else found[0]
    if variable not in found:
        raise InputError(
            f"variable must be one of {', '.join(found) or '(there is none)'}, got "
            f"{variable!r}"
        )
    names = [f"x{j}" for j in range(len(dataset.coords))]
    axes = [name for name in names if name in dataset.coords]
    columns = [np.asarray(dataset[name].values, dtype=float) for name in axes]
    values = np.asarray(dataset[variable].values, dtype=float)
    return Scattered(variable, str(dims[0]), np.stack(columns, axis=-1), values)


@dataclass(frozen=True)
class Lines:
    """Lines over one axis: coordinates, values by name, axis titles."""

    x: Float[np.ndarray, " points"]
    lines: Mapping[str, Float[np.ndarray, " _"]]
    x_label: str
    y_label: str


def read_lines(dataset: "xr.Dataset", variable: str | None = None) -> Lines:
    """Return the lines of a dataset over `t` or `x0`.

    By default of the variable `loss`, or of all that are sampled where there is none. A
    second dim, such as `pair`, gives one line for each of its entries.

    Raises:
        InputError: There is no such axis, or no such variable along it.
    """
    axis = next((name for name in ("t", "x0") if name in dataset.sizes), None)
    names = [
        str(name)
        for name, one in dataset.data_vars.items()
        if axis in one.dims and len(one.dims) <= 2 and name not in _MASKS
    ]
    if axis is None or not names:
        there = ", ".join(map(str, dataset.variables)) or "none"
        raise InputError(
            f"the dataset has no variable over t or x0; its variables are: {there}"
        )
    if variable is None:
        names = ["loss"] if "loss" in names else names
    elif variable in names:
        names = [variable]
    else:
        raise InputError(
            f"variable must be one of {', '.join(names)}, got {variable!r}"
        )
    lines: dict[str, np.ndarray] = {}
    for name in names:
        sampled = dataset[name].transpose(..., axis)
        values = np.asarray(sampled.values, dtype=float)
        if values.ndim == 1:
            lines[name] = values
            continue
        other = sampled.dims[0]
        entries = sampled[other].values if other in sampled.coords else None
        for index, row in enumerate(values):
            label = str(entries[index]) if entries is not None else f"{other} {index}"
            lines[label if "loss" in names else f"{name}, {label}"] = row
    x = np.asarray(dataset[axis].values, dtype=float)
    labels = _labels((axis,), _described(dataset).get("labels"))
    x_label = "position t from a to b" if axis == "t" else labels[0]
    return Lines(x, lines, x_label, "loss" if "loss" in names else "")


def read_eigenvalues(
    dataset: "xr.Dataset",
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Return `value`, and `residual` and `converged` where they are there.

    Raises:
        InputError: The dataset lacks `value`.
    """
    need(dataset, "value")
    found = [
        np.atleast_1d(dataset[name].values) if name in dataset.variables else None
        for name in ("value", "residual", "converged")
    ]
    values, residuals, converged = found
    return np.asarray(values, dtype=float), residuals, converged


def read_layers(
    dataset: "xr.Dataset",
) -> tuple[list[str], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return names of layers, `trace` and `top_eigenvalue`, and their errors.

    Raises:
        InputError: The dataset lacks `layer`.
    """
    need(dataset, "layer")
    values, errors = {}, {}
    for name in ("trace", "top_eigenvalue"):
        label = name.replace("_", " ")
        if name in dataset.variables:
            values[label] = np.asarray(dataset[name].values, dtype=float)
        if f"{name}_stderr" in dataset.variables:
            errors[label] = np.asarray(dataset[f"{name}_stderr"].values, dtype=float)
    return [str(name) for name in dataset["layer"].values], values, errors


def _described(dataset: "xr.Dataset") -> Mapping[str, object]:
    """Return what the dataset says about its directions."""
    described = attribute(dataset, "directions")
    return described if isinstance(described, Mapping) else {}


def read_density(
    dataset: "xr.Dataset",
) -> tuple[np.ndarray, np.ndarray, SymmetricLog]:
    """Return t, the density floored where it is too small to draw, and the axis.

    The axis is linear below the density's resolution sigma.

    Raises:
        InputError: The dataset lacks `t` or `density`.
    """
    need(dataset, "t", "density")
    t = np.asarray(dataset["t"].values, dtype=float)
    density = np.asarray(dataset["density"].values, dtype=float)
    if t.min() < 0 < t.max() and 0.0 not in t:  # both sides meet at zero
        place = int(np.searchsorted(t, 0.0))
        density = np.insert(density, place, np.interp(0.0, t, density))
        t = np.insert(t, place, 0.0)
    top = float(np.nanmax(density)) if np.isfinite(density).any() else 1.0
    extent = float(np.abs(t).max()) or 1.0
    sigma = attribute(dataset, "sigma")
    threshold = extent * 1e-2
    if isinstance(sigma, int | float) and 0 < sigma < extent:
        threshold = float(sigma)
    floored = np.maximum(density, _FLOOR * (top or 1.0))
    return t, floored, SymmetricLog(threshold, extent)


def read_pairs(
    table: "xr.Dataset | Mapping[str, object]",
) -> tuple[Float[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]:
    """Return births and deaths of a persistence table, most persistent first.

    Raises:
        InputError: The table lacks `birth` or `death`.
    """
    for name in ("birth", "death"):
        if name not in table:
            raise InputError(
                f"the table lacks {name!r}; it has: {', '.join(map(str, table))}"
            )
    births = np.ravel(np.asarray(table["birth"], dtype=float))
    deaths = np.ravel(np.asarray(table["death"], dtype=float))
    order = np.argsort(-(deaths - births), kind="stable")
    return births[order], deaths[order]
