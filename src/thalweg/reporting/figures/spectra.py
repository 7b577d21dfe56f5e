"""Spectral densities: eigenvalues on a symmetric logarithmic axis."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from thalweg.errors import InputError
from thalweg.reporting._samples import read_density
from thalweg.reporting._scales import SymmetricLog
from thalweg.reporting.figures.theme import COLORS, finish, translucent

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

__all__ = ["spectra_figure", "spectrum_figure"]


def spectrum_figure(
    dataset: "xr.Dataset",
    eigenvalues: Float[np.ndarray, " pairs"] | Sequence[float] = (),
) -> "go.Figure":
    """Draw a spectral density over a symmetric logarithmic axis, negative side apart.

    The axis is linear below the density's resolution sigma: nothing finer is shown. The
    ticks at the foot are the raw Lanczos nodes, the sticks are eigenvalues found
    one by one.

    Args:
        dataset: Variables `density` and, where kept, `nodes`, over `t`; the result of
            `ti.spectral_density`.
        eigenvalues: Eigenvalues that are known, drawn as sticks.

    Raises:
        InputError: The dataset lacks `t` or `density`.
    """
    import plotly.graph_objects as go

    t, density, axis = read_density(dataset)
    floor, top = float(density.min()), float(density.max())
    figure = go.Figure()
    for name, side, color in (
        ("negative curvature", t <= 0, COLORS[1]),
        ("positive curvature", t >= 0, COLORS[0]),
    ):
        if side.sum() < 2:
            continue
        figure.add_trace(
            go.Scatter(
                x=axis(t[side]),
                y=density[side],
                customdata=t[side],
                mode="lines",
                name=name,
                line={"color": color, "width": 2},
                fill="tozeroy",
                fillcolor=translucent(color, 0.16),
                hovertemplate="λ = %{customdata:.4g}: density %{y:.3g}<extra></extra>",
            )
        )
    if len(eigenvalues):
        figure.add_trace(_sticks(axis, np.asarray(eigenvalues, float), floor, top))
    if "nodes" in dataset.variables:
        figure.add_trace(_nodes(axis, dataset, floor))
    _label_axes(figure, axis, [*t, *map(float, eigenvalues)], floor, top)
    return finish(figure)


def spectra_figure(spectra: "Mapping[str, xr.Dataset]") -> "go.Figure":
    """Draw several spectral densities over one axis, which is linear around zero.

    Args:
        spectra: Results of `ti.spectral_density` by name.

    Raises:
        InputError: A dataset lacks `t` or `density`, or there is none.
    """
    import plotly.graph_objects as go

    if not spectra:
        raise InputError("spectra has no dataset")
    read = {name: read_density(dataset) for name, dataset in spectra.items()}
    axis = SymmetricLog(
        max(own.threshold for _, _, own in read.values()),
        max(own.extent for _, _, own in read.values()),
    )
    figure = go.Figure()
    for index, (name, (t, density, _)) in enumerate(read.items()):
        figure.add_trace(
            go.Scatter(
                x=axis(t),
                y=density,
                customdata=t,
                mode="lines",
                name=name,
                line={"color": COLORS[index % len(COLORS)], "width": 2},
                hovertemplate="λ = %{customdata:.4g}: density %{y:.3g}",
            )
        )
    floors = [float(density.min()) for _, density, _ in read.values()]
    tops = [float(density.max()) for _, density, _ in read.values()]
    ends = np.concatenate([t for t, _, _ in read.values()])
    _label_axes(figure, axis, ends, min(floors), max(tops))
    return finish(figure)


def _label_axes(
    figure: "go.Figure",
    axis: SymmetricLog,
    ends: Sequence[float] | np.ndarray,
    floor: float,
    top: float,
) -> None:
    positions, texts = axis.ticks(float(np.min(ends)), float(np.max(ends)))
    figure.update_xaxes(title_text="eigenvalue", tickvals=positions, ticktext=texts)
    span = np.log10(top / floor)
    figure.update_yaxes(
        title_text="density",
        type="log",
        range=[np.log10(floor) - 0.06 * span, np.log10(top) + 0.06 * span],
        exponentformat="power",
        dtick=max(1, round(span / 6)),
    )
    figure.update_layout(height=420)


def _sticks(
    axis: SymmetricLog, values: np.ndarray, floor: float, top: float
) -> "go.Scatter":
    import plotly.graph_objects as go

    height = floor * (top / floor) ** 0.45
    positions = axis(values)
    return go.Scatter(
        x=np.repeat(positions, 3),
        y=np.tile([floor, height, np.nan], len(values)),
        customdata=np.repeat(values, 3),
        mode="lines+markers",
        name="eigenvalues found",
        line={"color": COLORS[4], "width": 2},
        marker={"size": np.tile([0, 6, 0], len(values)), "color": COLORS[4]},
        hovertemplate="λ = %{customdata:.6g}<extra></extra>",
    )


def _nodes(axis: SymmetricLog, dataset: "xr.Dataset", floor: float) -> "go.Scatter":
    import plotly.graph_objects as go

    nodes = np.ravel(np.asarray(dataset["nodes"].values, dtype=float))
    nodes = np.unique(nodes[np.isfinite(nodes)])
    return go.Scatter(
        x=axis(nodes),
        y=np.full(len(nodes), floor),
        customdata=nodes,
        mode="markers",
        name="Lanczos nodes",
        marker={
            "symbol": "line-ns",
            "size": 7,
            "line": {"width": 1, "color": COLORS[6]},
        },
        hovertemplate="node %{customdata:.6g}<extra></extra>",
    )
