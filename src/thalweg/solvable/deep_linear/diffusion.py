"""Where in the learning of one mode the noise of SGD is largest.

One aligned mode under SGD of learning rate eta and batch size B is the diffusion

    ds = [L lam s^(2-2/L) (S - s) + Ito] dt + sqrt(eta/B) L s^(2-2/L) sqrt(v(s)) dW,
    v(s) = 2 lam² (s - S)² + lam sigma²,   Ito = eta/(2B) L (L-1) s^(3-4/L) v(s),

in time t = eta x steps. This is exact for the noise projected on the diagonal of the
mode matrix. True minibatch noise also has off-diagonal components, which push the
weights off the aligned manifold: an error in v of order eta d / B. Source: G. Corlouer
et al., "Stochastic gradient descent in the saddle-to-saddle regime of deep linear
networks" (2026), in our own normalization.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from thalweg.errors import InputError
from thalweg.solvable.deep_linear.checks import (
    Reals,
    batch_size,
    depth,
    nonnegative,
    positive,
)
from thalweg.solvable.deep_linear.mode_flow import learning_time

Coordinate: TypeAlias = Literal["mode", "layer"]


def gradient_variance(
    s: Reals, S: Reals, sigma: Reals = 0.0, lam: Reals = 1.0
) -> np.ndarray:
    """Return v(s) = 2 lam² (s - S)² + lam sigma², the noise of one example.

    Raises:
        InputError: sigma < 0 or lam <= 0.
    """
    lam, sigma = positive("lam", lam), nonnegative("sigma", sigma)
    gap = np.asarray(s, dtype=np.float64) - np.asarray(S, dtype=np.float64)
    return np.asarray(2 * lam**2 * gap**2 + lam * sigma**2)


def mode_drift(
    s: Reals,
    S: Reals,
    L: int,
    eta: float,
    B: int,
    *,
    sigma: float = 0.0,
    lam: float = 1.0,
    ito_correction: bool = True,
) -> np.ndarray:
    """Return the drift of s; without the Ito term it is that of gradient flow.

    Raises:
        InputError: L < 1, B < 1, eta <= 0, s < 0, sigma < 0 or lam <= 0.
    """
    L, B, s = depth(L), batch_size(B), nonnegative("s", s)
    eta = float(positive("eta", eta))
    v = gradient_variance(s, S, sigma, lam)
    drift = L * lam * s ** (2 - 2 / L) * (np.asarray(S, dtype=np.float64) - s)
    if not ito_correction or L == 1:
        return np.asarray(drift)
    return np.asarray(drift + eta / (2 * B) * L * (L - 1) * s ** (3 - 4 / L) * v)


def mode_diffusion(
    s: Reals,
    S: Reals,
    L: int,
    eta: float,
    B: int,
    *,
    sigma: float = 0.0,
    lam: float = 1.0,
) -> np.ndarray:
    """Return g²(s) = (eta/B) L² s^(4-4/L) v(s), the variance of s per unit of time.

    One step of SGD moves s with variance eta g²(s).

    Raises:
        InputError: L < 1, B < 1, eta <= 0, s < 0, sigma < 0 or lam <= 0.
    """
    L, B, s = depth(L), batch_size(B), nonnegative("s", s)
    eta = float(positive("eta", eta))
    v = gradient_variance(s, S, sigma, lam)
    return np.asarray(eta / B * L**2 * s ** (4 - 4 / L) * v)


@dataclass(frozen=True)
class NoisePeak:
    """Where on [0, S] the noise of a mode has its interior maximum.

    Attributes:
        peak: s_-, the local maximum; None where there is none.
        minimum: s_+, the local minimum between the peak and S; None likewise.
        is_global: Whether the peak is above the noise at s = S; None without a peak.
        reason: Why there is no peak, or "".
        critical_sigma: Label noise above which there is none.
    """

    peak: float | None
    minimum: float | None
    is_global: bool | None
    reason: str
    critical_sigma: float


def noise_peak(
    S: float,
    L: int,
    sigma: float = 0.0,
    *,
    lam: float = 1.0,
    coordinate: Coordinate = "mode",
) -> NoisePeak:
    """Return where the noise of a mode is largest as it is learned.

    The noise is s^p v(s) with p = 4 - 4/L in the mode's strength, 2 - 2/L in the
    coordinate of a layer, s^(1/L); the answer depends on the coordinate. It is given as
    a strength in both.

    Raises:
        InputError: L < 1, S <= 0, sigma < 0, lam <= 0 or another coordinate.
    """
    L, S = depth(L), float(positive("S", S))
    variance = float(nonnegative("sigma", sigma)) ** 2 / float(positive("lam", lam))
    if coordinate not in get_args(Coordinate):
        raise InputError(
            f"coordinate must be one of {get_args(Coordinate)}, got {coordinate!r}"
        )
    p = 4 - 4 / L if coordinate == "mode" else 2 - 2 / L
    if p == 0:
        return NoisePeak(
            None, None, None, "at L = 1 the noise decreases from s = 0 on", math.inf
        )
    critical = S * math.sqrt(2 / (p * (p + 2)))
    inner = S**2 - p * (p + 2) * variance / 2
    if inner <= 0:
        reason = (
            f"sigma / sqrt(lam) = {math.sqrt(variance):.6g} is not below the critical "
            f"{critical:.6g}: the noise increases up to s = S"
        )
        return NoisePeak(None, None, None, reason, critical * math.sqrt(lam))
    peak, minimum = (
        ((p + 1) * S + sign * math.sqrt(inner)) / (p + 2) for sign in (-1, 1)
    )
    height = peak**p * (2 * (peak - S) ** 2 + variance)
    is_global = height >= S**p * variance
    return NoisePeak(peak, minimum, is_global, "", critical * math.sqrt(lam))


@dataclass(frozen=True)
class PeakTimes:
    """When the noise of a mode peaks under gradient flow, and when it is learned.

    Attributes:
        peak: Time of the interior maximum; None where there is none.
        learned: First passage to (1 - eps) S.
        gap: `learned` - `peak`; negative where the peak comes later; None likewise.
    """

    peak: float | None
    learned: float
    gap: float | None


def peak_times(
    s0: float,
    S: float,
    L: int,
    sigma: float = 0.0,
    *,
    lam: float = 1.0,
    eps: float = 0.05,
) -> PeakTimes:
    """Return the time of maximal diffusion and the time of learning from s0.

    Raises:
        InputError: eps outside (0, 1), s0 not below (1 - eps) S or above the peak, or
            see `noise_peak`.
    """
    if not 0 < eps < 1:
        raise InputError(f"eps must lie in (0, 1), got {eps}")
    place = noise_peak(S, L, sigma, lam=lam).peak
    learned = float(learning_time(s0, (1 - eps) * S, S, L, lam))
    if place is None:
        return PeakTimes(None, learned, None)
    peak = float(learning_time(s0, place, S, L, lam))
    gap = learned - peak if math.isfinite(learned) else None
    return PeakTimes(peak, learned, gap)
