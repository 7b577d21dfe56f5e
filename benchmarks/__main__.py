"""Run comparisons by name, all by default; print JSON and keep it under results/."""

import json
import os
import platform
import sys
from pathlib import Path

import torch

from benchmarks.cases import CASES
from benchmarks.subject import subject


def main(names: list[str]) -> int:
    """Run the named cases in float32; return the exit code."""
    unknown = sorted(set(names) - set(CASES))
    if unknown:
        print(f"unknown: {unknown}; there are {sorted(CASES)}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    machine = {
        "cores": os.cpu_count(),
        "threads": 1,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dtype": "float32",
    }
    one = subject(torch.float32)
    for name in names or CASES:
        report = {"case": name, "machine": machine, "contenders": CASES[name](one)}
        text = json.dumps(report, indent=2)
        print(text, flush=True)
        folder = Path(__file__).parent / "results"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.json").write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
