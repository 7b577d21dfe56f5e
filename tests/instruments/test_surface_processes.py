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
from instruments.same_datasets import same
from thalweg import NetworkLandscape
from thalweg import instruments as ti
from thalweg.errors import ExecutionError, PrecisionWarning
from thalweg.execution import ProcessExecutor, load_dataset
from thalweg.landscapes import load_target

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


def test_a_killed_adaptive_surface_resumes_to_the_same_bits(job, tmp_path):
    script, out, store = tmp_path / "adaptive.py", tmp_path / "out.nc", tmp_path / "s"
    script.write_text(
        job[0].read_text().replace("axes, **", "axes, refine=ti.Refine(260), **")
    )
    run(script, tmp_path / "whole.nc", "none", "local", 0)
    whole = load_dataset(tmp_path / "whole.nc")
    process = start(script, out, store, "local", 0.005)
    until = time.monotonic() + 90
    while not list(store.glob("items/round-0005-*.npz")):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    run(script, out, store, "process:2", 0)
    resumed = load_dataset(out)
    same(resumed, whole)
    assert 132 < whole.sizes["point"] <= 260
    assert 0 < json.loads(resumed.attrs["cost"])["points"] <= 260 - 132


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


TARGET = (
    MODEL
    + """
import os
if os.environ.get("SHIFTED"):
    land = NetworkLandscape(Net(), loss, (x + 1, y))
"""
)


def test_workers_build_a_target_themselves(job, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(TARGET)
    target = load_target(f"{tmp_path / 'mine.py'}:land")
    land = target.landscape
    directions = ti.random_directions(land, 2, seed=1)
    axes = [np.linspace(-1, 1, 12), np.linspace(-0.5, 1, 11)]
    land.unsendable = open(tmp_path / "log", "w")  # noqa: SIM115
    with land.unsendable, ProcessExecutor(1) as executor:
        settings = {"executor": executor, "recipe": target.recipe}
        same(ti.surface(land, directions, axes, **settings), job[1])
    monkeypatch.setenv("SHIFTED", "1")
    with ProcessExecutor(1) as executor:
        settings = {"executor": executor, "recipe": target.recipe}
        with pytest.raises(ExecutionError, match=r"another landscape.*'data'"):
            ti.surface(land, directions, axes, **settings)


def test_variances_held_outside_of_the_checkpoints_are_counted(cells):
    land, Net = cells["land"], cells["Net"]
    torch.manual_seed(1)
    a, b = Net(), Net()
    for model, scale in ((a, 1.0), (b, 3.0)):
        model.train()(torch.randn(200, 6) * scale)
        model.eval()
    directions = ti.between(land, a, b)
    data = ti.surface(land, directions, [[-3.0, 0.0, 0.5, 1.0]])
    held = data["variances_held"].values
    assert held[0] > 0 and not held[1:].any()
    assert "variances_held" not in ti.line(land, a, b, points=3)
    for anchor, model in zip((0.0, 1.0), (a, b), strict=True):
        own = NetworkLandscape(model, cells["loss"], land.data)
        expected = float(own.loss(own.origin))
        assert float(data["loss"].sel(x0=anchor)) == pytest.approx(expected, rel=1e-6)


def test_a_plane_through_three_modules_meets_each_of_them(cells):
    land, Net = cells["land"], cells["Net"]
    torch.manual_seed(2)
    models = [Net(), Net(), Net()]
    for i, model in enumerate(models):
        model.train()(torch.randn(200, 6) * (1 + i))
        model.eval()
    plane = ti.plane_through(land, *models)
    at = np.array([anchor.numpy() for anchor in plane.anchors.values()])
    data = ti.surface_at_points(land, plane, at)
    for i, model in enumerate(models):
        own = NetworkLandscape(model, cells["loss"], land.data)
        expected = own.evaluate()
        assert float(data["loss"][i]) == pytest.approx(expected["loss"], rel=1e-5)
        assert float(data["accuracy"][i]) == pytest.approx(expected["accuracy"])


def test_steps_lost_to_half_precision_are_warned_of_and_kept():
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 3).bfloat16()
    data = torch.randn(20, 8).bfloat16(), torch.randint(0, 3, (20,))
    land = NetworkLandscape(model, torch.nn.CrossEntropyLoss(), data)
    directions = ti.random_directions(land, 1, normalize="unit")
    with pytest.warns(PrecisionWarning, match="half precision"):
        found = ti.surface(land, directions, [[-1e-6, 0.0, 1e-6]])
    step = json.loads(found.attrs["effective_step"])
    assert step["kept"]["loss"] < 0.5
    assert step["displacement"] == pytest.approx(1e-6, rel=1e-4)
    full = NetworkLandscape(
        model, torch.nn.CrossEntropyLoss(), data, dtype=torch.float32
    )
    found = ti.surface(full, directions, [[-1e-6, 0.0, 1e-6]])
    assert "effective_step" not in found.attrs
