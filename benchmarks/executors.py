"""What an executor adds to each chunk of a job.

    python -m benchmarks executors

Chunks that compute next to nothing are run on two workers that are there already and
hold the constant; contenders take turns. Wall time of a chunk is what it takes when
both workers are busy, CPU time that of this process alone. Prints JSON and keeps it
under results/.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from thalweg.execution import Item, ProcessExecutor, RayExecutor, execute

CHUNKS = 300
REPEATS = 7
CONSTANT = 1_000_000  # numbers that each worker holds


def recipe() -> torch.Tensor:
    """Return what a worker holds."""
    return torch.linspace(0, 1, CONSTANT)


def chunk(constant: torch.Tensor, i: int) -> dict[str, np.ndarray]:
    """Return one chunk's arrays: 64 losses."""
    return {"loss": constant[64 * i : 64 * (i + 1)].sin().numpy()}


@contextlib.contextmanager
def dask() -> Iterator[object]:
    """Lend a client of two worker processes."""
    from distributed import Client, LocalCluster

    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**settings) as cluster, Client(cluster) as client:
        yield client


MAKERS: dict[str, Callable[[], contextlib.AbstractContextManager]] = {
    "local": lambda: contextlib.nullcontext("local"),
    "process": lambda: ProcessExecutor(2),
    "ray": lambda: RayExecutor(2),
    "dask": dask,
}


def measure() -> dict[str, object]:
    """Measure what all executors take to start, and for a chunk."""
    items = [Item(f"i{i}", (i,)) for i in range(CHUNKS)]
    expected = execute(items, chunk, recipe)
    report: dict[str, dict[str, object]] = {}
    with contextlib.ExitStack() as stack:
        executors = {}
        for name, make in MAKERS.items():
            began = time.perf_counter()
            executors[name] = stack.enter_context(make())
            execute(items[:8], chunk, recipe, executor=executors[name])
            report[name] = {"seconds_to_the_first_chunks": time.perf_counter() - began}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in MAKERS}
        for _ in range(REPEATS):
            for name, executor in executors.items():
                wall, cpu = time.perf_counter(), time.process_time()
                found = execute(items, chunk, recipe, executor=executor)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                times[name].append((wall, cpu))
                report[name]["same_bits"] = report[name].get("same_bits", True) and all(
                    found[key]["loss"].tobytes() == arrays["loss"].tobytes()
                    for key, arrays in expected.items()
                )
    for name, pairs in times.items():
        for kind, values in zip(("wall", "cpu"), zip(*pairs, strict=True), strict=True):
            milliseconds = 1e3 * statistics.median(values) / CHUNKS
            report[name][f"{kind}_milliseconds_a_chunk"] = milliseconds
    return {"chunks": CHUNKS, "workers": 2, "contenders": report}
