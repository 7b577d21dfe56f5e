"""How values become heights, colors and ticks; what is clipped."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from thalweg.errors import InputError
from thalweg.reporting._numbers import power_of_ten

__all__ = ["Scale", "ScaleName", "SymmetricLog", "power_text", "scale_of", "ticks"]

ScaleName: TypeAlias = Literal["auto", "linear", "log"]

# A loss that spans more than this factor is drawn on a logarithmic scale.
_LOG_FROM = 20.0


@dataclass(frozen=True)
class Scale:
    """How values become heights and colors: as they are, or by their logarithm.

    Args:
        log: Whether heights are base-10 logarithms.
        low: Smallest finite value.
        high: Largest finite value, or the level above which values are clipped.
        clipped: How many finite values lie above `high`.
    """

    log: bool
    low: float
    high: float
    clipped: int

    def heights(self, values: Float[np.ndarray, "*grid"]) -> Float[np.ndarray, "*grid"]:
        """Return the heights of the values: NaN where they are not finite."""
        with np.errstate(invalid="ignore"):
            kept = np.where(np.isfinite(values), np.minimum(values, self.high), np.nan)
        return np.log10(kept) if self.log else kept

    def above(self, values: Float[np.ndarray, "*grid"]) -> Bool[np.ndarray, "*grid"]:
        """Return where a finite value lies above the clip level."""
        return np.isfinite(values) & (values > self.high)

    @property
    def limits(self) -> tuple[float, float]:
        """Lowest and highest height, apart by more than nothing."""
        low, high = (
            (float(np.log10(bound)) if self.log else bound)
            for bound in (self.low, self.high)
        )
        if high - low > 1e-12 * max(abs(low), abs(high)):
            return low, high
        margin = 0.05 * max(abs(low), 1e-12 if low else 1.0)
        return low - margin, high + margin


def scale_of(
    values: Float[np.ndarray, "*grid"],
    scale: ScaleName = "auto",
    clip: float | None = None,
) -> Scale:
    """Choose the scale of some values; "auto" is "log" for positive ones far apart.

    Raises:
        InputError: "log" was asked for values that are not all positive, or `clip` is
            not above the smallest value.
    """
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return Scale(log=False, low=0.0, high=1.0, clipped=0)
    low, high = float(finite.min()), float(finite.max())
    if clip is not None and not clip > low:
        raise InputError(f"clip must be above the smallest value {low:.6g}, got {clip}")
    top = high if clip is None else min(high, float(clip))
    if scale == "log" and low <= 0:
        raise InputError(
            f"scale 'log' needs positive values, the smallest is {low:.6g}: "
            "use 'linear'"
        )
    log = scale == "log" or (scale == "auto" and low > 0 and top / low > _LOG_FROM)
    return Scale(log, low, top, int((finite > top).sum()))


def ticks(scale: Scale, count: int = 6) -> tuple[list[float], list[str]]:
    """Return heights and texts of about `count` ticks on a scale."""
    low, high = scale.limits
    if not scale.log:
        return _linear_ticks(low, high, count)
    if high - low > 2.5:
        step = max(1, int(np.ceil((high - low) / count)))
        powers = np.arange(np.ceil(low), np.floor(high) + 1, step)
        return [float(p) for p in powers], [power_text(int(p)) for p in powers]
    heights, texts = [], []
    for power in range(int(np.floor(low)), int(np.ceil(high)) + 1):
        for factor in (1, 2, 5):
            value = factor * 10.0**power
            if low - 1e-9 <= np.log10(value) <= high + 1e-9:
                heights.append(float(np.log10(value)))
                texts.append(f"{value:.6g}")
    return heights, texts


def _linear_ticks(low: float, high: float, count: int) -> tuple[list[float], list[str]]:
    raw = (high - low) / count
    power = 10.0 ** np.floor(np.log10(raw))
    step = power * min((1, 2, 5, 10), key=lambda factor: abs(factor * power - raw))
    heights = np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
    return [float(h) for h in heights], [f"{h:.6g}" for h in heights]


def power_text(power: int) -> str:
    """Return a power of ten as it stands at a tick: 0.01, 1, 100, 10⁴."""
    if -2 <= power <= 3:
        return f"{10.0**power:.6g}"
    return power_of_ten(power)


class SymmetricLog:
    """The axis t -> sign(t) log10(1 + |t| / threshold), linear around zero.

    Args:
        threshold: Where the axis turns from linear to logarithmic.
        extent: Largest |t| on it.
    """

    def __init__(self, threshold: float, extent: float) -> None:
        self.threshold = threshold
        self.extent = extent

    def __call__(self, t: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Return the positions of `t` on the axis."""
        return np.sign(t) * np.log10(1 + np.abs(t) / self.threshold)

    def ticks(self, low: float, high: float) -> tuple[list[float], list[str]]:
        """Return positions and texts of ticks: zero and powers of ten on both sides."""
        first = int(np.ceil(np.log10(self.threshold)))
        last = int(np.floor(np.log10(max(self.extent, self.threshold))))
        step = max(1, (last - first) // 4)
        powers = range(last, first - 1, -step)
        values = [0.0, *(10.0**p for p in powers), *(-(10.0**p) for p in powers)]
        sizes = [power_text(power) for power in powers]
        texts = ["0", *sizes, *(f"−{size}" for size in sizes)]
        kept = [(v, t) for v, t in zip(values, texts, strict=True) if low <= v <= high]
        positions = self(np.array([v for v, _ in kept]))
        return [float(p) for p in positions], [t for _, t in kept]
