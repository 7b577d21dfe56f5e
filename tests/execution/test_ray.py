"""Jobs on Ray actors, in a local cluster of two CPUs."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import thalweg
from execution.work import check_surface, dots, items, recipe, same
from thalweg.errors import ExecutionError, InputError, MissingExtraError
from thalweg.execution import RayExecutor, Store, as_executor, execute
from thalweg.execution.ray_actors import _room_of
from thalweg.execution.ray_address import check_address

ray = pytest.importorskip("ray", reason="Ray is not installed: thalweg[ray]")

SOURCE = str(Path(thalweg.__file__).parents[1])
ENVIRONMENT = os.environ | {"PYTHONPATH": SOURCE, "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def cluster():
    """A session of the program's own, with a GPU that is only said to be there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", SOURCE)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local",
            num_cpus=2,
            num_gpus=1,
            object_store_memory=80 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="module")
def actors(cluster):
    with RayExecutor(2, cpus=0.5) as executor:  # leaves room for others
        yield executor
    assert ray.is_initialized()  # it was not the executor's to end


def test_actors_give_the_same_bits_and_build_the_constant_once(actors, tmp_path):
    def build():
        (tmp_path / f"built-{time.monotonic_ns()}").touch()
        return recipe()

    def where(constant, i):
        time.sleep(0.05)  # so that one actor does not take all
        pid, threads = np.array(os.getpid()), np.array(torch.get_num_threads())
        return dots(constant, i) | {"pid": pid, "threads": threads}

    result = execute(items(12), where, build, executor=actors, threads=2)
    assert len(list(tmp_path.iterdir())) == 2
    assert {int(a["threads"]) for a in result.values()} == {2}
    assert {int(a["pid"]) for a in result.values()} == set(actors.pids)
    same(result, execute(items(12), dots, recipe, threads=2))


def test_a_killed_actor_loses_nothing(actors, tmp_path):
    def slow(constant, i):
        (tmp_path / f"{i}-{time.monotonic_ns()}").touch()
        time.sleep(0.1)
        return dots(constant, i)

    def strike():
        while len(list(tmp_path.iterdir())) < 5:
            time.sleep(0.01)
        os.kill(actors.pids[0], signal.SIGKILL)

    execute(items(2), dots, recipe, executor=actors)  # both are there
    before = set(actors.pids)
    killer = threading.Thread(target=strike)
    killer.start()
    result = execute(items(20), slow, recipe, executor=actors)
    killer.join()
    same(result, execute(items(20), dots, recipe))
    assert len(before & set(actors.pids)) == 1
    assert len(list(tmp_path.iterdir())) in (20, 21)  # one was done again


def test_a_surface_has_the_bits_of_the_local_one(actors):
    check_surface(actors)


def test_errors_name_the_item(actors):
    def bad(constant, i):
        if i == 1:
            raise ZeroDivisionError("by nought")
        return dots(constant, i)

    with pytest.raises(ExecutionError, match=r"'i1' failed: ZeroDivisionError: by n"):
        execute(items(3), bad, recipe, executor=actors)
    result = execute(items(3), bad, recipe, executor=actors, on_error="record")
    assert str(result["i1"]["error"]) == "ZeroDivisionError: by nought"
    lock = threading.Lock()
    with pytest.raises(ExecutionError, match=r"recipe\.build -> lock \(lock\) cannot"):
        execute(items(1), dots, lambda: lock, executor=actors)


@pytest.mark.slow
def test_an_actor_that_dies_four_times_fails_and_keeps_the_rest(actors, tmp_path):
    def deadly(constant, i):
        if i == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return dots(constant, i)

    store = Store.create(tmp_path, {})
    with pytest.raises(ExecutionError, match=r"'i1'.*died 4 times on this item \(.*"):
        execute(items(4), deadly, recipe, executor=actors, store=store)
    assert "i0" in store.done() and "i1" not in store.done()


@pytest.mark.slow
def test_fractions_of_a_gpu_are_shared(actors):
    def device(constant, i):
        time.sleep(0.1)
        return {"pid": np.array(os.getpid()), "gpu": np.array(visible())}

    def visible():
        return os.environ.get("CUDA_VISIBLE_DEVICES", "none")

    with RayExecutor(cpus=0, gpus=0.5) as executor:
        result = execute(items(8), device, recipe, executor=executor)
        assert executor.workers == 2
    assert {str(a["gpu"]) for a in result.values()} == {"0"}
    assert len({int(a["pid"]) for a in result.values()}) == 2


def test_a_worker_too_big_for_the_cluster_is_refused(cluster):
    executor = RayExecutor(gpus=4)
    expected = r"cpus=1 and gpus=4; the machines have 2 CPUs and 1 GPUs"
    with pytest.raises(InputError, match=expected):
        execute(items(1), dots, recipe, executor=executor)
    executor.close()


def test_an_open_session_is_used_and_no_other_address(cluster):
    assert as_executor("ray:2", address="auto").workers == 2
    RayExecutor(address=cluster).close()
    with pytest.raises(InputError, match=r"not that of the open Ray session \("):
        RayExecutor(address="127.0.0.1:1")
    with pytest.raises(InputError, match="give it to ray.init"):
        RayExecutor(runtime_env={})


