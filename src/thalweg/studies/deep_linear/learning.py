"""How modes are learned: gradient flow, the equation of a mode, SGD on the matrices."""

import math
from functools import partial

import numpy as np
import torch
import xarray

from thalweg.provenance import attributes
from thalweg.reporting import Figure, Section, Table, Text, line_figure
from thalweg.solvable import DeepLinear
from thalweg.solvable.deep_linear import (
    learning_time,
    mode_diffusion,
    mode_strength,
    observe,
    peak_times,
    simulate_modes,
)
from thalweg.studies.claims import Claim, judge
from thalweg.studies.deep_linear.scale import Scale, diagonal
from thalweg.studies.store import StudyStore

S, S0, ETA, SIGMA = (2.0, 1.0, 0.5), 0.02, 0.01, 0.3

_TIMES = (
    "Times, learning rate x steps, at which half of a mode is learned by gradient "
    "flow, by the equation of the mode and by SGD on the matrices; at which its noise "
    "peaks and 95 % are learned under gradient flow, and the gap between the two."
)


def measure(
    L: int, B: int, scale: Scale, seeds: tuple[int, ...], store: StudyStore
) -> xarray.Dataset:
    """Return strengths over time, by theory and by both simulations."""
    land = DeepLinear(diagonal(S), (len(S),) * (L + 1), sigma=SIGMA)
    start = land.aligned(S0)
    last = float(learning_time(S0, 0.99 * S[-1], S[-1], L))
    n_steps = 100 * math.ceil(last / ETA / 100)

    def simulate(seed: int) -> dict[str, object]:
        run = land.simulate_sgd(
            start, ETA, B, n_steps=n_steps, n_paths=scale.replicas, seed=seed,
            passage=0.5,
        )  # fmt: skip
        modes = simulate_modes(
            S, L, ETA, B, s0=S0, n_steps=n_steps, n_paths=scale.paths, seed=seed,
            sigma=SIGMA, passage=0.5,
        )  # fmt: skip
        slow = land.simulate_sgd(
            start, ETA / 2, B, n_steps=2 * n_steps, n_paths=scale.replicas, seed=seed
        )
        return {
            "steps": run.steps,
            "matrices": run.strengths,
            "variance": run.strength_variance,
            "half": run.first_passage,
            "sde": modes.mean,
            "half_sde": modes.first_passage,
            "off": _squared_misalignment(land, run.final),
            "off_slow": _squared_misalignment(land, slow.final),
        }

    parts = [
        store.once(
            f"learning-L{L}-B{B}-n{scale.replicas}-{scale.paths}-seed{seed}",
            partial(simulate, seed),
        )
        for seed in seeds
    ]
    times = ETA * parts[0]["steps"]
    flow = mode_strength(times[:, None], S0, S, L)
    noise = np.stack(
        [
            mode_diffusion(flow[:, a], S[a], L, ETA, B, sigma=SIGMA)
            for a in range(len(S))
        ],
        axis=1,
    )
    points = torch.stack([land.aligned(row) for row in flow])
    half = ETA * np.concatenate([part["half"] for part in parts])
    half_sde = ETA * np.concatenate([part["half_sde"] for part in parts])
    series, replica = ("time", "mode"), ("replica",)
    return xarray.Dataset(
        {
            "flow": (series, flow),
            "sde": (series, np.mean([part["sde"] for part in parts], axis=0)),
            "matrices": (series, np.mean([part["matrices"] for part in parts], axis=0)),
            "deviation": (
                series,
                np.sqrt(np.mean([part["variance"] for part in parts], axis=0)),
            ),
            "noise": (series, noise),
            "trace": ("time", land.noise_trace(points, B).numpy()),
            "half": (("replica", "mode"), half),
            "half_sde": ("mode", half_sde.mean(0)),
            "half_flow": ("mode", learning_time(S0, np.array(S) / 2, S, L)),
            "off": (replica, np.concatenate([part["off"] for part in parts])),
            "off_slow": (replica, np.concatenate([part["off_slow"] for part in parts])),
        },
        coords={"time": times, "mode": list(S)},
        attrs=attributes(L=L, B=B, eta=ETA, sigma=SIGMA, s0=S0, seeds=list(seeds)),
    )


