"""From saddle to saddle: plateaus of small starts, and the time to leave zero."""

import math
from dataclasses import astuple
from functools import partial

import numpy as np
import torch
import xarray

from thalweg.provenance import attributes
from thalweg.reporting import Figure, Section, Table, Text, line_figure
from thalweg.solvable import DeepLinear
from thalweg.solvable.deep_linear import Plateau, find_plateaus, learning_time
from thalweg.studies.claims import Claim, judge
from thalweg.studies.deep_linear.scale import Scale, diagonal
from thalweg.studies.store import StudyStore

S = (3.0, 1.5, 0.7)
RECORDS, ETA, SIGMA, B = 600, 0.01, 0.1, 16
#: depth -> widths, standard deviation of the start, steps between records
NETS = {2: ((3, 10, 3), 1e-3, 2), 3: ((3, 6, 6, 3), 0.05, 10)}
RUNS = {"GD": None, "SGD": B}
STARTS = {
    2: (1e-2, 1e-3, 1e-4, 1e-5),
    3: (1e-2, 1e-3, 1e-4, 1e-5),
    4: (1e-2, 1e-3, 1e-4),
}

Plateaus = dict[tuple[int, str], tuple[Plateau, ...]]


def measure(
    scale: Scale, seeds: tuple[int, ...], store: StudyStore
) -> tuple[xarray.Dataset, Plateaus]:
    """Return losses over time and orders of learning, and the plateaus of one run."""
    losses = np.empty((len(NETS), len(RUNS), RECORDS + 1))
    times = np.empty((len(NETS), RECORDS + 1))
    ordered = np.empty((len(NETS), len(RUNS)))
    plateaus: Plateaus = {}
    for i, (L, (widths, std, every)) in enumerate(NETS.items()):
        land = DeepLinear(diagonal(S), widths, sigma=SIGMA)
        times[i] = ETA * every * np.arange(RECORDS + 1)
        for j, (name, batch) in enumerate(RUNS.items()):
            simulate = partial(_simulate, land, std, every, batch, scale.starts)
            key = f"saddles-L{L}-B{batch or 0}-n{scale.starts}"
            parts = [
                store.once(f"{key}-seed{seed}", partial(simulate, seed))
                for seed in seeds
            ]
            points = torch.from_numpy(parts[0]["points"])
            losses[i, j] = land.loss(points).numpy()
            half = np.concatenate([part["half"] for part in parts])
            ordered[i, j] = (half[:, 1:] > half[:, :-1]).all(1).mean()
            plateaus[L, name] = find_plateaus(land, times[i], points, quantile=0.0)
    data = xarray.Dataset(
        {
            "loss": (("depth", "run", "record"), losses),
            "time": (("depth", "record"), times),
            "ordered": (("depth", "run"), ordered),
        },
        coords={"depth": list(NETS), "run": list(RUNS)},
        attrs=attributes(
            S=list(S), eta=ETA, B=B, sigma=SIGMA, starts=scale.starts,
            seeds=list(seeds), plateaus=_records(plateaus),
        ),
    )  # fmt: skip
    return data, plateaus


def _simulate(
    land: DeepLinear, std: float, every: int, batch: int | None, n: int, seed: int
) -> dict[str, object]:
    run = land.simulate_sgd(
        land.gaussian_start(seed=seed, n=n, std=std), ETA, batch, seed=seed,
        n_steps=RECORDS * every, record_every=every, passage=0.5,
    )  # fmt: skip
    return {"points": run.points[:, 0].numpy(), "half": run.first_passage}


def _records(plateaus: Plateaus) -> list[dict[str, object]]:
    return [
        {"depth": L, "run": name} | vars(plateau)
        for (L, name), found in plateaus.items()
        for plateau in found
    ]


def measure_escapes() -> xarray.Dataset:
    """Return when gradient descent on the matrices has learned half of one mode."""
    rows = []
    for L, starts in STARTS.items():
        land = DeepLinear(diagonal((1.0,)), (1,) * (L + 1))
        for s0 in starts:
            exact = float(learning_time(s0, 0.5, 1.0, L))
            n_steps = math.ceil(1.2 * exact / ETA)
            run = land.simulate_sgd(
                land.aligned(s0), ETA, None, n_steps=n_steps, seed=0, passage=0.5,
                record_every=n_steps,
            )  # fmt: skip
            assert run.first_passage is not None
            rows.append((L, s0, ETA * float(run.first_passage[0, 0]), exact))
    columns = zip(*rows, strict=True)
    return xarray.Dataset(
        {
            name: ("start", np.array(values))
            for name, values in zip(
                ("depth", "s0", "seen", "exact"), columns, strict=True
            )
        },
        attrs=attributes(S=1.0, eta=ETA),
    )


