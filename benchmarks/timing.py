"""Interleaved timing: every contender once, then every one again."""

import contextlib
import io
import statistics
import time
from collections.abc import Callable


def cpu(work: Callable[[], object]) -> tuple[float, object]:
    """Return CPU seconds and the result."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def race(
    contenders: dict[str, Callable[[], object]], repeats: int, *, warm: bool = False
) -> dict[str, dict[str, object]]:
    """Return the median CPU seconds and the result of each, or why it was skipped.

    With `warm` each runs once more, first and uncounted.
    """
    report: dict[str, dict[str, object]] = {}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + warm):
        for name, work in contenders.items():
            if "skipped" in report.get(name, {}):
                continue
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    taken, result = cpu(work)
                if turn or not warm:
                    times[name].append(taken)
            except Exception as error:  # a peer's failure is a figure of its own
                report[name] = {"skipped": f"{type(error).__name__}: {error}"}
                continue
            report[name] = {"result": result}
    ours = statistics.median(times["thalweg"])
    for name, counted in times.items():
        if "skipped" not in report[name]:
            seconds = statistics.median(counted)
            report[name] |= {"cpu_seconds": seconds, "ratio_to_ours": seconds / ours}
    return report
