"""Jobs on every executor, with real processes."""

import functools
import inspect
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import thalweg
from execution.work import dots, items, recipe, same
from thalweg.errors import ExecutionError, InputError, StructureError
from thalweg.execution import (
    Item,
    LocalExecutor,
    ProcessExecutor,
    Store,
    as_executor,
    as_progress,
    execute,
)

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(thalweg.__file__).parents[1])}


@pytest.fixture(scope="module")
def processes():
    with ProcessExecutor(2) as executor:
        yield executor


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_bare_futures_give_the_same_bits(pool):
    expected = execute(items(9), dots, recipe)
    with pool(2) as client:
        same(execute(items(9), dots, recipe, executor=client), expected)


def test_processes_give_the_same_bits_in_order_with_their_own_threads(processes):
    expected = execute(items(9), dots, recipe)
    same(execute(items(9), dots, recipe, executor=processes), expected)

    def where(constant, i):
        time.sleep(0.05)  # so that one worker does not take all
        return {"pid": np.array(os.getpid()), "threads": np.array(torch_threads())}

    def torch_threads():
        return torch.get_num_threads()

    result = execute(items(8), where, recipe, executor=processes, threads=2)
    pids = {int(arrays["pid"]) for arrays in result.values()}
    assert len(pids) == 2 and os.getpid() not in pids
    assert {int(arrays["threads"]) for arrays in result.values()} == {2}
    assert torch.get_num_threads() == 1


def test_workers_build_the_constant_once(processes, tmp_path):
    def build():
        (tmp_path / f"built-{time.monotonic_ns()}").touch()
        return recipe()

    execute(items(20), dots, build, executor=processes)
    assert len(list(tmp_path.iterdir())) in (1, 2)


def test_workers_see_the_settings_of_torch(processes):
    torch.set_default_dtype(torch.float64)
    try:
        result = execute(items(2), lambda c, i: {"x": torch.ones(1).numpy()}, recipe)
        same(
            execute(
                items(2),
                lambda c, i: {"x": torch.ones(1).numpy()},
                recipe,
                executor=processes,
            ),
            result,
        )
        assert result["i0"]["x"].dtype == np.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_the_code_prints_does_not_disturb_the_pipe(processes):
    def loud(constant, i):
        print("loss", i)
        os.system("echo from a child; cat")  # reads stdin to its end as well
        return {"x": np.array(i)}

    result = execute(items(3), loud, recipe, executor=processes)
    assert [int(a["x"]) for a in result.values()] == [0, 1, 2]


def test_finished_items_are_read_and_not_done_again(tmp_path):
    store = Store.create(tmp_path, {"n": 6})
    calls = []

    def counted(constant, i):
        calls.append(i)
        if len(calls) == 4:
            raise ValueError("the fourth")
        return dots(constant, i)

    with pytest.raises(
        ExecutionError, match="item 'i3' failed: ValueError: the fourth"
    ):
        execute(items(6), counted, recipe, store=store)
    assert store.done() == {"i0", "i1", "i2"}
    result = execute(items(6), counted, recipe, store=store)
    assert calls == [0, 1, 2, 3, 3, 4, 5]
    same(result, execute(items(6), dots, recipe))
    execute(items(6), counted, lambda: pytest.fail("nothing to do"), store=store)


@pytest.mark.parametrize("where", ["local", "process"])
def test_errors_name_the_item_and_thalwegs_own_pass(where, processes):
    executor = processes if where == "process" else "local"

    def bad(constant, i):
        if i == 1:
            raise ZeroDivisionError("by nought")
        return dots(constant, i)

    def ours(constant, i):
        raise StructureError("shapes differ")

    with pytest.raises(ExecutionError, match=r"'i1' failed: ZeroDivisionError: by n"):
        execute(items(3), bad, recipe, executor=executor)
    with pytest.raises(StructureError, match="shapes differ"):
        execute(items(1), ours, recipe, executor=executor)

    result = execute(items(3), bad, recipe, executor=executor, on_error="record")
    assert str(result["i1"]["error"]) == "ZeroDivisionError: by nought"
    assert list(result["i0"]) == ["loss", "index"]


def test_a_recipe_that_fails_in_a_worker_is_an_error(processes):
    def build():
        raise OSError("no such file")

    with pytest.raises(ExecutionError, match="OSError: no such file"):
        execute(items(3), dots, build, executor=processes)


def test_a_dead_worker_is_replaced_and_its_item_done_again(processes, tmp_path):
    def deadly(constant, i):
        marks = len(list(tmp_path.glob(f"{i}-*")))
        (tmp_path / f"{i}-{marks}").touch()
        if i == 2 and marks < 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return dots(constant, i)

    result = execute(items(5), deadly, recipe, executor=processes)
    same(result, execute(items(5), dots, recipe))
    assert len(list(tmp_path.glob("2-*"))) == 4


def test_a_worker_that_dies_four_times_fails_and_keeps_the_rest(processes, tmp_path):
    def deadly(constant, i):
        if i == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return dots(constant, i)

    store = Store.create(tmp_path, {})
    with pytest.raises(
        ExecutionError, match=r"'i1'.*died 4 times.*exit code -9, usually"
    ):
        execute(items(4), deadly, recipe, executor=processes, store=store)
    assert "i0" in store.done() and "i1" not in store.done()
    result = execute(
        items(4), deadly, recipe, executor=processes, store=store, on_error="record"
    )
    assert "died 4 times" in str(result["i1"]["error"])
    assert store.done() == {"i0", "i2", "i3"}


