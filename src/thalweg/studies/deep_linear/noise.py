"""The noise of one step of SGD against the strength of a mode, and where it peaks."""

import math
from functools import partial

import numpy as np
import xarray

from thalweg.provenance import attributes
from thalweg.reporting import Figure, Section, Table, Text, line_figure
from thalweg.solvable import DeepLinear
from thalweg.solvable.deep_linear import mode_diffusion, noise_peak
from thalweg.studies.claims import Claim, judge
from thalweg.studies.deep_linear.scale import Scale, diagonal
from thalweg.studies.store import StudyStore

DEPTHS, LEVELS = (2, 3, 4), (0.0, 0.5, 1.5)  # of the critical label noise
ETA, B = 1e-3, 4
GRID = np.linspace(0.04, 1.0, 25)


def measure(scale: Scale, seeds: tuple[int, ...], store: StudyStore) -> xarray.Dataset:
    """Return the variance of one step of SGD on the matrices, and the formula's."""
    axes = ("depth", "level", "s")
    shape = (len(DEPTHS), len(LEVELS), len(GRID))
    measured, predicted = np.empty(shape), np.empty(shape)
    peaks = np.full((2, *shape[:2]), np.nan)
    for i, L in enumerate(DEPTHS):
        critical = noise_peak(1.0, L).critical_sigma
        for j, level in enumerate(LEVELS):
            sigma = level * critical
            parts = [
                store.once(
                    f"noise-L{L}-level{level}-n{scale.kicks}-seed{seed}",
                    partial(_variances, L, sigma, scale.kicks, seed),
                )["variance"]
                for seed in seeds
            ]
            measured[i, j] = np.mean(parts, axis=0)
            predicted[i, j] = ETA * mode_diffusion(GRID, 1.0, L, ETA, B, sigma=sigma)
            place = noise_peak(1.0, L, sigma).peak
            peaks[0, i, j] = math.nan if place is None else place
            peaks[1, i, j] = _interior_peak(measured[i, j])
    return xarray.Dataset(
        {
            "measured": (axes, measured),
            "predicted": (axes, predicted),
            "peak": (axes[:2], peaks[0]),
            "measured_peak": (axes[:2], peaks[1]),
        },
        coords={"depth": list(DEPTHS), "level": list(LEVELS), "s": GRID},
        attrs=attributes(
            eta=ETA, B=B, kicks=scale.kicks * len(seeds), seeds=list(seeds)
        ),
    )


def _variances(L: int, sigma: float, kicks: int, seed: int) -> dict[str, object]:
    land = DeepLinear(diagonal((1.0, 0.4)), (2,) * (L + 1), sigma=sigma)
    return {
        "variance": [
            _variance(land, float(s), kicks, 1000 * seed + i)
            for i, s in enumerate(GRID)
        ]
    }


def _variance(land: DeepLinear, s: float, kicks: int, seed: int) -> float:
    run = land.simulate_sgd(
        land.aligned([s, 0.2]), ETA, B, n_steps=1, n_paths=kicks, seed=seed
    )
    assert run.strength_variance is not None
    return float(run.strength_variance[-1, 0])


def _interior_peak(variance: np.ndarray) -> float:
    """Return the first local maximum of a smooth curve through the values, or NaN."""
    curve = np.polynomial.Polynomial.fit(GRID, variance, 6)
    fine = np.linspace(0.1, 0.99, 891)
    values = curve(fine)
    inner = (values[1:-1] > values[:-2]) & (values[1:-1] > values[2:])
    return float(fine[1 + int(inner.argmax())]) if inner.any() else math.nan


def claims(data: xarray.Dataset) -> tuple[Claim, ...]:
    """Judge the size of the noise and the place of its peak."""
    live = (
        data["predicted"].values > 1e-3 * data["predicted"].max("s").values[..., None]
    )
    excess = (data["measured"] / data["predicted"]).values[live] - 1
    mean, error = excess.mean(), excess.std() / math.sqrt(excess.size)
    clean = data.sel(level=0.0)
    gap = float(np.abs(clean["measured_peak"] - clean["peak"]).max())
    loud = data["measured"].sel(level=1.5)
    highest = float(data["s"].values[loud.values.argmax(1)].min())
    return (
        Claim(
            "One step of SGD moves a strength with variance (eta²/B) L² s^(4-4/L) "
            "(2 (s-S)² + sigma²) (mean relative deviation, within 2 %)",
            float(mean),
            float(error),
            judge(float(mean), float(error), at_least=-0.02, at_most=0.02),
        ),
        Claim(
            "Without label noise the noise peaks at (2L-2)/(3L-2) of the target, "
            "before the mode is learned (largest deviation of the place, L = 2, 3, 4, "
            "at most 0.03)",
            gap,
            None,
            judge(gap, at_most=0.03),
        ),
        Claim(
            "Above the critical label noise there is no peak: it grows up to the "
            "target (least strength of largest noise, L = 2, 3, 4)",
            highest,
            None,
            judge(highest, at_least=0.88),
        ),
    )


def section(data: xarray.Dataset) -> Section:
    """Return the noise against the strength, and the table of peaks."""
    names = {0.0: "no label noise", 0.5: "half the critical", 1.5: "1.5 x the critical"}
    parts: list[Text | Figure | Table] = [
        Text(
            "Variance of the change of a mode's strength in one step of SGD on the "
            "matrices, from aligned weights, against the closed form. A local maximum "
            "before the target exists below the critical label noise only."
        )
    ]
    for L in (DEPTHS[0], DEPTHS[-1]):
        lines = {}
        for level, name in names.items():
            part = data.sel(depth=L, level=level)
            lines[f"{name}: closed form"] = part["predicted"].values
            lines[f"{name}: SGD"] = part["measured"].values
        figure = line_figure(
            GRID,
            lines,
            x_label="strength, of its target",
            y_label="variance of one step",
        )
        parts.append(Figure(figure, f"Depth {L}."))
    rows = []
    for L in DEPTHS:
        critical = noise_peak(1.0, L).critical_sigma
        for level in LEVELS:
            found = noise_peak(1.0, L, level * critical)
            seen = float(data["measured_peak"].sel(depth=L, level=level))
            rows.append(
                (
                    L,
                    level * critical,
                    "none" if found.peak is None else found.peak,
                    "none" if math.isnan(seen) else seen,
                    "" if found.is_global is None else str(found.is_global).lower(),
                )
            )
    columns = (
        "Depth",
        "Label noise",
        "Peak",
        "Seen in SGD",
        "Above that at the target",
    )
    parts.append(Table(columns, rows, "Places of the peak, in units of the target."))
    return Section("Where the noise is largest", tuple(parts))
