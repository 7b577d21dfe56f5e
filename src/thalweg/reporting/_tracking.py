"""What a tracker measured, as both kinds of figures draw it."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from thalweg.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

PANELS = {
    "lambda_max": "largest eigenvalue",
    "loss": "loss",
    "gradient_norm": "gradient norm",
    "trace": "trace",
    "sharpness": "sharpness",
    "noise_scale": "noise scale",
}
_ERRORS = {"lambda_max": "lambda_max_residual"}
_LOG = ("loss", "gradient_norm", "noise_scale")


class Panel(NamedTuple):
    """One quantity over the steps; `errors` where there are, `log` where it fits."""

    name: str
    label: str
    values: np.ndarray
    errors: np.ndarray | None
    log: bool


class Tracked(NamedTuple):
    """Steps, a panel a quantity, and the stability threshold with its name."""

    steps: np.ndarray
    panels: tuple[Panel, ...]
    threshold: tuple[str, np.ndarray] | None


def is_tracking(dataset: "xr.Dataset") -> bool:
    """Return whether a dataset holds quantities of a tracker over `step`."""
    return "step" in dataset.variables and any(
        name in dataset.variables and dataset[name].dims == ("step",) for name in PANELS
    )


def read_tracking(dataset: "xr.Dataset") -> Tracked:
    """Read the result of `Tracker.to_dataset`.

    Raises:
        InputError: The dataset has no `step`, or none of the quantities.
    """
    if not is_tracking(dataset):
        raise InputError(
            f"dataset must have some of {tuple(PANELS)} over `step`, got "
            f"{sorted(map(str, dataset.variables))}"
        )
    names = [name for name in PANELS if name in dataset.variables]
    panels = tuple(_panel(dataset, name) for name in names)
    threshold = _threshold(dataset) if "lambda_max" in names else None
    return Tracked(_numbers(dataset, "step"), panels, threshold)


def _panel(dataset: "xr.Dataset", name: str) -> Panel:
    values = _numbers(dataset, name)
    finite = values[np.isfinite(values)]
    log = name in _LOG and len(finite) > 0 and bool((finite > 0).all())
    error = _ERRORS.get(name, f"{name}_stderr")
    errors = _numbers(dataset, error) if error in dataset.variables else None
    return Panel(name, PANELS[name], values, errors, log)


def _threshold(dataset: "xr.Dataset") -> tuple[str, np.ndarray] | None:
    """Return the stability threshold and its name, where one is known."""
    if "threshold" not in dataset.variables:
        return None
    values = _numbers(dataset, "threshold")
    known = np.isfinite(values)
    if not known.any():
        return None
    products = values[known] * _numbers(dataset, "learning_rate")[known]
    plain = np.allclose(products, 2.0, rtol=1e-9)
    name = "2/η" if plain else "stability threshold (2/η with momentum)"
    return name, np.where(known, values, np.nan)


def _numbers(dataset: "xr.Dataset", name: str) -> np.ndarray:
    return np.asarray(dataset[name].values, dtype=float)
