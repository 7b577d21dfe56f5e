"""What lies over a surface: gaps, clipped values, paths, named and evaluated points."""

from collections.abc import Mapping, Sequence

import numpy as np

from thalweg.reporting._samples import FADED_FROM, Samples
from thalweg.reporting._scales import Scale
from thalweg.reporting.figures.theme import COLORS, SEQUENTIAL

__all__ = [
    "evaluated_dots",
    "evaluated_on_line",
    "evaluated_rounds",
    "gap_marks",
    "level_lines",
    "lifted",
    "named_points",
    "nearest_heights",
    "path_traces",
]

_MARKS = {"NaN": "x-thin", "+∞": "triangle-up-open", "−∞": "triangle-down-open"}


def level_lines(samples: Samples, how: Scale, count: int) -> dict[str, object]:
    """Return what contours of so many levels are drawn from, whatever their look."""
    low, high = how.limits
    step = (high - low) / count
    return {
        "x": samples.axes[0],
        "y": samples.axes[1],
        "z": how.heights(samples.values).T,
        "contours": {"start": low + step / 2, "end": high, "size": step},
        "connectgaps": False,
    }


def gap_marks(samples: Samples, how: Scale) -> list:
    """Mark every cell that is not finite, and every one that is clipped."""
    import plotly.graph_objects as go

    masks = {
        name: (mask, _MARKS[name], COLORS[1])
        for name, mask in samples.missing().items()
    }
    above = how.above(samples.values)
    if above.any():
        masks[f"above {how.high:.4g}, clipped"] = (above, "diamond-open", COLORS[3])
    traces = []
    for name, (mask, symbol, color) in masks.items():
        rows, columns = np.nonzero(mask)
        traces.append(
            go.Scatter(
                x=samples.axes[0][rows],
                y=samples.axes[1][columns],
                mode="markers",
                name=f"{name} ({len(rows)})",
                marker={
                    "symbol": symbol,
                    "size": 7,
                    "color": color,
                    "line": {"width": 1.4, "color": color},
                },
                hoverinfo="name",
            )
        )
    return traces


def path_traces(trajectory: np.ndarray | None, residuals: np.ndarray | None) -> list:
    """Return the path, its points far from the plane faded."""
    import plotly.graph_objects as go

    if trajectory is None or len(trajectory) == 0:
        return []
    faded = np.zeros(len(trajectory), dtype=bool)
    if residuals is not None:
        faded = np.asarray(residuals) > FADED_FROM
    return [
        go.Scatter(
            x=trajectory[:, 0],
            y=trajectory[:, 1],
            mode="lines+markers",
            name="path",
            line={"color": COLORS[1], "width": 1.5},
            marker={
                "size": 6,
                "color": COLORS[1],
                "opacity": np.where(faded, 0.25, 1.0),
                "line": {"width": 1, "color": "#ffffff"},
            },
            text=[f"step {i}" for i in range(len(trajectory))],
            hovertemplate="%{text}<br>(%{x:.4g}, %{y:.4g})<extra></extra>",
        )
    ]


def named_points(points: Mapping[str, Sequence[float]]) -> list:
    """Return points with their names."""
    import plotly.graph_objects as go

    if not points:
        return []
    coordinates = np.asarray(list(points.values()), dtype=float)
    return [
        go.Scatter(
            x=coordinates[:, 0],
            y=coordinates[:, 1],
            mode="markers+text",
            name="points",
            text=list(points),
            textposition="top center",
            textfont={"color": "#ffffff", "shadow": "0 0 3px #000, 0 0 5px #000"},
            marker={
                "symbol": "circle",
                "size": 9,
                "color": COLORS[1],
                "line": {"width": 1.5, "color": "#ffffff"},
            },
            showlegend=False,
            hovertemplate="%{text}<br>(%{x:.4g}, %{y:.4g})<extra></extra>",
        )
    ]


