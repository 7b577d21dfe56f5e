"""Where modes stay: stationary laws, temperatures and noise collapse."""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import xarray

from thalweg.provenance import attributes
from thalweg.reporting import Figure, Section, Table, Text, line_figure
from thalweg.solvable import DeepLinear
from thalweg.solvable.deep_linear import (
    StationaryDensity,
    collapse_rate,
    effective_temperature,
    simulate_modes,
    stationary_density,
    stationary_moments,
)
from thalweg.studies.claims import Claim, judge
from thalweg.studies.deep_linear.scale import Scale, diagonal
from thalweg.studies.store import StudyStore


@dataclass(frozen=True)
class Case:
    """One stationary law."""

    name: str
    L: int
    eta: float
    B: int
    sigma: float

    @property
    def law(self) -> StationaryDensity:
        """The law; with label noise and below collapse it has a density."""
        law = stationary_density(1.0, self.L, self.eta, self.B, sigma=self.sigma)
        assert isinstance(law, StationaryDensity)
        return law


CASES = (
    Case("one layer", 1, 0.3, 2, 0.6),
    Case("two layers, weak noise", 2, 0.02, 8, 0.5),
    Case("two layers, strong noise", 2, 0.1, 2, 0.6),
    Case("three layers", 3, 0.06, 3, 0.6),
)
HOT, HOT_ETA, HOT_B, HOT_SIGMA = (2.0, 1.0, 0.5), 0.02, 8, 0.5
FACTORS = (0.05, 0.1, 4.0, 8.0)  # of the rate of collapse
_BINS, _SUBSTEPS = 48, 8
_QUIET = (2, 0.05, 4)  # L, eta and B without label noise


def measure(scale: Scale, seeds: tuple[int, ...], store: StudyStore) -> xarray.Dataset:
    """Return the laws: exact, approximated by Boltzmann's, and simulated."""
    names = [case.name for case in CASES]
    rows = []
    for i, case in enumerate(CASES):
        parts = [
            store.once(
                f"laws-{i}-n{scale.paths}-seed{seed}",
                partial(_simulate, case, scale.paths, seed),
            )
            for seed in seeds
        ]
        rows.append(_row(case, parts))
    axes = {
        "edges": ("case", "edge"), "exact": ("case", "bin"),
        "boltzmann": ("case", "bin"), "simulated": ("case", "bin"),
    }  # fmt: skip
    return xarray.Dataset(
        {
            name: (axes.get(name, ("case",)), np.array([row[name] for row in rows]))
            for name in rows[0]
        },
        coords={"case": names},
        attrs=attributes(seeds=list(seeds), paths=scale.paths, substeps=_SUBSTEPS),
    )


def _edges(case: Case) -> np.ndarray:
    law = case.law
    return law.mean + math.sqrt(law.variance) * np.linspace(-4, 4, _BINS + 1)


def _simulate(case: Case, paths: int, seed: int) -> dict[str, object]:
    relaxation = math.ceil(1 / (case.L * case.eta))  # steps
    edges = np.concatenate([[-np.inf], _edges(case), [np.inf]])
    run = partial(
        simulate_modes, 1.0, case.L, case.eta, case.B, s0=1.0, seed=seed,
        n_steps=30 * relaxation, n_paths=paths, sigma=case.sigma,
        record_every=relaxation,
    )  # fmt: skip
    sde = run(substeps=_SUBSTEPS, bins=edges, burn_in=10 * relaxation)
    sgd = run(scheme="sgd")
    assert sde.counts is not None
    late = sde.steps >= 10 * relaxation
    return {
        "counts": sde.counts[0],
        "mean": sde.mean[late].mean(),
        "variance": sde.variance[late].mean(),
        "sgd": sgd.variance[late].mean(),
    }


def _row(case: Case, parts: list[dict[str, np.ndarray]]) -> dict[str, object]:
    from scipy.special import ndtr

    law, edges = case.law, _edges(case)
    counts = np.sum([part["counts"] for part in parts], axis=0)
    simulated = counts / counts.sum()
    exact = np.diff([0.0, *law.cdf(edges), 1.0])
    normal = np.diff([0.0, *ndtr((edges - 1) / math.sqrt(law.temperature)), 1.0])
    width = edges[1] - edges[0]
    moments = {
        method: stationary_moments(
            1.0, case.L, case.eta, case.B, sigma=case.sigma, method=method
        ).variance
        for method in ("boltzmann", "multiplicative", "discrete")
    }
    return {
        "edges": edges,
        "exact": exact[1:-1] / width,
        "boltzmann": normal[1:-1] / width,
        "simulated": simulated[1:-1] / width,
        "distance": np.abs(simulated - exact).sum() / 2,
        "boltzmann_distance": law.total_variation(),
        "mean": law.mean,
        "simulated_mean": np.mean([part["mean"] for part in parts]),
        "variance": law.variance,
        "simulated_variance": np.mean([part["variance"] for part in parts]),
        "sgd_variance": np.mean([part["sgd"] for part in parts]),
        **{f"{name}_variance": value for name, value in moments.items()},
    }


