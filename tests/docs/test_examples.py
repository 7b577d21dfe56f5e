"""The scripts in `examples/`, run as their first lines say."""

import os
import re
import subprocess
import sys
from pathlib import Path

from torch.nn import functional as F

import thalweg
from thalweg import NetworkLandscape
from thalweg import instruments as ti
from thalweg.data import digits
from thalweg.models import mlp

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_data_parallel_curvature_on_two_ranks():
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node", "2", EXAMPLES / "data_parallel_curvature.py"],
        env=os.environ | {"PYTHONPATH": str(Path(thalweg.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "rows: 899 + 898 on 2 ranks" in done.stdout
    land = NetworkLandscape(mlp((64, 16, 10), seed=0), F.cross_entropy, digits())
    pairs = ti.top_eigenpairs(land.hessian(land.point()), 3)
    printed = re.search("eigenvalues: (.*)", done.stdout).group(1).split()
    assert [float(value) for value in printed] == [
        round(float(value), 5) for value in pairs.values
    ]