def test_room_for_workers_on_a_machine():
    room = _room_of
    assert room({"CPU": 8.0}, 2, 0) == 4
    assert room({"CPU": 8.0, "GPU": 3.0}, 1, 0.4) == 6  # two on each
    assert room({"CPU": 8.0, "GPU": 3.0}, 0, 2) == 1
    assert room({"CPU": 1.0}, 0.1, 0) == 10
    assert room({"CPU": 8.0}, 1, 1) == 0


def test_bad_settings():
    with pytest.raises(InputError, match="workers must be at least 1, got 0"):
        RayExecutor(0)
    with pytest.raises(InputError, match="gpus must be a fraction .* got 1.5"):
        RayExecutor(gpus=1.5)
    with pytest.raises(InputError, match="cpus must be a fraction .* got -1"):
        RayExecutor(cpus=-1)
    with pytest.raises(InputError, match="cpus and gpus are both 0"):
        RayExecutor(cpus=0)
    with pytest.raises(InputError, match=r"goes with executor='ray'.*'process:2'"):
        as_executor("process:2", address="auto")


@pytest.mark.parametrize("bad", ["here", "host:port", "ray://a:1", "host:", ":1"])
def test_addresses_of_no_known_form(bad):
    with pytest.raises(InputError, match="'auto' or 'host:port'"):
        check_address(bad)


def test_an_address_that_does_not_answer_is_refused_within_seconds(monkeypatch):
    began = time.monotonic()
    with socket.socket() as bound:  # nobody listens at a port that is only bound
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        with pytest.raises(ExecutionError, match=f"no Ray cluster.*:{port}"):
            check_address(f"127.0.0.1:{port}")
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        with pytest.raises(ExecutionError, match=rf"address='auto' \(.*:{port}\)"):
            check_address("auto")
    with socket.create_server(("127.0.0.1", 0)) as server:  # silent
        port = server.getsockname()[1]
        monkeypatch.setattr("thalweg.execution.ray_address.TIMEOUT", 0.5)
        with pytest.raises(ExecutionError, match=f":{port}' is no Ray cluster"):
            check_address(f"127.0.0.1:{port}")
    assert time.monotonic() - began < 10


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'thalweg\[ray\]'"):
        as_executor("ray")


NET = """
import torch
from torch import nn

def target():
    torch.manual_seed(0)
    x, y = torch.randn(50, 6), torch.randint(0, 3, (50,))
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    return model, nn.functional.cross_entropy, (x, y)
"""


@pytest.mark.slow
def test_a_survey_joins_the_cluster_that_runs_and_leaves_it(cluster, tmp_path):
    (tmp_path / "nets.py").write_text(NET)
    command = [sys.executable, "-m", "thalweg", "survey", "nets.py:target", "--json"]
    command += ["--only", "surface", "--progress", "none"]

    def run(*arguments):
        environment = os.environ | {"PYTHONPATH": SOURCE, "RAY_ADDRESS": cluster}
        done = subprocess.run(
            [*command, *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        json.loads(done.stdout)  # and nothing else

    run("--budget", "5s", "--out", "here")
    run("--plan", "here", "--out", "there", "--executor", "ray", "--address", "auto")
    first, second = (
        xr.open_dataset(tmp_path / out / "survey.nc", group="surface")
        for out in ("here", "there")
    )
    with first, second:
        for dataset in (first, second):
            dataset.attrs.pop("cost")
        assert first.identical(second)
    assert ray.cluster_resources()["CPU"] == 2


OWN_CLUSTER = """
import os, signal, sys, time
import numpy as np
from thalweg.execution import Item, RayExecutor, Store, execute

class Model:  # lives in __main__ only
    def __init__(self):
        self.scale = 0.1

def slow(constant, i):
    time.sleep(0.2)
    print("not for the parent's stdout")
    return {"loss": np.array(constant.scale * i)}

handler = signal.getsignal(signal.SIGTERM)
environment = dict(os.environ) | {"RAY_CLIENT_MODE": "0"}  # importing Ray sets it
store = Store.resume(sys.argv[1], {"job": 1})
code = 0
with RayExecutor(2) as executor:
    try:
        execute([Item(f"i{i}", (i,)) for i in range(40)], slow, Model, store=store,
                executor=executor)
    except KeyboardInterrupt:
        code = 130
assert signal.getsignal(signal.SIGTERM) is handler
assert dict(os.environ) | {"RAY_CLIENT_MODE": "0"} == environment
print(code, len(store.done()))
"""


@pytest.mark.slow
def test_a_cluster_of_our_own_ends_with_the_job_also_after_ctrl_c(tmp_path):
    script, store = tmp_path / "job.py", tmp_path / "store"
    script.write_text(textwrap.dedent(OWN_CLUSTER))

    def start():
        return subprocess.Popen(
            [sys.executable, script, store],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": SOURCE},
            start_new_session=True,
        )

    process = start()
    until = time.monotonic() + 90
    while len(list(store.glob("items/*.npz"))) < 3:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    out, _ = process.communicate(timeout=60)
    code, kept = map(int, out.split())
    assert code == 130 and 3 <= kept < 40
    assert wait_for_end(process.pid)
    process = start()
    out, _ = process.communicate(timeout=120)
    assert out.split() == ["0", "40"]
    assert wait_for_end(process.pid)


def wait_for_end(group, seconds=30):
    """Whether the processes of a session end."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = subprocess.run(
            ["pgrep", "-s", str(group)], capture_output=True, text=True, check=False
        )
        if not found.stdout.split():
            return True
        time.sleep(0.2)
    return False
