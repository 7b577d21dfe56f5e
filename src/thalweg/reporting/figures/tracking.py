"""Curvature during training: λ_max beside what the learning rate tolerates."""

from typing import TYPE_CHECKING

import numpy as np

from thalweg.errors import InputError
from thalweg.reporting.figures.lines import error_band
from thalweg.reporting.figures.theme import COLORS, finish

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

__all__ = ["tracking_figure"]

_PANELS = {
    "lambda_max": "largest eigenvalue",
    "loss": "loss",
    "gradient_norm": "gradient norm",
    "trace": "trace",
    "sharpness": "sharpness",
    "noise_scale": "noise scale",
}
_ERRORS = {"lambda_max": "lambda_max_residual"}
_LOG = ("loss", "gradient_norm", "noise_scale")


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

    names = [name for name in _PANELS if name in dataset.variables]
    if "step" not in dataset.variables or not names:
        raise InputError(
            f"dataset must have some of {tuple(_PANELS)} over `step`, got "
            f"{sorted(map(str, dataset.variables))}"
        )
    steps = _numbers(dataset, "step")
    figure = make_subplots(
        rows=len(names),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.15 / len(names),
        row_heights=[2.0 if name == "lambda_max" else 1.0 for name in names],
    )
    for row, name in enumerate(names, start=1):
        values = _numbers(dataset, name)
        finite = values[np.isfinite(values)]
        log = name in _LOG and len(finite) > 0 and bool((finite > 0).all())
        error = _ERRORS.get(name, f"{name}_stderr")
        if error in dataset.variables:
            widths = _numbers(dataset, error)
            band = error_band(steps, values, widths, COLORS[0], log)
            figure.add_trace(band, row=row, col=1)
        figure.add_trace(
            go.Scatter(
                x=steps,
                y=np.where(np.isfinite(values), values, np.nan),
                name="λ_max" if name == "lambda_max" else _PANELS[name],
                mode="lines" if len(steps) > 30 else "lines+markers",
                line={"color": COLORS[0], "width": 2},
                marker={"size": 5},
                showlegend=name == "lambda_max",
            ),
            row=row,
            col=1,
        )
        scale = {"type": "log", "dtick": _ticks(finite)} if log else {"type": "linear"}
        figure.update_yaxes(title_text=_PANELS[name], row=row, col=1, **scale)
    if "lambda_max" in names and (line := _threshold(dataset, steps)) is not None:
        figure.add_trace(line, row=names.index("lambda_max") + 1, col=1)
        figure.update_yaxes(rangemode="tozero", row=1, col=1)
    figure.update_xaxes(title_text="step", row=len(names), col=1)
    figure.update_layout(height=120 + 150 * (len(names) + 1))
    return finish(figure)


def _threshold(dataset: "xr.Dataset", steps: np.ndarray) -> "go.Scatter | None":
    """Return the line of the stability threshold, where one is known."""
    import plotly.graph_objects as go

    if "threshold" not in dataset.variables:
        return None
    values = _numbers(dataset, "threshold")
    known = np.isfinite(values)
    if not known.any():
        return None
    plain = np.allclose(
        values[known] * _numbers(dataset, "learning_rate")[known], 2.0, rtol=1e-9
    )
    return go.Scatter(
        x=steps,
        y=np.where(known, values, np.nan),
        name="2/η" if plain else "stability threshold (2/η with momentum)",
        mode="lines" if known.sum() > 1 else "markers",
        line={"color": COLORS[1], "width": 2, "dash": "dash"},
    )


def _ticks(values: np.ndarray) -> str | int:
    """Return ticks at 1, 2, 5 of a decade where there are few decades."""
    return "D2" if values.max() < 200 * values.min() else 1


def _numbers(dataset: "xr.Dataset", name: str) -> np.ndarray:
    return np.asarray(dataset[name].values, dtype=float)
