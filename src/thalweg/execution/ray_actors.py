"""The executor of Ray actors, on this machine or on a cluster."""

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from thalweg.errors import ExecutionError, InputError
from thalweg.execution.pool import Worker, WorkerDied, WorkerPool
from thalweg.execution.ray_session import Session, import_ray
from thalweg.execution.sending import unpack

PATIENCE = 30.0
_log = logging.getLogger(__name__)


class RayExecutor(WorkerPool):
    """Run tasks on Ray actors, each of which holds the constant of one job.

    The packed constant lies in the object store once and is fetched once a worker; a
    task carries its small arguments. An actor that dies is started again, elsewhere if
    need be, and its task done again, at most three times. The bits are those of the
    local executor: every actor computes with the plan's number of torch threads.

    A session that the program has opened itself (`ray.init`) is used and left open. A
    cluster that this executor starts is ended by `close`, one that it joins is not.

    Args:
        workers: Number of actors; by default as many as the cluster has room for.
        address: None starts a cluster on this machine (or uses the open session);
            "auto" joins the one that runs, "host:port" another.
        cpus: CPUs that an actor reserves. Give the plan's number of threads.
        gpus: GPUs that an actor reserves: 0.5 puts two on each, above 1 it is whole.
        runtime_env: As of `ray.init`, for a cluster whose machines need the packages
            or files of this one.

    Raises:
        MissingExtraError: Ray is not installed.
        InputError: Numbers that Ray cannot reserve, or an address of no known form.
        ExecutionError: Nothing answers at the address (within seconds).
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        address: str | None = None,
        cpus: float = 1,
        gpus: float = 0,
        runtime_env: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(1 if workers is None else workers)
        _check(cpus, gpus)
        self._ray = import_ray()
        self.cpus, self.gpus, self.runtime_env = cpus, gpus, runtime_env
        self._asked = workers
        self._session = Session(self._ray, address, runtime_env)

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers that are running, each on its machine."""
        return tuple(w.pid for w in self._alive.values() if isinstance(w, _Actor))

    def open(self, recipe: Callable[[], Any]) -> Any:
        """Put the packed recipe into the object store, the first time after joining.

        Raises:
            ExecutionError: Part of it cannot be sent; the attribute is named.
            InputError: No machine of the cluster has room for a worker.
        """
        blob = super().open(recipe)  # refused before a cluster is started for it
        if not self._session.opened:
            asked = None if self._asked is None else math.ceil(self._asked * self.cpus)
            self._session.open(asked)
            room = self._room()
            self.workers = room if self._asked is None else self._asked
        return self._ray.put(blob)

    def close(self) -> None:
        """End the actors, and the cluster if it was started here."""
        super().close()
        self._session.close()

    def _room(self) -> int:
        nodes = [n["Resources"] for n in self._ray.nodes() if n["Alive"]]
        room = sum(_room_of(node, self.cpus, self.gpus) for node in nodes)
        if room:
            return room
        has = ", ".join(
            f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs"
            for node in nodes
        )
        raise InputError(
            f"no machine of the Ray cluster has room for a worker of cpus={self.cpus:g}"
            f" and gpus={self.gpus:g}; the machines have {has}"
        )

    def _start(self, index: int) -> "_Actor":
        remote = self._ray.remote(_Bench).options(
            num_cpus=self.cpus, num_gpus=self.gpus, max_restarts=0
        )
        paths = [os.path.abspath(path) for path in sys.path]
        actor = _Actor(self._ray, remote.remote(paths))
        try:
            actor.wait(lambda: self._closed)
        except WorkerDied:
            actor.kill()
            raise
        return actor


class _Bench:
    """What the actor is: a bench in a process of the cluster."""

    def __init__(self, paths: list[str]) -> None:
        from thalweg.execution.worker import Bench

        sys.path += [path for path in paths if path not in sys.path]
        self._bench = Bench()

    def pid(self) -> int:
        return os.getpid()

    def answer(self, kind: str, payload: bytes) -> bytes:
        return self._bench.answer(kind, payload)


class _Actor(Worker):
    """The near end of one actor."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor = ray, actor
        self.pid = 0

    def wait(self, given_up: Callable[[], bool]) -> None:
        """Wait until the cluster has placed and started it."""
        reference = self._actor.pid.remote()
        patience = time.monotonic() + PATIENCE
        while not self._ray.wait([reference], timeout=0.5)[0]:
            if given_up():
                raise WorkerDied("it was given up before it was placed")
            if time.monotonic() > patience:
                patience = math.inf
                _log.warning("a worker waits for room on the Ray cluster")
        self.pid = self._get(reference)

    def ask(self, kind: str, payload: Any) -> tuple[bool, Any]:
        return unpack(self._get(self._actor.answer.remote(kind, payload)))

    def kill(self) -> None:
        with suppress(Exception):  # the session may be gone, and the actor with it
            self._ray.kill(self._actor)

    def _get(self, reference: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError:  # an error in a live worker, not its death
            raise
        except errors.RayError as error:
            self.kill()
            text = str(error)
            if "failed to import on the worker" in text:
                raise ExecutionError(
                    "the machines of the Ray cluster cannot import thalweg "
                    f"({text.strip().splitlines()[-1]}): install it there, or give "
                    "runtime_env="
                ) from None
            raise WorkerDied(_short(text)) from None


def _room_of(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Return how many workers a machine has room for."""
    room = []
    if cpus:
        room.append(int(node.get("CPU", 0) / cpus + 1e-9))
    if gpus:
        each = 1 / gpus  # workers that share a GPU sit on one
        total = node.get("GPU", 0)
        room.append(int(total) * int(each + 1e-9) if gpus < 1 else int(total * each))
    return min(room)


def _check(cpus: float, gpus: float) -> None:
    for name, value in (("cpus", cpus), ("gpus", gpus)):
        if not value >= 0 or (value > 1 and value != int(value)):
            raise InputError(
                f"{name} must be a fraction up to 1 or a whole number, got {value}"
            )
    if not cpus and not gpus:
        raise InputError("a worker must reserve something: cpus and gpus are both 0")


def _short(text: str) -> str:
    """Return the end of what Ray says of a death, in a line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else "no reason was given"
    reason = last.rpartition("Worker exit detail: ")[2]
    return reason if len(reason) <= 200 else reason[:197] + "..."
