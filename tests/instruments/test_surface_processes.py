"""Surfaces of real networks in real processes: killed, resumed, spread; same bits.

The model and its loss live in a script that is run as `__main__`, or in code that is
executed as a notebook's cells are.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import thalweg
from thalweg import NetworkLandscape
from thalweg import instruments as ti
from thalweg.errors import ExecutionError
from thalweg.execution import ProcessExecutor, load_dataset

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(thalweg.__file__).parents[1])}

MODEL = """
import sys, time
import numpy as np
import torch
from torch import nn
from thalweg import NetworkLandscape, instruments as ti
from thalweg.execution import save_dataset

PAUSE = 0.0

class Net(nn.Module):  # lives in __main__ only
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh())
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        time.sleep(PAUSE)
        return self.head(self.body(x))

def loss(output, target):  # so does this
    return nn.functional.cross_entropy(output, target, label_smoothing=0.1)

torch.manual_seed(0)
x, y = torch.randn(50, 6), torch.randint(0, 3, (50,))
land = NetworkLandscape(Net(), loss, (x, y))
directions = ti.random_directions(land, 2, seed=1)
axes = [np.linspace(-1, 1, 12), np.linspace(-0.5, 1, 11)]
"""

SCRIPT = (
    MODEL
    + """
out, store, executor, PAUSE = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
settings = {"executor": executor}
if store != "none":
    settings["store"] = store
save_dataset(ti.surface(land, directions, axes, **settings), out)
"""
)


def same(first, second):
    """Assert that two datasets are equal to the bit, cost apart."""
    a, b = (dict(d.attrs) for d in (first, second))
    assert a.pop("cost") and b.pop("cost")
    assert a == b
    assert set(first.variables) == set(second.variables)
    for name in first.variables:
        one, other = first[name], second[name]
        assert one.dims == other.dims and one.dtype == other.dtype
        assert one.values.tobytes() == other.values.tobytes(), name


def start(script, *arguments):
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.Popen(command, env=ENVIRONMENT, start_new_session=True)


def run(script, *arguments):
    assert start(script, *arguments).wait(timeout=120) == 0


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A script, and the surface it gives without a store in one process."""
    folder = tmp_path_factory.mktemp("job")
    script = folder / "job.py"
    script.write_text(SCRIPT)
    run(script, folder / "whole.nc", "none", "local", 0)
    return script, load_dataset(folder / "whole.nc")


@pytest.mark.parametrize(
    "executor", ["local", pytest.param("process:2", marks=pytest.mark.slow)]
)
def test_a_killed_surface_resumes_to_the_same_bits(job, executor, tmp_path):
    script, whole = job
    out, store = tmp_path / "out.nc", tmp_path / "store"
    process = start(script, out, store, executor, 0.005)
    until = time.monotonic() + 90
    while len(list(store.glob("items/*.npz"))) < 15:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = len(list(store.glob("items/*.npz")))
    chunks = -(-132 // 3)
    assert 15 <= kept < chunks and not out.exists()
    run(script, out, store, executor, 0)
    resumed = load_dataset(out)
    same(resumed, whole)
    computed = json.loads(resumed.attrs["cost"])["points"]
    assert 0 < computed <= 132 - 3 * (kept - 1)
    assert list(whole.data_vars) == ["loss", "accuracy", "status"]
    assert np.ptp(whole["loss"].values) > 0.1


def test_a_model_and_loss_of_a_script_run_in_worker_processes(job, tmp_path):
    script, whole = job
    run(script, tmp_path / "out.nc", "none", "process:2", 0)
    same(load_dataset(tmp_path / "out.nc"), whole)


@pytest.fixture(scope="module")
def cells():
    """The names that cells of a notebook define."""
    names = {"__name__": "a_notebook"}
    for cell in re.split(r"\n\n(?=\S)", MODEL):
        exec(compile(cell, "<cell>", "exec"), names)
    return names


@pytest.fixture(scope="module")
def processes():
    with ProcessExecutor(2) as executor:
        yield executor


def test_a_model_of_a_notebook_runs_in_worker_processes(job, cells, processes):
    arguments = cells["land"], cells["directions"], cells["axes"]
    same(ti.surface(*arguments, executor=processes), job[1])
    assert ti.surface(*arguments).equals(job[1])


def test_the_model_is_left_as_it_was(cells, processes):
    land = cells["land"]
    before = {k: v.clone() for k, v in land.model.state_dict().items()}
    state = torch.get_rng_state()
    land.model.train()
    for executor in (None, processes):
        ti.surface(land, cells["directions"], [[0.0, 1.0], [0.0]], executor=executor)
    assert land.model.training
    land.model.eval()
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in land.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_what_cannot_be_sent_is_named(cells, processes, tmp_path):
    with open(tmp_path / "log", "w") as log:

        def loud(output, target):
            log.write("called")
            return cells["loss"](output, target)

        land = NetworkLandscape(cells["land"].model, loud, cells["land"].data)
        with pytest.raises(ExecutionError, match=r"loss -> log \(TextIOWrapper\)"):
            ti.surface(land, cells["directions"], cells["axes"], executor=processes)


def test_a_line_between_modules_moves_the_statistics(cells):
    land, Net = cells["land"], cells["Net"]
    torch.manual_seed(1)
    a, b = Net(), Net()
    for model in (a, b):
        model.train()(torch.randn(200, 6) * 3 + 1)
        model.eval()
    data = ti.line(land, a, b, points=3)
    for i, model in ((0, a), (2, b)):
        own = NetworkLandscape(model, cells["loss"], land.data)
        expected = float(own.loss(own.origin))
        assert float(data["loss"][i]) == pytest.approx(expected, rel=1e-6)
    middle = Net().eval()
    mean = {
        name: (value + b.state_dict()[name]) / 2 if value.is_floating_point() else value
        for name, value in a.state_dict().items()
    }
    middle.load_state_dict(mean)
    own = NetworkLandscape(middle, cells["loss"], land.data)
    expected = float(own.loss(own.origin))
    assert float(data["loss"][1]) == pytest.approx(expected, rel=1e-6)
    frozen = ti.line(land, land.flatten(a), land.flatten(b), points=3)
    assert float(frozen["loss"][1]) != pytest.approx(expected, rel=1e-3)
