"""What the paper claims, beside what the study measured."""

import numpy as np
import xarray

from thalweg.studies.claims import Claim, Verdict, judge

_ROUNDING = 1e-13


def claims_on_pairs(pairs: xarray.Dataset, floor: float) -> tuple[Claim, ...]:
    """Judge two neurons on the circle."""
    both, mixed, free = (
        pairs.sel(configuration=name) for name in pairs["configuration"].values
    )
    above = float(both["lowest"].min()) - floor
    flips = int(both["flips"].sum() + mixed["flips"].sum())
    reached = free["loss"].values < 1e-20
    turned = free["flips"].values[reached, 1] > 0
    return (
        Claim(
            "Two neurons locked with one sign never get below the certified floor "
            "(lowest loss of any start minus the floor)",
            above,
            None,
            judge(above, at_least=-_ROUNDING),
        ),
        Claim(
            "The sign of a locked neuron never changes (number of flips)",
            flips,
            None,
            judge(float(flips), at_most=0.0),
        ),
        _between("Two neurons locked + and -", mixed["loss"].values < 1e-20),
        _between("One locked and one free, both starting positive,", reached),
        Claim(
            "Wherever these succeed the free neuron has turned (fraction)",
            float(turned.mean()) if len(turned) else "no success",
            None,
            judge(float(turned.mean()), at_least=1.0)
            if len(turned)
            else "not seen at this scale",
        ),
    )


def _between(name: str, reached: np.ndarray) -> Claim:
    p = float(reached.mean())
    verdict: Verdict = "supported" if 0 < p < 1 else "not seen at this scale"
    return Claim(
        f"{name} reach 1e-20 from some random starts and not from all (fraction)",
        p,
        float(np.sqrt(p * (1 - p) / len(reached))),
        verdict,
    )


def claims_on_widths(widths: xarray.Dataset, floor: float) -> tuple[Claim, ...]:
    """Judge success against width and free neurons."""
    locked = widths.sel(free=0)
    successes = int(locked["successes"].sum())
    above = float(locked["lowest"].min()) - floor
    one, two = widths.sel(free=1), widths.sel(free=2)
    growth = float((two["fraction"] - one["fraction"]).mean())
    error = float(np.sqrt((two["stderr"] ** 2 + one["stderr"] ** 2).sum()))
    error /= widths.sizes["width"]
    least = float(one["fraction"].min())
    return (
        Claim(
            "Locked with one sign, no width reaches the target (successes)",
            successes,
            None,
            judge(float(successes), at_most=0.0),
        ),
        Claim(
            "Locked with one sign, no width gets below the floor (lowest loss minus "
            "the floor)",
            above,
            None,
            judge(above, at_least=-_ROUNDING),
        ),
        Claim(
            "One free neuron lets some starts through at every width (lowest fraction)",
            least,
            None,
            "supported" if least > 0 else "not seen at this scale",
        ),
        Claim(
            "A second free neuron lets more starts through (difference of fractions, "
            "mean over widths)",
            growth,
            error,
            judge(growth, error, at_least=0.0),
        ),
    )


def claims_on_starts(starts: dict[str, float], floor: float) -> tuple[Claim, ...]:
    """Judge how often starts of torch's law are obstructed, and whether they are."""
    gap = abs(starts["fraction"] - starts["expected"]) / starts["stderr"]
    above = starts["lowest"] - floor
    return (
        Claim(
            "Two neurons started by torch's law are obstructed as often as the closed "
            f"form says, {starts['expected']:.4g} (difference in standard errors)",
            gap,
            None,
            judge(gap, at_most=4.0),
        ),
        Claim(
            "Obstructed starts of torch's law never get below the floor (lowest loss "
            "minus the floor)",
            above,
            None,
            judge(above, at_least=-_ROUNDING),
        ),
    )


def claims_on_decay(
    decay: xarray.Dataset, drifts: dict[float, float], floor: float
) -> tuple[Claim, ...]:
    """Judge what weight decay and the step do to the conserved quantities."""
    flips = int(decay["flips"])
    above = float(decay["lowest"]) - floor
    error = float(np.abs(decay["c"] / decay["law"] - 1).max())
    halved = [
        a / b
        for a, b in zip(list(drifts.values()), list(drifts.values())[1:], strict=False)
    ]
    worst = max(abs(h - 2) for h in halved)
    return (
        Claim(
            "Weight decay does not remove the obstruction (sign flips)",
            flips,
            None,
            judge(float(flips), at_most=0.0),
        ),
        Claim(
            "Under weight decay the loss stays above the floor too (lowest loss minus "
            "the floor)",
            above,
            None,
            judge(above, at_least=-_ROUNDING),
        ),
        Claim(
            "Weight decay makes c shrink as exp(-2 λ t) (largest relative "
            "gap, within 10 %)",
            error,
            None,
            judge(error, at_most=0.1),
        ),
        Claim(
            "Half the learning rate halves the drift of c over a given time (largest "
            "deviation of the ratio from 2, within 0.2)",
            worst,
            None,
            judge(worst, at_most=0.2),
        ),
    )


def claims_on_tabular(tabular: xarray.Dataset) -> tuple[Claim, ...]:
    """Judge the logistic loss on real data where all neurons have one sign."""
    excess = float(tabular["excess"].min())
    two = tabular.sel(width=2, share=0.0)
    bad, good = (two["test"].values[two["obstructed"].values == k] for k in (1, 0))
    gap = float(bad.mean() - good.mean()) if len(bad) and len(good) else float("nan")
    error = float(np.hypot(bad.std() / len(bad) ** 0.5, good.std() / len(good) ** 0.5))
    alone = tabular["test"].sel(width=1).mean() - tabular["test"].sel(width=8).mean()
    return (
        Claim(
            "On real data networks locked with one sign keep the floor of log 2 for "
            "each example of the other class (smallest excess over it)",
            excess,
            None,
            judge(excess, at_least=0.0),
        ),
        Claim(
            "Two neurons locked with one sign do worse in test than two locked with "
            "both (difference of test losses)",
            gap,
            error,
            judge(gap, error, at_least=0.0),
        ),
        Claim(
            "One neuron, which is of one sign, does worse than eight (difference of "
            "test losses)",
            float(alone),
            None,
            judge(float(alone), at_least=0.0),
        ),
    )
