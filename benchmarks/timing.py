"""Interleaved timing: every contender once, then every one again."""

import contextlib
import io
import statistics
import time
from collections.abc import Callable


def race(
    contenders: dict[str, Callable[[], object]], repeats: int
) -> dict[str, dict[str, object]]:
    """Return the median CPU seconds and the result of each, or why it was skipped."""
    report: dict[str, dict[str, object]] = {}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, work in contenders.items():
            if "skipped" in report.get(name, {}):
                continue
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    started = time.process_time()
                    result = work()
                    times[name].append(time.process_time() - started)
            except Exception as error:  # a peer's failure is a figure of its own
                report[name] = {"skipped": f"{type(error).__name__}: {error}"}
                continue
            report[name] = {"result": result}
    ours = statistics.median(times["thalweg"])
    for name, taken in times.items():
        if "skipped" not in report[name]:
            seconds = statistics.median(taken)
            report[name] |= {"cpu_seconds": seconds, "ratio_to_ours": seconds / ours}
    return report
