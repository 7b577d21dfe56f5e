"""Where figures go: printed as JSON, and kept under results/."""

import json
import os
import platform
from pathlib import Path

import numpy as np
import scipy
import torch


def record(name: str, figures: dict[str, object]) -> None:
    """Print the figures of one benchmark with the machine they are from; keep them."""
    machine = {
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }
    text = json.dumps({"case": name, "machine": machine} | figures, indent=2)
    print(text, flush=True)
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(text + "\n")
