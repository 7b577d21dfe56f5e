"""Several jobs, one after the other, that share their workers and one display."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from thalweg.execution.executors import Executor, FutureLike, running_executor
from thalweg.execution.progress import Progress, ProgressName, as_progress


class _Opened:
    """An executor that opens the constant of the first job for all of them."""

    def __init__(self, inner: Executor) -> None:
        self.inner = inner
        self._handles: list[Any] = []

    @property
    def workers(self) -> int:
        return self.inner.workers  # a cluster's is known once the constant is opened

    def open(self, recipe: Callable[[], Any]) -> Any:
        if not self._handles:
            self._handles.append(self.inner.open(recipe))
        return self._handles[0]

    def submit(
        self, handle: Any, function: Callable[..., Any], *args: Any
    ) -> FutureLike:
        return self.inner.submit(handle, function, *args)

    def close(self) -> None:
        """Between two jobs the workers stay."""


class RoundProgress:
    """A display that counts through all rounds.

    Args:
        display: What is shown.
        total: Points of all rounds, at most.
    """

    def __init__(self, display: Progress, total: int) -> None:
        self.display, self.total = display, total
        self.found = 0
        self.begun = False

    def start(self, total: int, done: int) -> None:
        """Begin at the first round that has something to do."""
        if not self.begun:
            self.begun = True
            self.display.start(self.total, self.found + done)

    def advance(self, size: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Count one finished item."""
        self.display.advance(size, arrays)

    def close(self) -> None:
        """Stay: the next round goes on."""


@contextmanager
def in_rounds(
    executor: Any, progress: ProgressName | Progress | None, total: int
) -> Iterator[tuple[Executor, RoundProgress]]:
    """Give the executor and the display for jobs whose recipe is one and the same.

    Workers build the constant once for all jobs. Who runs them sets `found` of the
    display to the points that a store held before the first that has to be computed.

    Args:
        executor: See `as_executor`; one that is made here is closed at the end.
        progress: See `as_progress`.
        total: Points of all rounds, at most.
    """
    display = RoundProgress(as_progress(progress), total)
    with running_executor(executor) as workers:
        try:
            yield _Opened(workers), display
        finally:
            if display.begun:
                display.display.close()
