"""Run benchmarks by name, all by default; print JSON and keep it under results/."""

import sys
from functools import cache
from importlib import import_module

import torch

from benchmarks.cases import CASES
from benchmarks.recording import record
from benchmarks.subject import subject

# Modules with a function `measure` that returns all of their figures.
MODULES = (
    "two_layer_relu",
    "deep_linear",
    "relu_topology",
    "refine",
    "alignment",
    "executors",
)
subject_once = cache(subject)


def figures(name: str) -> dict[str, object]:
    """Measure one benchmark; the cases are in float32."""
    if name in CASES:
        contenders = CASES[name](subject_once(torch.float32))
        return {"dtype": "float32", "contenders": contenders}
    return import_module(f"benchmarks.{name}").measure()


def main(names: list[str]) -> int:
    """Run the named benchmarks in one thread; return the exit code."""
    known = [*CASES, *MODULES]
    unknown = sorted(set(names) - set(known))
    if unknown:
        print(f"unknown: {unknown}; there are {known}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    for name in names or known:
        record(name, figures(name))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
