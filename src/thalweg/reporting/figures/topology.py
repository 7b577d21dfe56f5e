"""Persistence of sub-level sets: the diagram, the bars, the merge tree."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from thalweg.errors import InputError
from thalweg.reporting._samples import read_pairs
from thalweg.reporting.figures.theme import COLORS, finish

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

__all__ = ["merge_tree_figure", "persistence_figure"]

_MOST_BARS = 40


def persistence_figure(
    table: "xr.Dataset | Mapping[str, object]", *, label: str = "loss"
) -> "go.Figure":
    """Draw minima of a sampled surface by birth and death, and as bars between both.

    A component that never dies is drawn at the upper edge, with an arrow head.

    Args:
        table: Columns `birth` and `death`; the result of `ti.persistence`.
        label: What the values are.

    Raises:
        InputError: The table lacks `birth` or `death`.
    """
    from plotly.subplots import make_subplots

    births, deaths = read_pairs(table)
    low, cap = _range(births, deaths)
    shown = min(len(births), _MOST_BARS)
    title = "bars" if shown == len(births) else f"the {shown} longest bars"
    figure = make_subplots(
        rows=2, cols=1, subplot_titles=["birth and death", title], vertical_spacing=0.16
    )
    for trace in _diagram(births, deaths, low, cap):
        figure.add_trace(trace, row=1, col=1)
    for trace in _bars(births[:shown], deaths[:shown], cap):
        figure.add_trace(trace, row=2, col=1)
    figure.update_xaxes(title_text=f"birth ({label})", row=1, col=1)
    figure.update_yaxes(title_text=f"death ({label})", row=1, col=1)
    figure.update_xaxes(title_text=label, row=2, col=1)
    figure.update_yaxes(
        title_text="minimum", autorange="reversed", showgrid=False, row=2, col=1
    )
    span = [low - 0.04 * (cap - low), cap + 0.04 * (cap - low)]
    figure.update_xaxes(range=span, zeroline=False)
    figure.update_yaxes(range=span, zeroline=False, row=1, col=1)
    figure.update_layout(height=700, showlegend=False)
    return finish(figure)


def _range(births: np.ndarray, deaths: np.ndarray) -> tuple[float, float]:
    finite = np.concatenate([births, deaths])
    finite = finite[np.isfinite(finite)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    span = high - low or max(abs(high), 1.0)
    return low, high + 0.12 * span


def _diagram(births: np.ndarray, deaths: np.ndarray, low: float, cap: float) -> list:
    import plotly.graph_objects as go

    mortal = np.isfinite(deaths)
    traces = [
        go.Scatter(
            x=[low, cap],
            y=[low, cap],
            mode="lines",
            line={"color": COLORS[6], "width": 1, "dash": "dot"},
            hoverinfo="skip",
        )
    ]
    for mask, symbol, text in (
        (mortal, "circle", "dies at %{y:.6g}"),
        (~mortal, "triangle-up", "never dies"),
    ):
        traces.append(
            go.Scatter(
                x=births[mask],
                y=np.where(mortal, deaths, cap)[mask],
                mode="markers",
                marker={"symbol": symbol, "size": 10, "color": COLORS[0]},
                hovertemplate=f"born at %{{x:.6g}}, {text}<extra></extra>",
            )
        )
    return traces


def _bars(births: np.ndarray, deaths: np.ndarray, cap: float) -> list:
    import plotly.graph_objects as go

    rank = np.arange(1, len(births) + 1)
    ends = np.where(np.isfinite(deaths), deaths, cap)
    bars = go.Scatter(
        x=np.stack([births, ends, np.full_like(ends, np.nan)], 1).ravel(),
        y=np.repeat(rank, 3),
        mode="lines",
        line={"color": COLORS[0], "width": 4},
        hoverinfo="skip",
    )
    immortal = ~np.isfinite(deaths)
    heads = go.Scatter(
        x=ends[immortal],
        y=rank[immortal],
        mode="markers",
        marker={"symbol": "triangle-right", "size": 11, "color": COLORS[0]},
        hovertemplate="never dies<extra></extra>",
    )
    return [bars, heads]


def merge_tree_figure(
    births: Float[np.ndarray, " minima"],
    deaths: Float[np.ndarray, " minima"],
    parents: Int[np.ndarray, " minima"],
    *,
    label: str = "loss",
) -> "go.Figure":
    """Draw which basin flows into which: leaves are minima, joints are saddles.

    Args:
        births: Value of each minimum.
        deaths: Value of the saddle where it joins a deeper one; infinite for the
            deepest.
        parents: Index of the minimum that it joins, -1 for the deepest.
        label: What the values are.

    Raises:
        InputError: The parents of some minimum do not lead to a deepest one.
    """
    import plotly.graph_objects as go

    places = leaf_places(deaths, parents)
    _, cap = _range(births, deaths)
    lines: list[tuple[float, float]] = []
    for i, parent in enumerate(parents):
        end = deaths[i] if np.isfinite(deaths[i]) else cap
        lines += [(places[i], births[i]), (places[i], end)]
        if parent >= 0:
            lines.append((places[int(parent)], end))
        lines.append((np.nan, np.nan))
    path = np.array(lines)
    figure = go.Figure(
        [
            go.Scatter(
                x=path[:, 0],
                y=path[:, 1],
                mode="lines",
                line={"color": COLORS[6], "width": 1.6},
                hoverinfo="skip",
            ),
            go.Scatter(
                x=places,
                y=births,
                mode="markers",
                marker={"size": 9, "color": COLORS[0]},
                text=[f"minimum {i}" for i in range(len(births))],
                hovertemplate="%{text}: %{y:.6g}<extra></extra>",
            ),
        ]
    )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(title_text=label)
    figure.update_layout(height=400, showlegend=False, margin={"b": 20})
    return finish(figure)


def leaf_places(
    deaths: Float[np.ndarray, " minima"], parents: Int[np.ndarray, " minima"]
) -> Float[np.ndarray, " minima"]:
    """Return the place of each minimum from left to right so that no branches cross.

    The children of a minimum stand right of it, those that join it first next to it.

    Raises:
        InputError: Following the parents from some minimum does not end.
    """
    children: dict[int, list[int]] = {}
    for i in np.argsort(deaths, kind="stable"):
        children.setdefault(int(parents[i]), []).append(int(i))
    places = np.full(len(parents), np.nan)
    stack = children.get(-1, [])[::-1]
    place = 0
    while stack:
        i = stack.pop()
        places[i], place = float(place), place + 1
        stack += children.get(i, [])[::-1]
    if np.isnan(places).any():
        lost = int(np.flatnonzero(np.isnan(places))[0])
        raise InputError(f"parents of minimum {lost} do not lead to a deepest one (-1)")
    return places
