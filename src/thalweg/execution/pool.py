"""A pool of workers that may die: one queue, one thread attending each of them.

Here is what the executors of worker processes and of Ray actors share: who takes which
task, and what happens to the task of a worker that dies.
"""

import os
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from thalweg.errors import ExecutionError, InputError
from thalweg.execution.sending import pack

RETRIES = 3


class WorkerDied(Exception):
    """A worker is gone; the text says how."""


class Worker(ABC):
    """Holds the constant of one recipe, `recipe`; None at first."""

    recipe: Any = None

    @abstractmethod
    def ask(self, kind: str, payload: Any) -> tuple[bool, Any]:
        """Return (True, result) or (False, exception) of "open" or "run".

        Raises:
            WorkerDied: It is gone.
        """

    @abstractmethod
    def kill(self) -> None:
        """End it at once, whatever it does."""


@dataclass
class Task:
    """One task, its future, and how its workers died so far."""

    recipe: Any
    payload: bytes
    future: Future = field(default_factory=Future)
    deaths: list[str] = field(default_factory=list)

    def begin(self) -> bool:
        """Say whether it is to be done: it was not cancelled before it began."""
        return bool(self.deaths) or self.future.set_running_or_notify_cancel()


class WorkerPool(ABC):
    """Run tasks on `workers` workers, started when the first tasks come.

    A worker that dies is started again, and its task goes back to the queue, at most
    three times. Use as a context manager, or `close` it.
    """

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise InputError(f"workers must be at least 1, got {workers}")
        self.workers = workers
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._alive: dict[int, Worker] = {}
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @abstractmethod
    def _start(self, index: int) -> Worker:
        """Start a worker and wait until it can be asked.

        Raises:
            WorkerDied: It died before, or the pool was closed meanwhile.
        """

    def open(self, recipe: Callable[[], Any]) -> Any:
        """Pack the recipe; each worker builds it when its first task comes.

        Raises:
            ExecutionError: Part of it cannot be sent; the attribute is named.
        """
        return pack(recipe, "recipe")

    def submit(self, handle: Any, function: Callable[..., Any], *args: Any) -> Future:
        """Queue the task for the next free worker."""
        if self._closed:
            raise ExecutionError(f"this {type(self).__name__} is closed")
        task = Task(handle, pack((function, args), "task"))
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
        for worker in list(self._alive.values()):
            worker.kill()
        for thread in self._threads:
            thread.join()

    def _attend(self, index: int) -> None:
        """Serve one worker: hand it tasks, start it again when it dies.

        It takes a task only once it is there: where a worker has no place for now, the
        others do the work.
        """
        worker, trouble = self._begin(index)
        while (task := self._tasks.get()) is not None:
            if self._closed:
                task.future.cancel()
            if not task.begin():
                continue
            try:
                if worker is None:
                    raise trouble or WorkerDied("not started")
                _serve(worker, task)
            except WorkerDied as death:
                self._alive.pop(index, None)
                self._put_back(task, death)
                worker, trouble = self._begin(index)
            except Exception as error:  # an answer that cannot be read
                task.future.set_exception(error)
        if worker is not None:
            worker.kill()

    def _begin(self, index: int) -> tuple[Worker | None, Exception | None]:
        if self._closed:
            return None, None
        try:
            worker = self._start(index)
        except Exception as trouble:
            return None, trouble
        self._alive[index] = worker
        return worker, None

    def _put_back(self, task: Task, death: WorkerDied) -> None:
        task.deaths.append(str(death))
        if len(task.deaths) <= RETRIES and not self._closed:
            self._tasks.put(task)
            return
        reasons = "; ".join(dict.fromkeys(task.deaths))
        text = f"the worker died {len(task.deaths)} times on this item ({reasons})"
        task.future.set_exception(ExecutionError(text))


def python_path() -> str:
    """Return a PYTHONPATH with which a new process finds this thalweg."""
    home = str(Path(__file__).parents[2])
    return os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])


def _serve(worker: Worker, task: Task) -> None:
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
