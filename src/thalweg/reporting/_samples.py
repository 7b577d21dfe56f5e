"""Read a sampled surface for drawing: values on axes, what is missing, how to scale.

Both kinds of figures, interactive and static, are drawn from these.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from thalweg.errors import InputError
from thalweg.reporting._numbers import power_of_ten

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "Samples",
    "Scale",
    "ScaleName",
    "attribute",
    "grid_variables",
    "need",
    "power_text",
    "read_samples",
    "scale_of",
    "ticks",
]

ScaleName: TypeAlias = Literal["auto", "linear", "log"]

# A loss that spans more than this factor is drawn on a logarithmic scale.
_LOG_FROM = 20.0


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
    """

    name: str
    axes: tuple[Float[np.ndarray, " _"], ...]
    values: Float[np.ndarray, "*grid"]
    labels: tuple[str, ...]
    lengths: tuple[float, ...] | None
    anchors: Mapping[str, tuple[float, ...]]

    @property
    def finite(self) -> Bool[np.ndarray, "*grid"]:
        """Where the value is finite."""
        return np.isfinite(self.values)

    def missing(self) -> dict[str, Bool[np.ndarray, "*grid"]]:
        """Where it is not, by what stands there; kinds that do not occur are left out.

        The kinds are "NaN", "+∞" and "−∞".
        """
        kinds = {
            "NaN": np.isnan(self.values),
            "+∞": np.isposinf(self.values),
            "−∞": np.isneginf(self.values),
        }
        return {name: mask for name, mask in kinds.items() if mask.any()}

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
    """Return the sampled variables: all over every axis x0, x1, ..., but the status."""
    axes = grid_axes(dataset)
    return [
        str(name)
        for name, variable in dataset.data_vars.items()
        if axes and variable.dims == axes and name != "status"
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
    directions = attribute(dataset, "directions")
    described = directions if isinstance(directions, Mapping) else {}
    return Samples(
        name=variable,
        axes=tuple(np.asarray(dataset[axis].values, dtype=float) for axis in axes),
        values=np.asarray(dataset[variable].values, dtype=float),
        labels=_labels(axes, described.get("labels") or attribute(dataset, "labels")),
        lengths=_lengths(attribute(dataset, "gram"), len(axes)),
        anchors=_anchors(
            described.get("anchors") or attribute(dataset, "anchors"), len(axes)
        ),
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
class Scale:
    """How values become heights and colors: as they are, or by their logarithm.

    Args:
        log: Whether heights are base-10 logarithms.
        low: Smallest finite value.
        high: Largest finite value, or the level above which values are clipped.
        clipped: How many finite values lie above `high`.
    """

    log: bool
    low: float
    high: float
    clipped: int

    def heights(self, values: Float[np.ndarray, "*grid"]) -> Float[np.ndarray, "*grid"]:
        """Return the heights of the values: NaN where they are not finite."""
        with np.errstate(invalid="ignore"):
            kept = np.where(np.isfinite(values), np.minimum(values, self.high), np.nan)
        return np.log10(kept) if self.log else kept

    @property
    def limits(self) -> tuple[float, float]:
        """Lowest and highest height, apart by more than nothing."""
        low, high = (
            (float(np.log10(bound)) if self.log else bound)
            for bound in (self.low, self.high)
        )
        if high - low > 1e-12 * max(abs(low), abs(high)):
            return low, high
        margin = 0.05 * max(abs(low), 1e-12 if low else 1.0)
        return low - margin, high + margin


def scale_of(
    values: Float[np.ndarray, "*grid"],
    scale: ScaleName = "auto",
    clip: float | None = None,
) -> Scale:
    """Choose the scale of some values; "auto" is "log" for positive ones far apart.

    Raises:
        InputError: "log" was asked for values that are not all positive, or `clip` is
            not above the smallest value.
    """
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return Scale(log=False, low=0.0, high=1.0, clipped=0)
    low, high = float(finite.min()), float(finite.max())
    if clip is not None and not clip > low:
        raise InputError(f"clip must be above the smallest value {low:.6g}, got {clip}")
    top = high if clip is None else min(high, float(clip))
    if scale == "log" and low <= 0:
        raise InputError(
            f"scale 'log' needs positive values, the smallest is {low:.6g}: "
            "use 'linear'"
        )
    log = scale == "log" or (scale == "auto" and low > 0 and top / low > _LOG_FROM)
    return Scale(log, low, top, int((finite > top).sum()))


def ticks(scale: Scale, count: int = 6) -> tuple[list[float], list[str]]:
    """Return heights and texts of about `count` ticks on a scale."""
    low, high = scale.limits
    if not scale.log:
        return _linear_ticks(low, high, count)
    if high - low > 2.5:
        step = max(1, int(np.ceil((high - low) / count)))
        powers = np.arange(np.ceil(low), np.floor(high) + 1, step)
        return [float(p) for p in powers], [power_text(int(p)) for p in powers]
    heights, texts = [], []
    for power in range(int(np.floor(low)), int(np.ceil(high)) + 1):
        for factor in (1, 2, 5):
            value = factor * 10.0**power
            if low - 1e-9 <= np.log10(value) <= high + 1e-9:
                heights.append(float(np.log10(value)))
                texts.append(f"{value:.6g}")
    return heights, texts


def _linear_ticks(low: float, high: float, count: int) -> tuple[list[float], list[str]]:
    raw = (high - low) / count
    power = 10.0 ** np.floor(np.log10(raw))
    step = power * min((1, 2, 5, 10), key=lambda factor: abs(factor * power - raw))
    heights = np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
    return [float(h) for h in heights], [f"{h:.6g}" for h in heights]


def power_text(power: int) -> str:
    """Return a power of ten as it stands at a tick: 0.01, 1, 100, 10⁴."""
    if -2 <= power <= 3:
        return f"{10.0**power:.6g}"
    return power_of_ten(power)
