"""Interrupted and killed runs, resumed, against uninterrupted ones, to the bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from thalweg.errors import CheckpointError
from thalweg.training import fit

SCRIPT = """
import sys, time, torch
from torch import nn
from torch.nn import functional as F
from thalweg.data import digits
from thalweg.models import mlp
from thalweg.training import fit

torch.set_num_threads(1)


class Average:
    "An exponential average of the weights: a hook with a state."

    def __init__(self, model):
        self.weights = [p.detach().clone() for p in model.parameters()]

    def __call__(self, model, state):
        for a, p in zip(self.weights, model.parameters(), strict=True):
            a.lerp_(p.detach(), 0.1)
        state.log(average=float(self.weights[0].sum()))
        if pause:
            print(state.step, flush=True)
            time.sleep(pause)

    def state_dict(self):
        return {"weights": self.weights}

    def load_state_dict(self, state):
        self.weights = state["weights"]


def loss(model, batch, state):
    inputs, targets = batch
    noise = state["noise"] * torch.randn_like(inputs)
    return F.cross_entropy(model(inputs + noise), targets)


def run(checkpoint=None, resume=False, wait=0.0, loader=False):
    global pause
    pause = wait
    model = mlp((64, 12, 10))
    model.insert(2, nn.Dropout(0.3))
    model.insert(1, nn.BatchNorm1d(64))
    data = digits().subset(range(100))
    if loader:
        data = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True)
    average = Average(model)
    history = fit(
        model, loss, data, torch.optim.Adam(model.parameters()),
        epochs=4, batch_size=32, seed=3, after_step=[average],
        schedules={"lr": lambda t: 0.01 * (1 - t), "noise": lambda t: 0.1 * t},
        checkpoint=checkpoint, checkpoint_every=checkpoint and 3, resume=resume,
    )
    return model, average, history


if __name__ == "__main__":
    run(sys.argv[1], wait=0.05)
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    path = tmp_path_factory.mktemp("job") / "job.py"
    path.write_text(SCRIPT)
    names = {"__name__": "job"}
    exec(compile(SCRIPT, str(path), "exec"), names)
    return path, names["run"]


@pytest.fixture(scope="module")
def whole(job):
    return job[1]()


def assert_same(run, whole):
    (model, average, history), (model_w, average_w, history_w) = run, whole
    for name, value in model_w.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    for a, b in zip(average.weights, average_w.weights, strict=True):
        assert torch.equal(a, b)
    for mine, other in (
        (history.steps, history_w.steps),
        (history.epochs, history_w.epochs),
    ):
        assert mine.keys() == other.keys()
        for name in other:
            assert np.array_equal(mine[name], other[name], equal_nan=True), name


def start(job, checkpoint, steps):
    source = Path(__file__).parents[2] / "src"
    process = subprocess.Popen(
        [sys.executable, str(job[0]), str(checkpoint)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"},
    )
    for line in process.stdout:
        if int(line) == steps:
            return process
    raise AssertionError(process.stderr.read())


@pytest.mark.parametrize("steps", [4, 8])
def test_a_killed_run_goes_on_to_the_same_bits(job, whole, tmp_path, steps):
    checkpoint = tmp_path / "run.pt"
    process = start(job, checkpoint, steps)
    process.send_signal(signal.SIGKILL)
    process.wait()
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["status"] == "running" and 3 <= len(saved["steps"]["loss"]) <= steps
    assert_same(job[1](str(checkpoint), resume=True), whole)
    # a finished run is taken from the file
    assert_same(job[1](str(checkpoint), resume=True), whole)


def test_ctrl_c_saves_the_step_that_was_running(job, whole, tmp_path):
    checkpoint = tmp_path / "run.pt"
    process = start(job, checkpoint, 7)
    process.send_signal(signal.SIGINT)
    assert process.wait() != 0 and "KeyboardInterrupt" in process.stderr.read()
    saved = torch.load(checkpoint, weights_only=True)
    assert len(saved["steps"]["loss"]) in (8, 9)
    assert_same(job[1](str(checkpoint), resume=True), whole)


@pytest.mark.parametrize("stop_at", [2, 4, 7, 15])
def test_a_loader_is_resumed_in_the_middle_of_an_epoch(job, tmp_path, stop_at):
    whole = job[1](loader=True)
    run, checkpoint = job[1], tmp_path / "run.pt"
    lines = []

    def interrupt(*_):
        lines.append(1)
        if len(lines) == stop_at:
            signal.raise_signal(signal.SIGINT)

    patched = run.__globals__["time"]
    before, patched.sleep = patched.sleep, interrupt
    try:
        with pytest.raises(KeyboardInterrupt):
            run(str(checkpoint), wait=1.0, loader=True)
    finally:
        patched.sleep = before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_same(run(str(checkpoint), resume=True, loader=True), whole)


def simple(path, model=None, **options):
    model = model or torch.nn.Linear(2, 1)
    data = options.pop("data", torch.arange(8.0).reshape(4, 2))
    return fit(
        model,
        lambda model, batch, state: model(batch[0]).square().mean(),
        data,
        torch.optim.SGD(model.parameters(), lr=0.01),
        **({"epochs": 1, "batch_size": 2, "checkpoint": path} | options),
    )


def test_checkpoints_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "run.pt"
    simple(path)
    with pytest.raises(CheckpointError, match="exists: give resume=True"):
        simple(path)
    with pytest.raises(CheckpointError, match='another run.*"seed": 0.*"seed": 1'):
        simple(path, resume=True, seed=1)
    with pytest.raises(CheckpointError, match="another run"):
        simple(path, resume=True, data=torch.zeros(4, 2))
    with pytest.raises(CheckpointError, match=r"does not fit(.|\n)*size mismatch"):
        simple(path, torch.nn.Linear(2, 3), resume=True)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="run.pt cannot be read"):
        simple(path, resume=True)
    torch.save({"a": 1}, path)
    with pytest.raises(CheckpointError, match="no checkpoint of a training run"):
        simple(path, resume=True)


class Unreadable:
    def __call__(self, model, state):
        pass

    def state_dict(self):
        return {"object": time.struct_time(range(9))}

    def load_state_dict(self, state):
        pass


def test_a_state_that_could_not_be_read_back_is_refused_at_the_first_write(tmp_path):
    path = tmp_path / "run.pt"
    with pytest.raises(CheckpointError, match="something else than tensors"):
        simple(path, after_step=[Unreadable()])
    assert list(tmp_path.iterdir()) == []
