"""Static figures of datasets as PNG, SVG or PDF files, drawn by matplotlib.

Every figure is made for itself: no global state of matplotlib is read or changed but
its defaults.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Float

from thalweg.errors import InputError
from thalweg.execution import atomic_file
from thalweg.reporting._samples import (
    FADED_FROM,
    Samples,
    cell_edges,
    grid_axes,
    grid_variables,
    read_density,
    read_eigenvalues,
    read_lines,
    read_pairs,
    read_samples,
)
from thalweg.reporting._scales import Scale, ScaleName, scale_of, ticks
from thalweg.reporting._tracking import is_tracking, read_tracking
from thalweg.reporting.figures.theme import COLORS

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "PICTURES",
    "PictureKind",
    "draw_flat",
    "new_figure",
    "reach",
    "save_figure",
]

#: Suffixes of pictures, and what keeps the time out of the file.
PICTURES = {
    ".png": {},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}
PictureKind: TypeAlias = Literal[
    "auto", "contour", "cells", "3d", "line", "spectrum", "eigenvalues", "persistence",
    "tracking",
]  # fmt: skip

_MARKS = {"NaN": "x", "+∞": "^", "−∞": "v"}


def save_figure(
    dataset: "xr.Dataset",
    path: str | os.PathLike[str],
    kind: PictureKind = "auto",
    *,
    variable: str | None = None,
    scale: ScaleName = "auto",
    clip: float | None = None,
    trajectory: Float[np.ndarray, "steps 2"] | None = None,
    residuals: Float[np.ndarray, " steps"] | None = None,
    dpi: int = 150,
) -> Path:
    """Draw a dataset as a .png, .svg or .pdf file and return its path.

    Args:
        dataset: A surface or a line, a spectral density, eigenvalues, a persistence
            table, or what a tracker measured.
        path: File to write; its folder is made.
        kind: "contour", "cells" or "3d" for a surface over two directions, "line",
            "spectrum", "eigenvalues", "persistence", "tracking", or "auto": what the
            dataset is, contours for a surface.
        variable: What is drawn of a surface or a line; `loss`, or else the first of a
            surface, all of a line.
        scale: "log" levels for positive values, "linear", or "auto".
        clip: Values above are drawn at this level, and counted under the picture.
        trajectory: Coordinates of a path over the contours or cells.
        residuals: Relative distance of its points from the plane; those above 0.5 are
            faded.
        dpi: Dots an inch of a .png; the picture is 6.4 inches wide.

    Raises:
        InputError: The suffix is another, the dataset lacks variables, or is of no
            kind that is drawn.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in PICTURES:
        raise InputError(f"path must end in {', '.join(PICTURES)}, got {target.name!r}")
    if kind not in get_args(PictureKind):
        raise InputError(
            f"kind must be one of {', '.join(get_args(PictureKind))}, got {kind!r}"
        )
    kind = _kind(dataset) if kind == "auto" else kind
    plain: dict[str, Callable[[Figure, Any], None]] = {
        "spectrum": _spectrum,
        "eigenvalues": _eigenvalues,
        "persistence": _persistence,
        "tracking": _tracking,
    }
    figure = new_figure()
    if kind in plain:
        plain[kind](figure, dataset)
    elif kind == "line":
        _line(figure, dataset, variable, scale)
    else:
        samples = read_samples(dataset, variable)
        if len(samples.axes) != 2:
            raise InputError(
                f"kind {kind!r} needs a surface over 2 axes, the dataset has "
                f"{len(samples.axes)}"
            )
        how = scale_of(samples.values, scale, clip)
        if kind == "3d" and min(samples.values.shape) > 1:
            _spatial(figure, samples, how)
        else:
            draw_flat(figure, samples, how, kind == "contour", trajectory, residuals)
    target.parent.mkdir(parents=True, exist_ok=True)
    _write(figure, target, dpi)
    return target


def _write(figure: "Figure", target: Path, dpi: int) -> None:
    from matplotlib import rc_context

    suffix = target.suffix.lower()
    # A fixed salt: the same figure is the same file.
    with rc_context({"svg.hashsalt": "thalweg"}), atomic_file(target) as file:
        figure.savefig(file, dpi=dpi, format=suffix[1:], metadata=PICTURES[suffix])