def evaluated_dots(samples: Samples) -> list:
    """Return the evaluated points of an adaptive surface as small dots."""
    import plotly.graph_objects as go

    if samples.refined is None:
        return []
    points = samples.refined.points
    return [
        go.Scatter(
            x=points[:, 0],
            y=points[:, 1],
            mode="markers",
            name=f"evaluated ({len(points)})",
            marker={"size": 2.5, "color": "rgba(255,255,255,0.75)"},
            showlegend=False,
            hoverinfo="skip",
        )
    ]


def evaluated_rounds(samples: Samples) -> list:
    """Return the evaluated points by the round that they were evaluated in."""
    import plotly.graph_objects as go

    if samples.refined is None:
        return []
    refined = samples.refined
    return [
        go.Scatter(
            x=refined.points[:, 0],
            y=refined.points[:, 1],
            mode="markers",
            name="evaluated",
            customdata=np.stack([refined.values, refined.rounds], axis=1),
            marker={
                "size": 5,
                "symbol": np.where(np.isfinite(refined.values), "circle", "x-thin"),
                "color": refined.rounds,
                "colorscale": SEQUENTIAL,
                "reversescale": True,
                "line": {
                    "width": np.where(np.isfinite(refined.values), 0.0, 1.4),
                    "color": COLORS[1],
                },
                "colorbar": {
                    "title": {"text": "round", "side": "top"},
                    "thickness": 12,
                    "len": 0.85,
                    "outlinewidth": 0,
                },
            },
            showlegend=False,
            hovertemplate=(
                f"{samples.labels[0]}: %{{x:.4g}}<br>{samples.labels[1]}: %{{y:.4g}}"
                f"<br>{samples.name}: %{{customdata[0]:.6g}}"
                "<br>round %{customdata[1]}<extra></extra>"
            ),
        )
    ]


def evaluated_on_line(samples: Samples) -> list:
    """Return the evaluated points of an adaptive line."""
    import plotly.graph_objects as go

    if samples.refined is None:
        return []
    return [
        go.Scatter(
            x=samples.refined.points[:, 0],
            y=samples.refined.values,
            mode="markers",
            name=f"evaluated ({len(samples.refined.values)})",
            marker={"size": 5, "color": COLORS[0]},
        )
    ]


def lifted(flat: list, how: Scale, heights: np.ndarray | None = None) -> list:
    """Return the marks of the flat views in the 3-D one, on its floor by default."""
    import plotly.graph_objects as go

    symbols = {
        "x-thin": "x",
        "triangle-up-open": "diamond-open",
        "triangle-down-open": "diamond-open",
    }
    floor = how.limits[0]
    traces = []
    for trace in flat:
        symbol = symbols.get(trace.marker.symbol, trace.marker.symbol or "circle")
        traces.append(
            go.Scatter3d(
                x=trace.x,
                y=trace.y,
                z=np.full(len(trace.x), floor) if heights is None else heights,
                mode=trace.mode.replace("+text", ""),
                name=trace.name,
                text=trace.text,
                line={"color": COLORS[1], "width": 3},
                marker={
                    "symbol": symbol if symbol in ("x", "diamond-open") else "circle",
                    "size": 4,
                    "color": trace.marker.color,
                },
                showlegend=trace.showlegend,
                hoverinfo="name" if trace.text is None else "text",
            )
        )
    return traces


def nearest_heights(
    samples: Samples, how: Scale, points: Mapping[str, Sequence[float]]
) -> np.ndarray:
    """Return the height of the sample nearest to each point, the floor without one."""
    heights = how.heights(samples.values)
    places = [
        tuple(
            int(np.abs(axis - x).argmin())
            for axis, x in zip(samples.axes, point, strict=True)
        )
        for point in points.values()
    ]
    found = np.array([heights[place] for place in places], dtype=float)
    return np.where(np.isfinite(found), found, how.limits[0])
