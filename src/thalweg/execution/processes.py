"""The executor of worker processes on this machine."""

import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from thalweg.errors import ExecutionError, InputError
from thalweg.execution.channel import receive, send
from thalweg.execution.sending import pack

RETRIES = 3


@dataclass
class _Task:
    recipe: bytes
    payload: bytes
    future: Future = field(default_factory=Future)


class ProcessExecutor:
    """Run tasks in `workers` processes, started when the first task comes.

    Each holds the constant of one job and computes with one torch thread unless the
    plan says otherwise. A worker that dies is started again and its task done again,
    at most three times. Use as a context manager, or `close` it.

    Args:
        workers: Number of processes; one a core by default.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = (os.cpu_count() or 1) if workers is None else workers
        if self.workers < 1:
            raise InputError(f"workers must be at least 1, got {workers}")
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._processes: dict[int, subprocess.Popen] = {}
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers that are running."""
        alive = [p for p in list(self._processes.values()) if p.poll() is None]
        return tuple(process.pid for process in alive)

    def open(self, recipe: Callable[[], Any]) -> bytes:
        """Pack the recipe; each worker builds it when its first task comes.

        Raises:
            ExecutionError: Part of it cannot be sent; the attribute is named.
        """
        return pack(recipe, "recipe")

    def submit(self, handle: bytes, function: Callable[..., Any], *args: Any) -> Future:
        """Queue the task for the next free worker."""
        if self._closed:
            raise ExecutionError("this ProcessExecutor is closed")
        task = _Task(handle, pack((function, args), "task"))
        self._tasks.put(task)
        if len(self._threads) < self.workers:
            index = len(self._threads)
            thread = threading.Thread(target=self._attend, args=(index,), daemon=True)
            self._threads.append(thread)
            thread.start()
        return task.future

    def close(self) -> None:
        """End the workers at once; tasks that have not begun are cancelled."""
        self._closed = True
        for _ in self._threads:
            self._tasks.put(None)
        for process in list(self._processes.values()):
            process.kill()
        for thread in self._threads:
            thread.join()

    def _attend(self, index: int) -> None:
        """Serve one worker process: hand it tasks, start it again when it dies."""
        worker = None
        while (task := self._tasks.get()) is not None:
            if self._closed:
                task.future.cancel()
            if not task.future.set_running_or_notify_cancel():
                continue
            died: list[int] = []
            while not task.future.done():
                try:
                    worker = worker or self._start(index)
                    self._run(worker, task)
                except (EOFError, OSError):  # raised by the pipe: the worker is gone
                    died.append(worker.process.wait() if worker else -1)
                    worker = None
                    if self._closed or len(died) > RETRIES:
                        task.future.set_exception(_death(died))
                except Exception as error:  # an answer that cannot be read
                    task.future.set_exception(error)
        if worker is not None:
            worker.process.kill()
            worker.process.wait()

    def _start(self, index: int) -> "_Worker":
        worker = _Worker()
        self._processes[index] = worker.process
        worker.greet()
        return worker

    def _run(self, worker: "_Worker", task: _Task) -> None:
        if worker.recipe is not task.recipe:
            good, answer = worker.ask("open", task.recipe)
            if not good:
                task.future.set_exception(answer)
                return
            worker.recipe = task.recipe
        good, answer = worker.ask("run", task.payload)
        if good:
            task.future.set_result(answer)
        else:
            task.future.set_exception(answer)


class _Worker:
    """One process and the recipe whose constant it holds."""

    def __init__(self) -> None:
        home = str(Path(__file__).parents[2])
        paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
        self.recipe: bytes | None = None
        self.process = subprocess.Popen(
            [sys.executable, "-m", "thalweg.execution.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ
            | {
                "PYTHONPATH": os.pathsep.join(paths),
                "OMP_NUM_THREADS": "1",
                "MKL_NUM_THREADS": "1",
            },
        )

    def greet(self) -> None:
        send(self.process.stdin, pickle.dumps(sys.path))  # type: ignore[arg-type]  # PIPE was asked for

    def ask(self, kind: str, payload: bytes) -> tuple[bool, Any]:
        send(self.process.stdin, pickle.dumps((kind, payload)))  # type: ignore[arg-type]  # PIPE was asked for
        return pickle.loads(receive(self.process.stdout))  # type: ignore[arg-type]  # PIPE was asked for


def _death(codes: list[int]) -> ExecutionError:
    return ExecutionError(
        f"the worker process died {len(codes)} times on this item (exit codes "
        f"{', '.join(map(str, codes))}; -9 is usually lack of memory)"
    )