def measure_temperatures(
    scale: Scale, seeds: tuple[int, ...], store: StudyStore
) -> xarray.Dataset:
    """Return the variance of each mode under SGD on the matrices at the minimum."""
    land = DeepLinear(diagonal(HOT), (len(HOT),) * 3, sigma=HOT_SIGMA)
    steps = 2000

    def simulate(seed: int) -> dict[str, object]:
        run = land.simulate_sgd(
            land.aligned(HOT), HOT_ETA, HOT_B, n_steps=steps, n_paths=scale.replicas,
            seed=seed, record_every=50,
        )  # fmt: skip
        assert run.strength_variance is not None
        return {"variance": run.strength_variance[run.steps >= 600].mean(0)}

    variances = [
        store.once(
            f"temperatures-n{scale.replicas}-seed{seed}",
            partial(simulate, seed),
        )["variance"]
        for seed in seeds
    ]
    exact = partial(stationary_moments, L=2, eta=HOT_ETA, B=HOT_B, sigma=HOT_SIGMA)
    heat = partial(effective_temperature, L=2, eta=HOT_ETA, B=HOT_B, sigma=HOT_SIGMA)
    return xarray.Dataset(
        {
            "variance": ("mode", np.mean(variances, axis=0)),
            "temperature": ("mode", [heat(S) for S in HOT]),
            "exact": ("mode", [exact(S).variance for S in HOT]),
        },
        coords={"mode": list(HOT)},
        attrs=attributes(
            eta=HOT_ETA, B=HOT_B, sigma=HOT_SIGMA, L=2, seeds=list(seeds),
            replicas=scale.replicas,
        ),
    )  # fmt: skip


def measure_collapse(
    scale: Scale, seeds: tuple[int, ...], store: StudyStore
) -> xarray.Dataset:
    """Return what is left of a mode below and above the rate of noise collapse."""
    S, B, sigma = 1.0, 1, 6.0
    rate = collapse_rate(S, 2, B, sigma=sigma)

    def simulate(seed: int) -> dict[str, object]:
        lost = []
        for factor in FACTORS:
            eta = factor * rate
            n_steps = math.ceil(60 / eta)
            ends = simulate_modes(
                S, 2, eta, B, s0=1e-12, n_steps=n_steps, n_paths=scale.replicas,
                seed=seed, sigma=sigma, substeps=math.ceil(8 * factor),
                record_every=n_steps, dtype=torch.float64,
            ).final  # fmt: skip
            lost.append(float((ends < 1e-15).mean()))
        L, eta, B_ = _QUIET
        quiet = simulate_modes(
            S, L, eta, B_, s0=0.1, n_steps=1000, n_paths=scale.replicas, seed=seed
        )
        return {"lost": lost, "quiet": np.abs(quiet.final - S).max()}

    parts = [
        store.once(
            f"collapse-n{scale.replicas}-seed{seed}",
            partial(simulate, seed),
        )
        for seed in seeds
    ]
    return xarray.Dataset(
        {
            "lost": ("factor", np.mean([part["lost"] for part in parts], axis=0)),
            "quiet": ((), max(float(part["quiet"]) for part in parts)),
        },
        coords={"factor": list(FACTORS)},
        attrs=attributes(S=S, B=B, sigma=sigma, rate=rate, seeds=list(seeds)),
    )