def _kind(dataset: "xr.Dataset") -> PictureKind:
    if "density" in dataset.variables:
        return "spectrum"
    if grid_variables(dataset):
        return "line" if len(grid_axes(dataset)) == 1 else "contour"
    if "t" in dataset.sizes:
        return "line"
    if {"birth", "death"} <= set(dataset.variables):
        return "persistence"
    if "value" in dataset.variables and dataset["value"].dims == ("pair",):
        return "eigenvalues"
    if is_tracking(dataset):
        return "tracking"
    there = ", ".join(map(str, dataset.variables)) or "none"
    raise InputError(
        "the dataset is no surface, line, spectral density, eigenvalues, persistence "
        f"table or record of a tracker; its variables are: {there}"
    )


def new_figure() -> "Figure":
    """Return an empty figure on a canvas of its own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _axes(figure: "Figure", place: int = 111) -> "Axes":
    axes = figure.add_subplot(place)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def draw_flat(
    figure: "Figure",
    samples: Samples,
    how: Scale,
    contours: bool = True,
    trajectory: np.ndarray | None = None,
    residuals: np.ndarray | None = None,
) -> "Axes":
    """Draw contours or cells, what is missing, clipped or named, and a path."""
    axes = figure.add_subplot()
    x, y = samples.axes
    heights = np.ma.masked_invalid(how.heights(samples.values).T)
    low, high = how.limits
    drawable = min(heights.shape) > 1 and heights.count() and how.high > how.low
    if contours and drawable:
        levels = np.linspace(low, high, 19)
        drawn: Any = axes.contourf(x, y, heights, levels=levels, cmap="viridis")
        axes.contour(
            x,
            y,
            heights,
            levels=levels,
            colors="white",
            linewidths=0.4,
            linestyles="solid",
        )
    else:
        mesh = cell_edges(x), cell_edges(y)
        limits: dict[str, Any] = {"cmap": "viridis", "vmin": low, "vmax": high}
        if samples.refined is not None:
            between = samples.refined.interpolated.T
            paler = np.ma.masked_where(~between, heights)
            axes.pcolormesh(*mesh, paler, alpha=0.5, **limits)
            heights = np.ma.masked_where(between, heights)
        drawn = axes.pcolormesh(*mesh, heights, **limits)
    if samples.refined is not None:
        axes.plot(
            *samples.refined.points.T,
            "o",
            color="white",
            markeredgecolor="#27313a",
            markeredgewidth=0.3,
            markersize=1.8,
            label=f"evaluated ({len(samples.refined.points):,})",
        )
    bar = figure.colorbar(drawn, ax=axes, label=samples.name)
    positions, texts = ticks(how)
    bar.set_ticks(positions, labels=texts)
    _mark_flat(axes, samples, how)
    for ends, limit in ((x, axes.set_xlim), (y, axes.set_ylim)):
        edges = ends if contours and drawable else cell_edges(ends)
        limit(edges.min(), edges.max())
    if trajectory is not None and len(trajectory):
        _trajectory(axes, trajectory, residuals)
        reach(axes, trajectory)
    for name, point in samples.points().items():
        _name_point(axes, name, point)
    axes.set_xlabel(samples.labels[0])
    axes.set_ylabel(samples.labels[1])
    aspect = samples.aspect()
    if aspect is not None:
        axes.set_aspect(aspect)
    if axes.get_legend_handles_labels()[1]:
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return axes


def _mark_flat(axes: "Axes", samples: Samples, how: Scale) -> None:
    """Hatch the cells that have no finite value, by what stands there; mark clipped."""
    from matplotlib.collections import PolyCollection

    x, y = samples.axes
    left, low = cell_edges(x), cell_edges(y)
    cells = [
        [(left[i + a], low[j + b]) for a, b in ((0, 0), (1, 0), (1, 1), (0, 1))]
        for i, j in np.argwhere(~samples.finite)
    ]
    hatched = PolyCollection(
        cells, facecolors="none", edgecolors="#b9c2c6", hatch="////", linewidths=0.0
    )
    axes.add_collection(hatched, autolim=False)
    for name, mask in samples.missing().items():
        rows, columns = np.nonzero(mask)
        axes.plot(
            x[rows],
            y[columns],
            _MARKS[name],
            color=COLORS[1],
            markersize=4,
            label=f"{name} ({len(rows)})",
        )
    if how.clipped:
        rows, columns = np.nonzero(how.above(samples.values))
        label = f"above {how.high:.4g}, clipped ({len(rows)})"
        axes.plot(
            x[rows],
            y[columns],
            "D",
            color=COLORS[3],
            fillstyle="none",
            markersize=4,
            label=label,
        )


def _trajectory(
    axes: Any, trajectory: np.ndarray, residuals: np.ndarray | None
) -> None:
    axes.plot(*trajectory.T, "-", color=COLORS[1], linewidth=1.2, label="path")
    opacity = np.ones(len(trajectory))
    if residuals is not None:
        opacity = np.where(residuals > FADED_FROM, 0.3, 1.0)
    axes.scatter(*trajectory.T, s=14, color=COLORS[1], alpha=opacity, zorder=3)


def reach(axes: "Axes", points: np.ndarray) -> None:
    """Let the picture reach as far as the path does."""
    finite = points[np.isfinite(points).all(axis=1)]
    if len(finite):
        margin = 0.03 * np.ptp(finite, axis=0)
        low, high = finite.min(axis=0) - margin, finite.max(axis=0) + margin
        left, right = axes.get_xlim()
        bottom, top = axes.get_ylim()
        axes.set_xlim(min(left, low[0]), max(right, high[0]))
        axes.set_ylim(min(bottom, low[1]), max(top, high[1]))


def _name_point(axes: "Axes", name: str, point: tuple[float, ...]) -> None:
    """Mark a point, its name on the side where there is room."""
    axes.plot(*point, "o", color=COLORS[1], markeredgecolor="white", clip_on=False)
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    is_right = point[0] > left + 0.75 * (right - left)
    is_high = point[1] > bottom + 0.9 * (top - bottom)
    axes.annotate(
        name,
        (point[0], point[1]),
        (-6 if is_right else 6, -6 if is_high else 6),
        textcoords="offset points",
        color="white",
        horizontalalignment="right" if is_right else "left",
        verticalalignment="top" if is_high else "bottom",
    )


def _spatial(figure: "Figure", samples: Samples, how: Scale) -> None:
    axes: Any = figure.add_subplot(projection="3d")
    x, y = np.meshgrid(*samples.axes, indexing="ij")
    heights = how.heights(samples.values)
    low, high = how.limits
    axes.plot_surface(
        x, y, heights, cmap="viridis", vmin=low, vmax=high, linewidth=0, rcount=80,
        ccount=80,
    )  # fmt: skip
    for name, mask in samples.missing().items():
        rows, columns = np.nonzero(mask)
        axes.scatter(
            samples.axes[0][rows],
            samples.axes[1][columns],
            np.full(len(rows), low),
            marker=_MARKS[name],
            color=COLORS[1],
            s=10,
            label=f"{name} ({len(rows)})",
        )
    positions, texts = ticks(how)
    axes.set_zticks(positions, labels=texts)
    axes.set_zlim(low, high)
    axes.set_xlabel(samples.labels[0])
    axes.set_ylabel(samples.labels[1])
    axes.set_zlabel(samples.name)
    axes.view_init(elev=32, azim=-50)
    if samples.missing():
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
    if how.clipped:
        axes.set_title(
            f"{how.clipped} values above {how.high:.4g} drawn at it", fontsize=9
        )


def _line(
    figure: "Figure", dataset: "xr.Dataset", variable: str | None, scale: ScaleName
) -> None:
    axes = _axes(figure)
    sampled = read_lines(dataset, variable)
    values = np.concatenate(list(sampled.lines.values()))
    for index, (name, line) in enumerate(sampled.lines.items()):
        color = COLORS[index % len(COLORS)]
        finite = np.isfinite(line)
        axes.plot(
            sampled.x, np.where(finite, line, np.nan), color=color, label=name,
            marker="o" if finite.sum() < 2 else None,
        )  # fmt: skip
        if f"{name}_stderr" in dataset.variables:
            width = np.asarray(dataset[f"{name}_stderr"].values, dtype=float)
            axes.fill_between(
                sampled.x, line - width, line + width, color=color, alpha=0.2, lw=0
            )
        if not finite.all():
            axes.plot(
                sampled.x[~finite],
                np.zeros(int((~finite).sum())),
                "x",
                color=color,
                transform=axes.get_xaxis_transform(),
                clip_on=False,
                label=f"{name}: not finite ({int((~finite).sum())})",
            )
    if scale_of(values, scale).log:
        axes.set_yscale("log")
    axes.set_xlabel(sampled.x_label)
    axes.set_ylabel(sampled.y_label)
    axes.grid(color="#e3e7e8", linewidth=0.8)
    axes.legend(frameon=False)


def _spectrum(figure: "Figure", dataset: "xr.Dataset") -> None:
    axes = _axes(figure)
    t, density, axis = read_density(dataset)
    floor = float(density.min())
    for side, color, name in (
        (t <= 0, COLORS[1], "negative curvature"),
        (t >= 0, COLORS[0], "positive curvature"),
    ):
        if side.sum() < 2:
            continue
        axes.plot(axis(t[side]), density[side], color=color, label=name)
        axes.fill_between(axis(t[side]), floor, density[side], color=color, alpha=0.16)
    axes.set_yscale("log")
    positions, texts = axis.ticks(float(t.min()), float(t.max()))
    axes.set_xticks(positions, labels=texts)
    axes.set_xlabel("eigenvalue")
    axes.set_ylabel("density")
    axes.legend(frameon=False)


def _eigenvalues(figure: "Figure", dataset: "xr.Dataset") -> None:
    from matplotlib.ticker import MaxNLocator

    axes = _axes(figure)
    values, residuals, converged = read_eigenvalues(dataset)
    rank = np.arange(1, len(values) + 1)
    done = np.ones(len(values), bool) if converged is None else converged.astype(bool)
    axes.vlines(rank, 0, values, color=COLORS[0], linewidth=1.5)
    errors = np.zeros(len(values)) if residuals is None else residuals
    for mask, style in ((done, "full"), (~done, "none")):
        if mask.any():
            axes.errorbar(
                rank[mask], values[mask], errors[mask], fmt="o", color=COLORS[0],
                fillstyle=style, capsize=3,
                label="converged" if style == "full" else "not converged",
            )  # fmt: skip
    axes.axhline(0, color=COLORS[6], linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("rank")
    axes.set_ylabel("eigenvalue")
    if not done.all():
        axes.legend(frameon=False)


def _persistence(figure: "Figure", table: "xr.Dataset") -> None:
    births, deaths = read_pairs(table)
    finite = np.concatenate([births, deaths])
    finite = finite[np.isfinite(finite)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    cap = high + 0.12 * ((high - low) or max(abs(high), 1.0))
    ends = np.where(np.isfinite(deaths), deaths, cap)
    figure.set_size_inches(9.0, 4.2)
    diagram, bars = (_axes(figure, place=place) for place in (121, 122))
    diagram.plot([low, cap], [low, cap], ":", color=COLORS[6])
    for mask, mark in ((np.isfinite(deaths), "o"), (~np.isfinite(deaths), "^")):
        diagram.plot(births[mask], ends[mask], mark, color=COLORS[0])
        rank = np.arange(1, len(births) + 1)[mask]
        bars.hlines(rank, births[mask], ends[mask], color=COLORS[0], linewidth=3)
        if mark == "^":
            bars.plot(ends[mask], rank, ">", color=COLORS[0])
    diagram.set_xlabel("birth")
    diagram.set_ylabel("death")
    bars.invert_yaxis()
    bars.set_xlabel("loss")
    bars.set_ylabel("minimum")


def _tracking(figure: "Figure", dataset: "xr.Dataset") -> None:
    """Draw a panel a quantity, beside λ_max the threshold of stability."""
    from matplotlib.ticker import MaxNLocator

    tracked = read_tracking(dataset)
    panels = tracked.panels
    heights = [2.0 if panel.name == "lambda_max" else 1.0 for panel in panels]
    figure.set_size_inches(6.4, 1.2 + 1.3 * sum(heights))
    places = figure.subplots(
        len(panels), sharex=True, squeeze=False, height_ratios=heights
    )[:, 0]
    for axes, panel in zip(places, panels, strict=True):
        values = np.where(np.isfinite(panel.values), panel.values, np.nan)
        label = "λ_max" if panel.name == "lambda_max" else panel.label
        axes.plot(tracked.steps, values, ".-", color=COLORS[0], label=label)
        if panel.errors is not None:
            ends = values - panel.errors, values + panel.errors
            axes.fill_between(tracked.steps, *ends, color=COLORS[0], alpha=0.2, lw=0)
        if panel.log:
            axes.set_yscale("log")
        axes.set_ylabel(panel.label)
        axes.grid(color="#e3e7e8", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    if tracked.threshold is not None:  # λ_max is the first panel
        name, values = tracked.threshold
        places[0].plot(tracked.steps, values, ".--", color=COLORS[1], label=name)
        places[0].set_ylim(bottom=0)
        places[0].legend(frameon=False)
    places[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    places[-1].set_xlabel("step")