class Holder:
    def __init__(self, handle):
        self.model = {"weights": [1.0], "hook": handle}

    def __call__(self):
        return self


def test_what_cannot_be_sent_is_named_before_the_job_starts(processes, tmp_path):
    store = Store.create(tmp_path / "store", {})
    with open(tmp_path / "log", "w") as handle:
        expected = r"recipe\.build\.model\['hook'\] \(TextIOWrapper\) cannot be sent"
        with pytest.raises(ExecutionError, match=expected):
            execute(items(2), dots, Holder(handle), executor=processes, store=store)
        lock = threading.Lock()
        with pytest.raises(ExecutionError, match=r"args\[1\] \(lock\)"):
            build = functools.partial(print, 1, lock)
            execute(items(2), dots, build, executor=processes)
    assert store.done() == set()


def test_settings_of_executors():
    assert isinstance(as_executor(None), LocalExecutor)
    assert isinstance(as_executor("local"), LocalExecutor)
    assert as_executor("process:3").workers == 3
    assert as_executor(2).workers == 2
    assert as_executor("process").workers == os.cpu_count()
    executor = LocalExecutor()
    assert as_executor(executor) is executor
    for bad in ("proces", "process:x", 1.5, True):
        with pytest.raises(InputError, match="executor"):
            as_executor(bad)
    with pytest.raises(InputError, match="at least 1"):
        as_executor(0)


def test_bad_arguments():
    with pytest.raises(InputError, match="two items"):
        execute([Item("a"), Item("a")], dots, recipe)
    unchecked = inspect.unwrap(execute)  # as a caller without run-time type checks
    with pytest.raises(InputError, match="on_error"):
        unchecked(items(1), dots, recipe, on_error="ignore")
    with pytest.raises(InputError, match="threads"):
        execute(items(1), dots, recipe, threads=0)
    with pytest.raises(InputError, match="progress"):
        inspect.unwrap(as_progress)("loud")


class Scattering:
    """A futures object with `scatter`, as Dask's Client has."""

    def __init__(self, pool):
        self.pool, self.scattered = pool, 0

    def nthreads(self):
        return {"a": 1, "b": 1}

    def scatter(self, blob, broadcast):
        self.scattered += 1
        self.blob = blob
        return "reference"

    def submit(self, function, fingerprint, blob, task, pure):
        assert blob == "reference" and pure is False
        return self.pool.submit(function, fingerprint, self.blob, task)


def test_a_recipe_is_scattered_once_where_that_can_be_done():
    with ThreadPoolExecutor(2) as pool:
        client = Scattering(pool)
        result = execute(items(9), dots, recipe, executor=client)
    assert client.scattered == 1
    same(result, execute(items(9), dots, recipe))


def test_progress_in_plain_lines(capsys, tmp_path):
    store = Store.create(tmp_path, {})
    execute(items(2), dots, recipe, store=store, progress="plain")
    out = capsys.readouterr()
    assert out.out == ""
    assert "2/2" in out.err and "/s" in out.err and "min" in out.err
    execute(items(4), dots, recipe, store=store, progress="plain")
    assert "2/4 found in the store" in capsys.readouterr().err
    execute(items(4), dots, recipe)
    assert capsys.readouterr().err == ""


SCRIPT = """
import sys, time
import numpy as np
from thalweg.execution import Item, Store, execute

class Model:  # lives in __main__ only
    def __init__(self):
        self.scale = 0.1

def slow(constant, i):
    time.sleep(0.2)
    return {"loss": np.array(constant.scale * i)}

store = Store.resume(sys.argv[1], {"job": 1})
try:
    print("started", flush=True)
    result = execute([Item(f"i{i}", (i,)) for i in range(24)], slow, Model,
                     store=store, executor=sys.argv[2])
    print(sum(float(a["loss"]) for a in result.values()))
except KeyboardInterrupt:
    print("interrupted", len(store.done()))
    sys.exit(130)
"""


def start(script, *arguments):
    return subprocess.Popen(
        [sys.executable, script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    )


def wait_for_items(store, n, seconds=60):
    until = time.monotonic() + seconds
    while len(list(store.glob("items/*.npz"))) < n:
        assert time.monotonic() < until, "no items were finished"
        time.sleep(0.02)


@pytest.mark.parametrize("executor", ["local", "process:2"])
def test_ctrl_c_keeps_what_is_finished_and_the_job_goes_on(executor, tmp_path):
    script, store = tmp_path / "job.py", tmp_path / "store"
    script.write_text(textwrap.dedent(SCRIPT))
    process = start(script, store, executor)
    wait_for_items(store, 2)
    finished = len(list(store.glob("items/*.npz")))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    kept = int(out.split()[-1])
    # What was in flight is kept too: on a loaded machine a few more than two a worker.
    assert finished <= kept <= finished + 8
    assert kept == len(list(store.glob("items/*.npz")))
    process = start(script, store, executor)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert float(out.split()[-1]) == sum(0.1 * i for i in range(24))


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    script, store = tmp_path / "job.py", tmp_path / "store"
    script.write_text(textwrap.dedent(SCRIPT))
    process = start(script, store, "process:2")
    wait_for_items(store, 2)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)  # the workers hold stdout's other end no more
    until = time.monotonic() + 30
    while members(process.pid):
        assert time.monotonic() < until, "workers outlived their parent"
        time.sleep(0.1)


def members(group):
    found = subprocess.run(
        ["pgrep", "-g", str(group)], capture_output=True, text=True, check=False
    )
    return found.stdout.split()
