"""Curvature during training: λ_max beside what the learning rate tolerates."""

from typing import TYPE_CHECKING

import numpy as np

from thalweg.reporting._tracking import read_tracking
from thalweg.reporting.figures.lines import error_band
from thalweg.reporting.figures.theme import COLORS, finish

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

__all__ = ["tracking_figure"]


def tracking_figure(dataset: "xr.Dataset") -> "go.Figure":
    """Draw what a tracker measured over the steps, one panel a quantity.

    Beside λ_max the curvature at which the optimizer becomes unstable: 2/η for plain
    gradient descent. The bands are residuals and standard errors.

    Args:
        dataset: The result of `Tracker.to_dataset`; variables over `step`.

    Raises:
        InputError: The dataset has no `step`, or none of the quantities.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    tracked = read_tracking(dataset)
    steps, panels = tracked.steps, tracked.panels
    figure = make_subplots(
        rows=len(panels),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.15 / len(panels),
        row_heights=[2.0 if p.name == "lambda_max" else 1.0 for p in panels],
    )
    for row, panel in enumerate(panels, start=1):
        finite = panel.values[np.isfinite(panel.values)]
        if panel.errors is not None:
            band = error_band(steps, panel.values, panel.errors, COLORS[0], panel.log)
            figure.add_trace(band, row=row, col=1)
        figure.add_trace(
            go.Scatter(
                x=steps,
                y=np.where(np.isfinite(panel.values), panel.values, np.nan),
                name="λ_max" if panel.name == "lambda_max" else panel.label,
                mode="lines" if len(steps) > 30 else "lines+markers",
                line={"color": COLORS[0], "width": 2},
                marker={"size": 5},
                showlegend=panel.name == "lambda_max",
            ),
            row=row,
            col=1,
        )
        kind = "log" if panel.log else "linear"
        scale = {"type": kind, **({"dtick": _ticks(finite)} if panel.log else {})}
        figure.update_yaxes(title_text=panel.label, row=row, col=1, **scale)
    if tracked.threshold is not None:  # λ_max is the first panel
        name, values = tracked.threshold
        line = go.Scatter(
            x=steps,
            y=values,
            name=name,
            mode="lines" if np.isfinite(values).sum() > 1 else "markers",
            line={"color": COLORS[1], "width": 2, "dash": "dash"},
        )
        figure.add_trace(line, row=1, col=1)
        figure.update_yaxes(rangemode="tozero", row=1, col=1)
    figure.update_xaxes(title_text="step", row=len(panels), col=1)
    figure.update_layout(height=120 + 150 * (len(panels) + 1))
    return finish(figure)


def _ticks(values: np.ndarray) -> str | int:
    """Return ticks at 1, 2, 5 of a decade where there are few decades."""
    return "D2" if values.max() < 200 * values.min() else 1