def claims(
    data: xarray.Dataset, plateaus: Plateaus, escapes: xarray.Dataset
) -> tuple[Claim, ...]:
    """Judge plateaus, their saddles, orders of learning and waiting times."""
    complete = sum(
        [p.rank for p in found] == list(range(len(S))) for found in plateaus.values()
    )
    gaps = [
        abs(p.loss / p.predicted_loss - 1)
        for found in plateaus.values()
        for p in found
        if p.predicted_loss
    ]
    gap = max(gaps, default=math.nan)
    ordered = float(data["ordered"].min())
    exponents = {L: _exponent(escapes, L) for L in (3, 4)}
    worst = max(abs(found - (1 - 2 / L)) for L, found in exponents.items())
    return (
        Claim(
            "From a small random start GD and SGD stop at the saddles of rank 0, 1 and "
            f"2 of a teacher of rank 3 (runs of {len(plateaus)} that show all three)",
            complete,
            None,
            "supported" if complete == len(plateaus) else "not seen at this scale",
        ),
        Claim(
            "There the excess loss is half the squared strengths still to learn "
            "(largest relative difference, at most 15 %)",
            gap,
            None,
            judge(gap, at_most=0.15),
        ),
        Claim(
            "Modes are learned in the order of their strengths (least fraction of "
            "starts, over depth 2 and 3, GD and SGD)",
            ordered,
            None,
            judge(ordered, at_least=0.95),
        ),
        Claim(
            "Deeper networks leave zero after a time s0^-(1-2/L) (largest deviation of "
            "the exponent, L = 3 and 4, at most 0.05)",
            worst,
            None,
            judge(worst, at_most=0.05),
        ),
    )


def _exponent(escapes: xarray.Dataset, L: int) -> float:
    """Return the slope of log time over -log s0 at the two smallest starts."""
    part = escapes.where(escapes["depth"] == L, drop=True)
    time, s0 = np.log(part["seen"].values[-2:]), np.log(part["s0"].values[-2:])
    return float(-(time[1] - time[0]) / (s0[1] - s0[0]))


def section(data: xarray.Dataset, plateaus: Plateaus) -> Section:
    """Return losses over time and the table of plateaus."""
    parts: list[Text | Figure | Table] = [
        Text(
            f"Teacher of strengths {', '.join(f'{s:g}' for s in S)}; Gaussian starts. "
            "Between two modes the loss rests at half the squared strengths still to "
            "learn. Depth 2 passes saddles with negative curvature; at depth 3 they "
            "have none (index 0) and hold longer."
        )
    ]
    for L in NETS:
        part = _until_learned(data.sel(depth=L))
        lines = {name: part["loss"].sel(run=name).values for name in RUNS}
        figure = line_figure(
            part["time"].values,
            lines,
            x_label="time, eta x steps",
            y_label="excess loss",
            scale="log",
        )
        parts.append(Figure(figure, f"Depth {L}: one start, the same for both."))
    columns = (
        "Depth", "Run", "From", "To", "Rank", "Excess loss", "Predicted",
        "Last mode learned", "Next leaves", "Index of the saddle",
    )  # fmt: skip
    rows = [
        (L, name, *("" if _unknown(x) else x for x in astuple(plateau)))
        for (L, name), found in plateaus.items()
        for plateau in found
    ]
    caption = (
        "Plateaus of the runs above, by local minima of the gradient's norm. Predicted "
        "times are those of aligned modes under gradient flow; empty where a mode does "
        "not start at a positive strength."
    )
    parts.append(Table(columns, rows, caption))
    return Section("From saddle to saddle", tuple(parts))


def _until_learned(part: xarray.Dataset) -> xarray.Dataset:
    """Return the records up to a while after gradient descent has learned it all."""
    open_ = (part["loss"].sel(run="GD") > 1e-3).values
    last = int(np.flatnonzero(open_)[-1]) * 6 // 5
    return part.isel(record=slice(0, last + 1))


def _unknown(value: float | None) -> bool:
    return value is None or math.isnan(value)


def escape_section(escapes: xarray.Dataset) -> Section:
    """Return the times to learn half a mode from smaller and smaller starts."""
    rows = [
        tuple(float(escapes[name][i]) for name in ("depth", "s0", "seen", "exact"))
        for i in range(escapes.sizes["start"])
    ]
    table = Table(
        ("Depth", "Start", "Half learned: gradient descent", "Gradient flow"),
        rows,
        "Depth 2 waits log(1/s0), depth L s0^-(1-2/L); one mode of target 1.",
    )
    return Section("How long zero holds", (table,))
