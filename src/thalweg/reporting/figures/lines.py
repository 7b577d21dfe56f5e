"""Lines with bands, bars by layer, eigenvalues as stems."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Shaped

from thalweg.errors import InputError
from thalweg.reporting._samples import (
    read_eigenvalues,
    read_layers,
    read_lines,
)
from thalweg.reporting._scales import ScaleName, scale_of
from thalweg.reporting.figures.theme import COLORS, finish, translucent

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

__all__ = ["eigenvalue_figure", "layers_figure", "line_figure"]

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def line_figure(
    x: "Float[np.ndarray, ' points'] | xr.Dataset",
    lines: Mapping[str, Float[np.ndarray, " _"]] | None = None,
    *,
    bands: Mapping[str, Float[np.ndarray, " _"]] | None = None,
    x_label: str = "",
    y_label: str = "",
    scale: ScaleName = "linear",
    markers: bool = False,
) -> "go.Figure":
    """Draw several lines over one axis, each with a band of plus and minus an error.

    A value that is NaN or infinite breaks its line and is marked at the lower edge.

    Args:
        x: Coordinates; or a dataset over `t` or `x0`, whose variable `loss` is drawn
            (or all over that axis where there is none), one line for each entry of a
            second dim such as `pair`.
        lines: Name -> values, each as long as `x`; not with a dataset.
        bands: Name -> half-width of the band (a standard error).
        x_label: Title of the x axis.
        y_label: Title of the y axis.
        scale: "log" for positive values, "linear", or "auto".
        markers: Whether every point is marked too.

    Raises:
        InputError: There is no line, a line is of another length, a band has no line,
            or "log" was asked for values that are not positive.
    """
    import plotly.graph_objects as go

    if not isinstance(x, np.ndarray):
        sampled = read_lines(x)
        x, lines = sampled.x, sampled.lines
        x_label, y_label = x_label or sampled.x_label, y_label or sampled.y_label
    if not lines:
        raise InputError("lines must hold at least one line, got none")
    bands = bands or {}
    for name, values in {**lines, **bands}.items():
        if len(values) != len(x):
            raise InputError(f"line {name!r} has {len(values)} values for {len(x)} x")
    if strangers := set(bands) - set(lines):
        raise InputError(f"bands has no line for {sorted(strangers)[0]!r}")
    everything = np.concatenate([np.ravel(v) for v in lines.values()])
    log = scale_of(everything, scale).log
    figure = go.Figure()
    for index, (name, values) in enumerate(lines.items()):
        values = np.asarray(values, dtype=float)
        color = COLORS[index % len(COLORS)]
        if name in bands:
            figure.add_trace(error_band(x, values, np.asarray(bands[name]), color, log))
        finite = np.isfinite(values)
        figure.add_trace(
            go.Scatter(
                x=x,
                y=np.where(finite, values, np.nan),
                name=name,
                mode="lines+markers" if markers or finite.sum() < 2 else "lines",
                line={"color": color, "width": 2, "dash": _dash(index)},
                connectgaps=False,
            )
        )
        if not finite.all():
            figure.add_trace(_gaps(x, values, name, color))
    gaps = not np.isfinite(everything).all()
    figure.update_xaxes(title_text=x_label)
    figure.update_layout(
        yaxis={
            "title": {"text": y_label},
            "type": "log" if log else "linear",
            "exponentformat": "power",
        },
        yaxis2={"overlaying": "y", "range": [-0.02, 1.0], "visible": False},
        showlegend=len(lines) > 1 or gaps,
        height=400,
    )
    return finish(figure)


def _dash(index: int) -> str:
    """Return a dash that tells a line apart where its color is used again."""
    return _DASHES[(index // len(COLORS)) % len(_DASHES)]


def error_band(
    x: np.ndarray, values: np.ndarray, widths: np.ndarray, color: str, log: bool
) -> "go.Scatter":
    """Return the band of plus and minus a width around a line."""
    import plotly.graph_objects as go

    low, high = values - widths, values + widths
    keep = np.isfinite(low) & np.isfinite(high)
    if log:  # a band that reaches zero ends at a tenth of its line
        low = np.maximum(low, values / 10)
    return go.Scatter(
        x=np.concatenate([x[keep], x[keep][::-1]]),
        y=np.concatenate([high[keep], low[keep][::-1]]),
        mode="lines",  # few points would be marked
        fill="toself",
        fillcolor=translucent(color, 0.18),
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )


def _gaps(x: np.ndarray, values: np.ndarray, name: str, color: str) -> "go.Scatter":
    """Mark along the lower edge where a line has no finite value."""
    import plotly.graph_objects as go

    at = ~np.isfinite(values)
    return go.Scatter(
        x=x[at],
        y=np.zeros(int(at.sum())),
        yaxis="y2",
        mode="markers",
        name=f"{name}: not finite ({int(at.sum())})",
        text=[str(value) for value in values[at]],
        hovertemplate="%{x:.4g}: %{text}<extra></extra>",
        marker={"symbol": "x-thin", "size": 8, "line": {"width": 1.5, "color": color}},
        showlegend=True,
    )


def eigenvalue_figure(
    values: "Float[np.ndarray, ' pairs'] | xr.Dataset",
    residuals: Float[np.ndarray, " pairs"] | None = None,
    converged: Shaped[np.ndarray, " pairs"] | None = None,
) -> "go.Figure":
    """Draw eigenvalues as stems, largest first; those not converged are hollow.

    The bars are residuals: an exact eigenvalue lies within each.

    Args:
        values: Eigenvalues; or a dataset with `value` and, where known, `residual` and
            `converged`.
        residuals: Norms of Hv - λv for unit v.
        converged: Whether each met its tolerance.

    Raises:
        InputError: The dataset lacks `value`.
    """
    import plotly.graph_objects as go

    if not isinstance(values, np.ndarray):
        values, residuals, converged = read_eigenvalues(values)
    rank = np.arange(1, len(values) + 1)
    done = np.ones(len(values), bool) if converged is None else converged.astype(bool)
    stems = go.Scatter(
        x=np.repeat(rank, 3),
        y=np.stack(
            [np.zeros_like(values), values, np.full_like(values, np.nan)], 1
        ).ravel(),
        mode="lines",
        line={"color": COLORS[0], "width": 1.5},
        hoverinfo="skip",
        showlegend=False,
    )
    figure = go.Figure(stems)
    for name, mask, symbol in (
        ("converged", done, "circle"),
        ("not converged", ~done, "circle-open"),
    ):
        if not mask.any():
            continue
        errors = None if residuals is None else residuals[mask]
        figure.add_trace(
            go.Scatter(
                x=rank[mask],
                y=values[mask],
                error_y={"type": "data", "array": errors, "thickness": 1.2},
                mode="markers",
                name=name,
                marker={"symbol": symbol, "size": 9, "color": COLORS[0]},
                hovertemplate="λ%{x}: %{y:.6g}<extra></extra>",
            )
        )
    figure.update_xaxes(title_text="rank", dtick=max(1, len(values) // 10))
    figure.update_yaxes(title_text="eigenvalue", rangemode="tozero")
    figure.update_layout(height=360, showlegend=not done.all())
    return finish(figure)


def layers_figure(
    names: "Sequence[str] | xr.Dataset",
    values: Mapping[str, Float[np.ndarray, " _"]] | None = None,
    *,
    stderrs: Mapping[str, Float[np.ndarray, " _"]] | None = None,
) -> "go.Figure":
    """Draw quantities by layer as bars, the first layer on top, one panel a quantity.

    Args:
        names: Names of the layers; or a dataset over `layer`, whose `trace` and
            `top_eigenvalue` are drawn with their errors.
        values: Quantity -> one value a layer; not with a dataset.
        stderrs: Quantity -> one standard error a layer.

    Raises:
        InputError: There is no quantity, or one has another number of values.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    if not isinstance(names, Sequence):
        names, values, stderrs = read_layers(names)
    if not values:
        raise InputError("values must hold at least one quantity, got none")
    for label, column in values.items():
        if len(column) != len(names):
            raise InputError(
                f"quantity {label!r} has {len(column)} values for {len(names)} layers"
            )
    figure = make_subplots(
        rows=len(values), cols=1, subplot_titles=list(values), vertical_spacing=0.12
    )
    for row, (label, column) in enumerate(values.items(), start=1):
        errors = (stderrs or {}).get(label)
        figure.add_trace(
            go.Bar(
                x=np.where(np.isfinite(column), column, np.nan),
                y=list(names),
                orientation="h",
                name=label,
                marker={"color": COLORS[(row - 1) % len(COLORS)]},
                error_x=None
                if errors is None
                else {"type": "data", "array": np.asarray(errors), "thickness": 1.2},
                text=["" if np.isfinite(v) else str(v) for v in column],
                hovertemplate="%{y}: %{x:.6g}<extra></extra>",
            ),
            row=row,
            col=1,
        )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    rows = max(len(names), 2) * len(values)
    figure.update_layout(height=90 + 60 * len(values) + 26 * rows, showlegend=False)
    return finish(figure)