def claims(
    laws: xarray.Dataset, hot: xarray.Dataset, collapsed: xarray.Dataset
) -> tuple[Claim, ...]:
    """Judge the laws, the temperatures and the collapse."""
    distance = float(laws["distance"].max())
    weak, strong = (
        float(laws["boltzmann_distance"].sel(case=f"two layers, {kind} noise"))
        for kind in ("weak", "strong")
    )
    one = laws.sel(case="one layer")
    discrete = float(one["sgd_variance"] / one["discrete_variance"] - 1)
    ratio = float(hot["variance"][0] / hot["variance"][-1])
    lost = collapsed["lost"]
    below, above = float(lost[:2].max()), float(lost[2:].min())
    return (
        Claim(
            "The density of the zero-flux solution is that of the simulated equation "
            "(largest total variation of four laws, at most 0.02)",
            distance,
            None,
            judge(distance, at_most=0.02),
        ),
        Claim(
            "Boltzmann's law is an approximation for weak noise (total variation "
            "between the two, strong noise minus weak)",
            strong - weak,
            None,
            judge(strong - weak, at_least=0.0),
        ),
        Claim(
            "At one layer the variance of SGD is that of the formula for finite steps "
            "(relative difference, within 2 %)",
            discrete,
            None,
            judge(discrete, at_least=-0.02, at_most=0.02),
        ),
        Claim(
            "Stronger modes are hotter, T ~ S^(2-2/L): SGD on matrices of two layers "
            f"(variance at S = {HOT[0]:g} over that at S = {HOT[-1]:g}; T says "
            f"{HOT[0] / HOT[-1]:g})",
            ratio,
            None,
            judge(
                ratio, at_least=0.75 * HOT[0] / HOT[-1], at_most=1.5 * HOT[0] / HOT[-1]
            ),
        ),
        Claim(
            "Without label noise all mass collapses to the target (largest distance "
            "from it)",
            float(collapsed["quiet"]),
            None,
            judge(float(collapsed["quiet"]), at_most=1e-4),
        ),
        Claim(
            "At two layers a mode is lost above the learning rate of noise collapse "
            "(least fraction of paths lost, at 4 and 8 times the rate)",
            above,
            None,
            judge(above, at_least=0.99),
        ),
        Claim(
            "It is kept below (largest fraction lost, at 5 and 10 % of the rate)",
            below,
            None,
            judge(below, at_most=0.01),
        ),
    )


def section(laws: xarray.Dataset, hot: xarray.Dataset) -> Section:
    """Return densities, their variances and the temperatures."""
    parts: list[Text | Figure | Table] = [
        Text(
            "The stationary law of a mode of target 1 with label noise: the exact "
            "density, Boltzmann's approximation N(S, T) with T = eta L sigma² "
            "S^(2-2/L) / (2B), and a histogram of the simulated equation."
        )
    ]
    for case in CASES[1:3]:
        part = laws.sel(case=case.name)
        edges = part["edges"].values
        lines = {
            "exact": part["exact"].values,
            "Boltzmann": part["boltzmann"].values,
            "simulated": part["simulated"].values,
        }
        figure = line_figure(
            (edges[1:] + edges[:-1]) / 2, lines, x_label="strength", y_label="density"
        )
        parts.append(
            Figure(
                figure,
                f"{case.name.capitalize()}: eta = {case.eta}, B = {case.B}, label "
                f"noise {case.sigma}.",
            )
        )
    columns = (
        "Law", "Total variation: simulated", "Boltzmann", "S - mean", "simulated",
        "Variance", "simulated", "Boltzmann", "multiplicative", "finite steps", "SGD",
    )  # fmt: skip
    rows = []
    for case in CASES:
        part = laws.sel(case=case.name)
        numbers = [
            "distance", "boltzmann_distance", "mean", "simulated_mean", "variance",
            "simulated_variance", "boltzmann_variance", "multiplicative_variance",
            "discrete_variance", "sgd_variance",
        ]  # fmt: skip
        values = [float(part[name]) for name in numbers]
        values[2:4] = [1 - value for value in values[2:4]]
        rows.append((case.name, *values))
    parts.append(
        Table(
            columns,
            rows,
            "Distances from the exact density. The mean lies below the target by an "
            "amount of order eta; at one layer it does not.",
        )
    )
    rows = [
        tuple(
            float(x)
            for x in (mode, *(hot[n].sel(mode=mode) for n in hot.data_vars))
        )
        for mode in hot["mode"].values
    ]  # fmt: skip
    parts.append(
        Table(
            ("Strength", "Variance, SGD on matrices", "Temperature", "Exact law"),
            rows,
            f"Two layers, eta = {HOT_ETA}, B = {HOT_B}, label noise {HOT_SIGMA}.",
        )
    )
    return Section("Stationary laws", tuple(parts))


def collapse_section(collapsed: xarray.Dataset) -> Section:
    """Return the fraction of lost modes against the learning rate."""
    rows = [
        (float(factor), float(factor) * float(collapsed.attrs["rate"]), float(lost))
        for factor, lost in zip(
            collapsed["factor"].values, collapsed["lost"].values, strict=True
        )
    ]
    table = Table(
        ("eta, of the rate of collapse", "eta", "Fraction of modes lost"),
        rows,
        "Two layers, S = 1, B = 1, label noise 6; the equation of the mode from "
        "1e-12 until time 60. Lost is a strength below 1e-15.",
    )
    text = Text(
        "Near zero the noise of two layers is multiplicative: above "
        "2 S B / (2 S² + sigma²) it drives the mode to zero, against the gradient."
    )
    return Section("Noise collapse", (text, table))
