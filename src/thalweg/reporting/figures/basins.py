"""The basins of a sampled plane: which minimum each sample flows to."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from thalweg.errors import InputError
from thalweg.reporting._samples import Samples, read_samples
from thalweg.reporting._scales import scale_of
from thalweg.reporting.figures.overlays import level_lines
from thalweg.reporting.figures.theme import COLORS, finish

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

__all__ = ["basins_figure"]


def basins_figure(
    dataset: "xr.Dataset",
    basins: Int[np.ndarray, "*samples"],
    minima: Int[np.ndarray, " minima"],
    saddles: Int[np.ndarray, " saddles"],
    *,
    variable: str | None = None,
) -> "go.Figure":
    """Draw basins in colors of their own under contours, minima and saddles marked.

    Samples without a finite value belong to none and stay empty.

    Args:
        dataset: Dims x0 and x1; the result of `ti.surface`.
        basins: For each sample the flat index of its minimum: on the grid, or one a
            point of an adaptive surface; `MergeTree.basins`.
        minima: Flat indices of the minima, in the order of their colors.
        saddles: Flat indices of the saddles.
        variable: What is drawn; `loss`, or else the first.

    Raises:
        InputError: There are not two axes, or the basins are not of its samples.
    """
    import plotly.graph_objects as go

    samples = read_samples(dataset, variable)
    if len(samples.axes) != 2:
        raise InputError(
            f"basins are drawn over 2 axes, the dataset has {len(samples.axes)}"
        )
    places, values = _samples(samples, basins.shape)
    order = {minimum: i for i, minimum in enumerate(minima.tolist())}
    known = np.array([order.get(b, -1) for b in basins.ravel().tolist()])
    number = np.where(np.isfinite(values) & (known >= 0), known, np.nan)
    figure = go.Figure()
    if basins.shape == samples.values.shape:
        figure.add_trace(_areas(samples, number.reshape(basins.shape)))
    else:
        figure.add_trace(_dots(places, number))
    figure.add_trace(_lines(samples))
    for name, indices, symbol in (
        ("minimum", minima, "circle"),
        ("saddle", saddles, "x"),
    ):
        figure.add_trace(
            go.Scatter(
                x=places[indices, 0],
                y=places[indices, 1],
                mode="markers",
                name=name,
                customdata=values[indices],
                marker={
                    "symbol": symbol,
                    "size": 10,
                    "color": "#ffffff",
                    "line": {"width": 1.5, "color": "#27313a"},
                },
                hovertemplate=f"{name}: %{{customdata:.6g}}<extra></extra>",
            )
        )
    figure.update_xaxes(title_text=samples.labels[0], constrain="domain")
    figure.update_yaxes(title_text=samples.labels[1], constrain="domain")
    aspect = samples.aspect()
    if aspect is not None:
        figure.update_yaxes(scaleanchor="x", scaleratio=aspect)
    figure.update_layout(height=480, legend={"y": 1.0, "yanchor": "bottom"})
    return finish(figure)


def _samples(
    samples: Samples, shape: tuple[int, ...]
) -> tuple[Float[np.ndarray, "samples 2"], Float[np.ndarray, " samples"]]:
    """Return coordinates and values of the samples that the basins are of."""
    if shape == samples.values.shape:
        mesh = np.stack(np.meshgrid(*samples.axes, indexing="ij"), axis=-1)
        return mesh.reshape(-1, 2), samples.values.reshape(-1)
    refined = samples.refined
    if refined is not None and shape == refined.values.shape:
        return refined.points, refined.values
    raise InputError(
        f"basins must have the shape of the samples, {samples.values.shape}, got "
        f"{shape}"
    )


def _color(number: float) -> str:
    return COLORS[int(number) % len(COLORS)]


def _areas(samples: Samples, number: Float[np.ndarray, "x y"]) -> "go.Heatmap":
    import plotly.graph_objects as go

    count = int(np.nanmax(number, initial=0.0)) + 1
    steps = [(i / count, (i + 1) / count, _color(i)) for i in range(count)]
    return go.Heatmap(
        x=samples.axes[0],
        y=samples.axes[1],
        z=number.T,
        zmin=-0.5,
        zmax=count - 0.5,
        colorscale=[(at, color) for low, high, color in steps for at in (low, high)],
        opacity=0.75,
        showscale=False,
        hoverinfo="skip",
    )


def _dots(places: np.ndarray, number: np.ndarray) -> "go.Scatter":
    import plotly.graph_objects as go

    in_one = np.isfinite(number)
    return go.Scatter(
        x=places[in_one, 0],
        y=places[in_one, 1],
        mode="markers",
        marker={"size": 6, "color": [_color(n) for n in number[in_one]]},
        showlegend=False,
        hoverinfo="skip",
    )


def _lines(samples: Samples) -> "go.Contour":
    import plotly.graph_objects as go

    lines = go.Contour(
        **level_lines(samples, scale_of(samples.values), 14),
        line={"width": 0.7, "color": "rgba(90,100,108,0.8)"},
        showscale=False,
        showlegend=False,
        hoverinfo="skip",
    )
    return lines.update(contours_coloring="none")
