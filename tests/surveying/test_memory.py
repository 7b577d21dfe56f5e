"""A survey of ten million parameters within the memory that it promises.

A survey of a tiny network runs first in both processes, so that what the packages take
once, whatever the network's size, is not counted.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SUBJECT = """
import json, resource, sys, tempfile
import torch
from torch.nn import functional
from thalweg import NetworkLandscape, survey

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def resident():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * resource.getpagesize()

torch.set_num_threads(1)
torch.manual_seed(0)
tiny = torch.nn.Linear(3, 2), functional.cross_entropy, (
    torch.randn(8, 3), torch.randint(2, (8,))
)
with tempfile.TemporaryDirectory() as folder:
    survey(NetworkLandscape(*tiny), out=folder, budget="3s", progress="none")
model = torch.nn.Sequential(
    torch.nn.Linear(64, 3000), torch.nn.Tanh(),
    torch.nn.Linear(3000, 3200), torch.nn.Tanh(),
    torch.nn.Linear(3200, 10),
)
x, y = torch.randn(256, 64), torch.randint(10, (256,))
count = sum(p.numel() for p in model.parameters())
"""

PASS = """
loaded = resident()
parameters = list(model.parameters())
loss = functional.cross_entropy(model(x), y)
slopes = torch.autograd.grad(loss, parameters, create_graph=True)
print(json.dumps({"count": count, "used": peak() - loaded}))
"""

SURVEY = """
loaded = resident()
land = NetworkLandscape(model, functional.cross_entropy, (x, y))
found = survey(land, out=sys.argv[1], budget="40s", memory="minimal", progress="none")
print(json.dumps({"used": peak() - loaded, "notes": found.summary["warnings"]}))
"""


def run(code: str, *arguments: str) -> dict:
    source = Path(__file__).parents[2] / "src"
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SUBJECT + code, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_minimal_memory_on_ten_million_parameters(tmp_path):
    bare = run(PASS)
    assert bare["count"] > 9_800_000
    found = run(SURVEY, str(tmp_path / "survey"))
    assert found["used"] - bare["used"] <= 800e6, found