def _squared_misalignment(land: DeepLinear, points: torch.Tensor) -> np.ndarray:
    found = observe(land, points).misalignment
    assert found is not None
    return np.asarray(found.square().numpy())


def claims(data: xarray.Dataset) -> tuple[Claim, ...]:
    """Judge times and order of learning, and the reduction to independent modes."""
    half, exact = data["half"].values, data["half_flow"].values
    late = np.abs(half.mean(0) / exact - 1).max()
    error = (half.std(0) / np.sqrt(len(half)) / exact).max()
    ordered = float((np.diff(half, axis=1) > 0).all(1).mean())
    off, slow = data["off"].values, data["off_slow"].values
    ratio = off.mean() / slow.mean()
    spread = ratio * math.hypot(*(_relative_error(x) for x in (off, slow)))
    return (
        Claim(
            "At small learning rates SGD on the matrices learns half of each mode when "
            "gradient flow does (largest relative difference, at most 5 %)",
            float(late),
            float(error),
            judge(float(late), float(error), at_most=0.05),
        ),
        Claim(
            "Modes that start alike are learned in the order of their strengths "
            "(fraction of replicas of SGD)",
            ordered,
            None,
            judge(ordered, at_least=0.95),
        ),
        Claim(
            "The reduction to independent modes is exact for the projected noise only: "
            "the noise of SGD also misaligns, by |C off its diagonal|² of order "
            "eta d / B (factor when eta is doubled)",
            float(ratio),
            float(spread),
            judge(float(ratio), float(spread), at_least=1.6, at_most=2.6),
        ),
    )


def _relative_error(values: np.ndarray) -> float:
    return float(values.std() / math.sqrt(len(values)) / values.mean())


def section(data: xarray.Dataset) -> Section:
    """Return strengths and noise over time, and the table of times."""
    L, B = int(data.attrs["L"]), int(data.attrs["B"])
    times = data["time"].values
    lines, bands, noises = {}, {}, {}
    for mode in data["mode"].values:
        part = data.sel(mode=mode)
        lines[f"S = {mode:g}, gradient flow"] = part["flow"].values
        name = f"S = {mode:g}, SGD"
        lines[name] = part["matrices"].values
        bands[name] = part["deviation"].values
        noise = part["noise"].values
        noises[f"mode S = {mode:g}"] = noise / noise.max()
    trace = data["trace"].values
    noises["all parameters"] = trace / trace.max()
    strengths = line_figure(
        times, lines, bands=bands, x_label="time, eta x steps", y_label="strength"
    )
    peaks = line_figure(
        times, noises, x_label="time, eta x steps", y_label="noise, of its largest"
    )
    rows = []
    for a, mode in enumerate(data["mode"].values):
        at = peak_times(S0, float(mode), L, SIGMA)
        rows.append(
            (
                float(mode),
                float(data["half_flow"][a]),
                float(data["half_sde"][a]),
                float(data["half"][:, a].mean()),
                "none" if at.peak is None else at.peak,
                at.learned,
                "" if at.gap is None else at.gap,
            )
        )
    columns = (
        "Strength", "Half: flow", "SDE", "SGD", "Noise peaks", "95 %: flow", "Gap",
    )  # fmt: skip
    text = Text(
        f"Depth {L}, batches of {B}, eta = {ETA}, label noise {SIGMA}; every mode "
        f"starts aligned and balanced at {S0}. In the equation of a mode its own noise "
        "is all there is. That is exact for the noise projected on the diagonal of the "
        "mode matrix; the noise of true batches also has components off it, which turn "
        "the singular vectors of the network away from the teacher's, by an amount of "
        "order eta d / B in |C off its diagonal|²."
    )
    return Section(
        "Modes are learned one by one",
        (
            text,
            Figure(strengths, "Bands are the standard deviation over replicas of SGD."),
            Figure(
                peaks,
                "Variance of one step along gradient flow, of each mode's strength and "
                "of the whole gradient, each divided by its largest value.",
            ),
            Table(columns, rows, _TIMES),
        ),
    )
