"""Averages over Gaussian surroundings of a point, and the noise it tolerates."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from thalweg.instruments.neighborhood import Neighborhood

_FLATTEST = 1e24  # growth of σ² from its start before the surroundings count as flat


class Average(NamedTuple):
    """A mean over antithetic pairs, and its standard error."""

    value: float
    stderr: float


class Tolerance(NamedTuple):
    """The noise level at which the mean loss has risen by a given amount."""

    sigma: float
    stderr: float
    note: str


def mean_loss(area: Neighborhood, sigma: float, pairs: int, seed: int) -> Average:
    """Return E L(θ + Tξ), ξ ~ N(0, σ² I), over antithetic pairs ±ξ.

    The odd part of L cancels within a pair: on a quadratic only the spread of ξᵀAξ is
    left. Cost: 2 `pairs` losses.
    """
    means = torch.cat(
        [
            area.losses(torch.cat([sigma * z, -sigma * z])).reshape(2, -1).mean(0)
            for z in area.draws(pairs, seed)
        ]
    )
    return Average(float(means.mean()), _stderr(means))


def tolerated_noise(
    area: Neighborhood, base: float, rise: float, start: float, pairs: int, seed: int
) -> Tolerance:
    """Return the σ at which E L(θ + σTξ) - L(θ) first exceeds `rise`.

    The same ξ serve every σ, so the mean is a smooth function of σ; its root is found
    in σ² (where a quadratic is linear) by Brent's method, after growing σ² from that
    of `start`: as linear extrapolation says, by 2 at least and by 16 at most. A mean
    that is not finite counts as above.
    """
    from scipy.optimize import brentq

    ceiling = 1e3 * rise

    def excess(variance: float) -> float:
        mean = mean_loss(area, math.sqrt(variance), pairs, seed).value
        above = mean - base - rise
        return min(above, ceiling) if math.isfinite(above) else ceiling

    low, high = 0.0, start**2
    while (missing := -excess(high)) >= 0:
        if high > _FLATTEST * start**2:
            sigma = math.sqrt(high)
            note = f"the mean loss does not rise by {rise} up to sigma={sigma:.2g}"
            return Tolerance(math.inf, 0.0, note)
        risen = rise - missing
        factor = 1.5 * rise / risen if risen > 0 else 16.0
        low, high = high, high * min(16.0, max(2.0, factor))
    variance = brentq(
        lambda v: excess(v) if v > 0 else -rise, low, high, xtol=1e-300, rtol=1e-6
    )
    sigma = math.sqrt(variance)
    here, wider = (mean_loss(area, s, pairs, seed) for s in (sigma, 1.01 * sigma))
    slope = (wider.value - here.value) / (0.01 * sigma)
    return Tolerance(sigma, here.stderr / slope if slope > 0 else math.nan, "")


def _stderr(values: Tensor) -> float:
    if len(values) < 2:
        return math.nan
    return float(values.std()) / math.sqrt(len(values))
