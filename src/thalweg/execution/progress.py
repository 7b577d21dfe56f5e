"""What a long job shows: done and total, points a second, time left, extremes."""

import math
import sys
import time
from collections.abc import Mapping
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from thalweg.errors import InputError

ProgressName = Literal["auto", "plain", "none"]


@runtime_checkable
class Progress(Protocol):
    """Told how a job goes on; `total` and `size` count points."""

    def start(self, total: int, done: int) -> None:
        """Begin; `done` points were found in the store."""

    def advance(self, size: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Count one finished item."""

    def close(self) -> None:
        """End, also after an error."""


class _Counted:
    """Counts, rate and extremes, for those that print them."""

    def start(self, total: int, done: int) -> None:
        self.total, self.done, self.fresh = total, done, 0
        self.low, self.high = math.inf, -math.inf
        self.began = time.monotonic()

    def advance(self, size: int, arrays: Mapping[str, np.ndarray]) -> None:
        self.done += size
        self.fresh += size
        values = arrays.get("loss")
        if values is not None and np.isfinite(values).any():
            finite = values[np.isfinite(values)]
            self.low = min(self.low, float(finite.min()))
            self.high = max(self.high, float(finite.max()))

    def close(self) -> None:
        pass

    @property
    def rate(self) -> float:
        return self.fresh / max(time.monotonic() - self.began, 1e-9)

    @property
    def extremes(self) -> str:
        return (
            f"min {self.low:.4g} max {self.high:.4g}" if self.low <= self.high else ""
        )

    def line(self) -> str:
        left = (self.total - self.done) / self.rate if self.fresh else math.inf
        eta = f"{left:.0f} s left" if math.isfinite(left) else ""
        parts = (f"{self.done}/{self.total}", f"{self.rate:.3g}/s", eta, self.extremes)
        return ", ".join(part for part in parts if part)


class PlainProgress(_Counted):
    """One line on stderr every `every` seconds and at the end."""

    def __init__(self, every: float = 5.0) -> None:
        self.every = every

    def start(self, total: int, done: int) -> None:
        """Begin, saying what a store held."""
        super().start(total, done)
        self.printed = self.began
        if done:
            self._print(f"{done}/{total} found in the store")

    def advance(self, size: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Count, and print when it is time."""
        super().advance(size, arrays)
        now = time.monotonic()
        if now - self.printed >= self.every or self.done == self.total:
            self.printed = now
            self._print(self.line())

    @staticmethod
    def _print(text: str) -> None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


class BarProgress(_Counted):
    """A bar on the terminal."""

    def start(self, total: int, done: int) -> None:
        """Draw the bar."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        super().start(total, done)
        self.bar = Bar(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.3g}/s"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[extremes]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self.task = self.bar.add_task(
            "", total=total, completed=done, rate=0.0, extremes=""
        )
        self.bar.start()

    def advance(self, size: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Move the bar."""
        super().advance(size, arrays)
        self.bar.update(
            self.task, completed=self.done, rate=self.rate, extremes=self.extremes
        )

    def close(self) -> None:
        """Take the bar away."""
        self.bar.stop()


def as_progress(progress: "ProgressName | Progress | None" = None) -> Progress:
    """Return the display that a setting names.

    Args:
        progress: None or "auto" is a bar on a terminal and nothing elsewhere; "plain"
            lines; "none"; or an object with `start`, `advance` and `close`.
    """
    if progress is None or progress == "auto":
        return BarProgress() if sys.stderr.isatty() else _Counted()
    if progress == "plain":
        return PlainProgress()
    if progress == "none":
        return _Counted()
    if isinstance(progress, str):
        raise InputError(
            f"progress must be 'auto', 'plain' or 'none', got {progress!r}"
        )
    return progress
