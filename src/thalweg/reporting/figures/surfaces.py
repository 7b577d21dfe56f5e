"""Surfaces over one, two or three directions: rotatable, as contours, as cells.

Cells without a finite value stay empty and are marked; nothing is drawn across them.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from thalweg.errors import InputError
from thalweg.reporting._samples import (
    Refined,
    Samples,
    cell_edges,
    grid_variables,
    read_samples,
)
from thalweg.reporting._scales import Scale, ScaleName, scale_of, ticks
from thalweg.reporting.figures.lines import line_figure
from thalweg.reporting.figures.overlays import (
    evaluated_dots,
    evaluated_on_line,
    evaluated_rounds,
    gap_marks,
    level_lines,
    lifted,
    named_points,
    nearest_heights,
    path_traces,
)
from thalweg.reporting.figures.theme import SEQUENTIAL, finish

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

__all__ = ["surface_caption", "surface_figure"]

_HEIGHT = 540
_PALE = 0.5  # opacity of interpolated cells


def surface_figure(
    dataset: "xr.Dataset",
    variable: str | None = None,
    *,
    scale: ScaleName = "auto",
    clip: float | None = None,
    trajectory: Float[np.ndarray, "steps 2"] | None = None,
    residuals: Float[np.ndarray, " steps"] | None = None,
    anchors: Mapping[str, Sequence[float]] | None = None,
    beside: "Sequence[xr.Dataset]" = (),
) -> "go.Figure":
    """Draw a sampled surface; two directions give a 3-D view, contours and cells.

    One direction gives a line of every sampled variable, three give slices. Cells whose
    value is NaN or infinite are empty and marked. Of an adaptive surface the evaluated
    points are dots, interpolated cells are paler, and a view more shows in which round
    each point was evaluated. Where both directions have known and
    comparable lengths, the flat views have equal axes in parameter distance.

    Args:
        dataset: Dims x0, x1, ...; the result of `ti.surface`.
        variable: What is drawn; `loss`, or else the first.
        scale: "log" colors and heights for positive values, "linear", or "auto".
        clip: Values above are drawn at this level and marked.
        trajectory: Coordinates of a path in the plane.
        residuals: Relative distance of its points from the plane; those above 0.5 are
            faded, since the plane does not show their loss.
        anchors: Named points; by default those of the dataset, and the center.
        beside: Surfaces over two directions that this one is to be compared with: the
            figures of all have the same axes and the same colors.

    Raises:
        InputError: A variable is missing, there are more than three axes, or the scale
            does not fit the values.
    """
    if variable is None and not grid_variables(dataset) and "t" in dataset.sizes:
        return line_figure(dataset, scale=scale)
    samples = read_samples(dataset, variable)
    k = len(samples.axes)
    if k == 1:
        figure = line_figure(
            dataset[[samples.name]] if variable else dataset, scale=scale
        )
        return figure.add_traces(evaluated_on_line(samples))
    if k > 3:
        raise InputError(f"a surface is drawn over 1 to 3 axes, the dataset has {k}")
    others = _read_beside(samples, beside)
    how = _common_scale([samples, *others], scale, clip)
    if k == 3:
        return _slices(samples, how)
    points = {**samples.points(), **(anchors or {})}
    figure = _plane(samples, how, trajectory, residuals, points)
    if trajectory is not None:
        _reach(figure, trajectory)
    return _in_common_window(figure, [samples, *others], how) if others else figure


def _read_beside(samples: Samples, beside: "Sequence[xr.Dataset]") -> list[Samples]:
    k = len(samples.axes)
    others = [read_samples(other, samples.name) for other in beside]
    if any(len(other.axes) != k for other in others):
        raise InputError(f"surfaces beside one over {k} axes must have {k} axes too")
    return others


def _common_scale(
    all_samples: Sequence[Samples], scale: ScaleName, clip: float | None
) -> Scale:
    values = [samples.values.ravel() for samples in all_samples]
    return scale_of(np.concatenate(values), scale, clip)


def surface_caption(
    dataset: "xr.Dataset",
    variable: str | None = None,
    *,
    scale: ScaleName = "auto",
    clip: float | None = None,
    residuals: Float[np.ndarray, " steps"] | None = None,
    beside: "Sequence[xr.Dataset]" = (),
) -> str:
    """State what a picture of the surface leaves out: missing and clipped values.

    It also says what a slice cannot show, and how far a trajectory is from the plane.
    Arguments are those of the picture, `surface_figure`.
    """
    samples = read_samples(dataset, variable)
    how = _common_scale([samples, *_read_beside(samples, beside)], scale, clip)
    clipped = int(how.above(samples.values).sum())
    grid = " × ".join(str(len(axis)) for axis in samples.axes)
    words = [f"{samples.name.capitalize()} at {grid} points."]
    if samples.refined is not None:
        words = _spent(samples.name, samples.refined, grid)
    if how.log and len(samples.axes) > 1:
        words.append("Heights and colors are logarithmic.")
    for name, mask in samples.missing().items():
        words.append(f"{name} at {int(mask.sum())} of them: left empty and marked.")
    if clipped:
        words.append(f"{clipped} values above {how.high:.4g} are drawn at it.")
    if residuals is not None and len(residuals):
        words.append(
            f"The path's points are up to {float(np.max(residuals)):.0%} of their "
            "distance from the center off this plane; beyond 50 % they are faded."
        )
    words.append("A minimum of this slice need not be one of the loss.")
    return " ".join(words)


def _spent(name: str, refined: Refined, grid: str) -> list[str]:
    """Say how many points were evaluated, when, and what lies between them."""
    coarse = int((refined.rounds == 0).sum())
    count, rounds = len(refined.rounds), int(refined.rounds.max())
    words = [
        f"{name.capitalize()} evaluated at {count:,} points (dots): {coarse:,} of a "
        f"coarse grid and {count - coarse:,} in {rounds} rounds where it bends, breaks "
        f"off or crosses a level. Of the {grid} places drawn, "
        f"{int(refined.interpolated.sum()):,} are interpolated (paler cells)."
    ]
    if refined.unknown.any():
        words.append(
            f"{int(refined.unknown.sum()):,} are left empty: they lie in cells with a "
            "point that is not finite."
        )
    return words


def _plane(
    samples: Samples,
    how: Scale,
    trajectory: np.ndarray | None,
    residuals: np.ndarray | None,
    points: Mapping[str, Sequence[float]],
) -> "go.Figure":
    import plotly.graph_objects as go

    spatial = [_surface(samples, how)] if min(samples.values.shape) > 1 else []
    contours = [_contour(samples, how)] if spatial else []
    on_floor = gap_marks(samples, how) + path_traces(trajectory, residuals)
    named = named_points(points)
    flat = on_floor + named
    at = nearest_heights(samples, how, points)
    floor = lifted(on_floor, how) + lifted(named, how, at)
    views = {
        "3-D": spatial + floor if spatial else [],
        "Contours": contours + evaluated_dots(samples) + flat if spatial else [],
        "Cells": _cells(samples, how) + flat,
        "Points": evaluated_rounds(samples),
    }
    views = {name: traces for name, traces in views.items() if traces}
    figure = go.Figure()
    first = next(iter(views))
    for name, traces in views.items():
        for trace in traces:
            figure.add_trace(trace)
            figure.data[-1].visible = name == first
    if len(views) > 1:
        _add_buttons(figure, views)
    heights, texts = ticks(how)
    figure.update_layout(
        height=_HEIGHT,
        xaxis=_flat_axis(samples, 0),
        yaxis=_flat_axis(samples, 1),
        scene={
            "xaxis": {"title": {"text": _short(samples.labels[0])}},
            "yaxis": {"title": {"text": _short(samples.labels[1])}},
            "zaxis": {
                "title": {"text": samples.name},
                "tickvals": heights,
                "ticktext": texts,
            },
            "aspectmode": "manual",
            "aspectratio": {"x": 1.1, "y": 1.1, "z": 0.8},
            "camera": {
                "eye": {"x": 1.3, "y": -1.3, "z": 0.8},
                "center": {"x": 0.0, "y": 0.0, "z": -0.12},
            },
        },
    )
    aspect = samples.aspect()
    if aspect is not None:
        figure.update_yaxes(scaleanchor="x", scaleratio=aspect)
    return finish(figure)


def _flat_axis(samples: Samples, index: int) -> dict[str, object]:
    """Return an axis that ends where the outermost cells do."""
    edges = cell_edges(samples.axes[index])
    return {
        "title": {"text": samples.labels[index]},
        "range": [edges[0], edges[-1]],
        "constrain": "domain",
    }


def _reach(figure: "go.Figure", trajectory: np.ndarray) -> None:
    """Let the flat views reach as far as the path does."""
    for j, axis in enumerate((figure.layout.xaxis, figure.layout.yaxis)):
        ends = trajectory[np.isfinite(trajectory[:, j]), j]
        axis.range = [min([*axis.range, *ends]), max([*axis.range, *ends])]


def _in_common_window(
    figure: "go.Figure", all_samples: Sequence[Samples], how: Scale
) -> "go.Figure":
    """Give all views the axes that hold every surface."""
    windows = []
    for j in range(2):
        edges = [cell_edges(samples.axes[j]) for samples in all_samples]
        windows.append([min(e.min() for e in edges), max(e.max() for e in edges)])
    aspects = {samples.aspect() for samples in all_samples}
    figure.update_xaxes(range=windows[0])
    figure.update_yaxes(range=windows[1])
    if len(aspects) > 1:  # no one ratio is right for all
        figure.update_yaxes(scaleanchor=None, scaleratio=None)
    scene = figure.layout.scene
    scene.xaxis.range, scene.yaxis.range = windows
    scene.zaxis.range = how.limits
    return figure


def _short(label: str) -> str:
    return label if len(label) <= 24 else f"{label[:23]}…"


def _add_buttons(figure: "go.Figure", views: dict[str, list]) -> None:
    """Let the reader choose among the views, whose traces stand one after another."""
    buttons, start = [], 0
    for name, traces in views.items():
        shown = [
            start <= index < start + len(traces) for index in range(len(figure.data))
        ]
        flat = name != "3-D"
        layout = {
            "xaxis.visible": flat,
            "yaxis.visible": flat,
            "margin.l": 56 if flat else 0,
            "margin.b": 48 if flat else 8,
        }
        buttons.append(
            {"label": name, "method": "update", "args": [{"visible": shown}, layout]}
        )
        start += len(traces)
    figure.update_layout(
        updatemenus=[
            {
                "type": "buttons",
                "direction": "right",
                "buttons": buttons,
                "x": 0.0,
                "xanchor": "left",
                "y": 1.0,
                "yanchor": "bottom",
                "pad": {"l": 8, "b": 34},
                "showactive": True,
            }
        ],
        legend={"y": 1.0, "yanchor": "bottom", "x": 1.0, "xanchor": "right"},
        xaxis={"visible": False},
        yaxis={"visible": False},
        margin={"t": 88, "l": 0, "b": 8},
    )


def _color(samples: Samples, how: Scale) -> dict[str, object]:
    heights, texts = ticks(how)
    return {
        "colorscale": SEQUENTIAL,
        "colorbar": {
            "title": {"text": samples.name, "side": "top"},
            "tickvals": heights,
            "ticktext": texts,
            "thickness": 12,
            "len": 0.85,
            "outlinewidth": 0,
        },
    }


def _hover(samples: Samples) -> str:
    return (
        f"{samples.labels[0]}: %{{x:.4g}}<br>{samples.labels[1]}: %{{y:.4g}}<br>"
        f"{samples.name}: %{{customdata:.6g}}<extra></extra>"
    )


def _surface(samples: Samples, how: Scale) -> "go.Surface":
    import plotly.graph_objects as go

    low, high = how.limits
    return go.Surface(
        x=samples.axes[0],
        y=samples.axes[1],
        z=how.heights(samples.values).T,
        customdata=samples.values.T,
        cmin=low,
        cmax=high,
        contours={
            "z": {
                "show": True,
                "start": low,
                "end": high,
                "size": (high - low) / 16,
                "color": "rgba(255,255,255,0.4)",
                "width": 1,
            }
        },
        lighting={"ambient": 0.75, "diffuse": 0.5, "specular": 0.08, "roughness": 0.9},
        hovertemplate=_hover(samples),
        **_color(samples, how),
    )


def _contour(samples: Samples, how: Scale) -> "go.Contour":
    import plotly.graph_objects as go

    low, high = how.limits
    return go.Contour(
        **level_lines(samples, how, 18),
        customdata=samples.values.T,
        zmin=low,
        zmax=high,
        line={"width": 0.6, "color": "rgba(255,255,255,0.55)"},
        hovertemplate=_hover(samples),
        **_color(samples, how),
    )


def _cells(samples: Samples, how: Scale) -> "list[go.Heatmap]":
    """Return the cells; of an adaptive surface the interpolated ones paler."""
    refined = samples.refined
    if refined is None:
        return [_heatmap(samples, how, samples.values)]
    between = np.where(refined.interpolated, samples.values, np.nan)
    evaluated = np.where(refined.interpolated, np.nan, samples.values)
    paler = _heatmap(samples, how, between)
    return [
        paler.update(opacity=_PALE, showscale=False),
        _heatmap(samples, how, evaluated),
    ]


def _heatmap(samples: Samples, how: Scale, values: np.ndarray) -> "go.Heatmap":
    import plotly.graph_objects as go

    low, high = how.limits
    return go.Heatmap(
        x=samples.axes[0],
        y=samples.axes[1],
        z=how.heights(values).T,
        customdata=samples.values.T,
        zmin=low,
        zmax=high,
        zsmooth=False,
        connectgaps=False,
        hoverongaps=False,
        hovertemplate=_hover(samples),
        **_color(samples, how),
    )


def _slice(refined: Refined | None, index: int, coordinate: float) -> Refined | None:
    """Return what an adaptive surface over three axes has at one place of the last."""
    if refined is None:
        return None
    here = refined.points[:, 2] == coordinate
    return Refined(
        refined.interpolated[:, :, index],
        refined.unknown[:, :, index],
        refined.points[here, :2],
        refined.rounds[here],
        refined.values[here],
    )


def _slices(samples: Samples, how: Scale) -> "go.Figure":
    """Draw the slices along the last axis, one at a time, with a slider."""
    import plotly.graph_objects as go

    figure, groups = go.Figure(), []
    for index, coordinate in enumerate(samples.axes[2]):
        part = Samples(
            samples.name,
            samples.axes[:2],
            samples.values[:, :, index],
            samples.labels[:2],
            None,
            {},
            _slice(samples.refined, index, coordinate),
        )
        traces = [*_cells(part, how), *evaluated_dots(part), *gap_marks(part, how)]
        groups.append((f"{coordinate:.4g}", len(figure.data), len(traces)))
        for trace in traces:
            figure.add_trace(trace)
    middle = len(groups) // 2
    steps = []
    for label, start, count in groups:
        shown = [start <= j < start + count for j in range(len(figure.data))]
        steps.append({"label": label, "method": "update", "args": [{"visible": shown}]})
    _, first, count = groups[middle]
    for j, trace in enumerate(figure.data):
        trace.visible = first <= j < first + count
    figure.update_layout(
        height=_HEIGHT + 60,
        xaxis={"title": {"text": samples.labels[0]}},
        yaxis={"title": {"text": samples.labels[1]}},
        sliders=[
            {
                "active": middle,
                "steps": steps,
                "currentvalue": {"prefix": f"{samples.labels[2]}: "},
                "pad": {"t": 48},
            }
        ],
    )
    return finish(figure)
