"""Who does the work: the protocol of an executor, the local one, and adapters.

An executor holds one big constant (model, data, directions) where the work is done;
a task carries small arguments only. Here are the protocol, the executor in this
process and the adapter of bare futures objects; `processes` has the one of worker
processes, `ray_actors` that of a Ray cluster.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from thalweg.errors import InputError
from thalweg.execution.sending import digest, pack, unpack

Recipe = Callable[[], Any]
Handle = Any


@runtime_checkable
class FutureLike(Protocol):
    """What `submit` returns: `concurrent.futures.Future`, Dask's, or one like them."""

    def result(self) -> Any:  # noqa: D102
        ...

    def cancel(self) -> Any:  # noqa: D102
        ...

    def add_done_callback(self, fn: Callable[[Any], Any], /) -> Any:  # noqa: D102
        ...


@runtime_checkable
class Executor(Protocol):
    """Holds constants where the work is done and runs functions on them.

    `open(recipe)` builds the constant of a
    job, once a worker: `recipe` is a callable without arguments. `submit` runs
    `function(constant, *args)`. `close` ends what the executor started.
    """

    @property
    def workers(self) -> int:
        """How many tasks run at once, known after `open`."""
        ...

    def open(self, recipe: Recipe) -> Handle:
        """Prepare the constant `recipe()` on every worker."""

    def submit(
        self, handle: Handle, function: Callable[..., Any], *args: Any
    ) -> FutureLike:
        """Run `function(constant, *args)` on some worker."""
        ...

    def close(self) -> None:
        """End the workers that this executor started."""


class LocalExecutor:
    """Run each task at once, in this process."""

    workers = 1

    def open(self, recipe: Recipe) -> Handle:
        """Build the constant here."""
        return recipe()

    def submit(
        self, handle: Handle, function: Callable[..., Any], *args: Any
    ) -> Future:
        """Run the task now; the future that is returned is done."""
        future: Future = Future()
        future.set_running_or_notify_cancel()
        try:
            future.set_result(function(handle, *args))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Nothing was started."""


class FuturesExecutor:
    """Adapt a bare futures object: a Dask `Client`, a `concurrent.futures` pool.

    The recipe is scattered once where the object has `scatter`; without it its bytes
    travel with each task. Every worker thread builds its constant once and keeps the
    latest, known by the fingerprint of the recipe. The object is its owner's to close.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        self.workers = _count_workers(client)

    def open(self, recipe: Recipe) -> Handle:
        """Send the recipe."""
        blob = pack(recipe, "recipe")
        sent = blob
        if hasattr(self.client, "scatter"):
            sent = self.client.scatter(blob, broadcast=True)
        return digest(blob), sent

    def submit(
        self, handle: Handle, function: Callable[..., Any], *args: Any
    ) -> FutureLike:
        """Run the task on some worker."""
        fingerprint, blob = handle
        options = {"pure": False} if hasattr(self.client, "scatter") else {}
        task = pack((function, args), "task")
        return self.client.submit(_run_cached, fingerprint, blob, task, **options)

    def close(self) -> None:
        """The futures object is not ours."""


_cache = threading.local()  # a constant may not be used by two threads at once


def _run_cached(fingerprint: str, blob: bytes, task: bytes) -> Any:
    if getattr(_cache, "fingerprint", None) != fingerprint:
        _cache.constant = unpack(blob)()
        _cache.fingerprint = fingerprint
    function, args = unpack(task)
    return function(_cache.constant, *args)


def _count_workers(client: Any) -> int:
    if hasattr(client, "nthreads"):
        return max(1, sum(client.nthreads().values()))
    return int(getattr(client, "_max_workers", 4))


def as_executor(executor: Any = None, *, address: str | None = None) -> Executor:
    """Return the executor that a setting names.

    Args:
        executor: None or `"local"`; `"process"` (one worker a core), `"process:3"` or
            the number of worker processes; `"ray"`, `"ray:3"`; an `Executor`; or a
            bare futures object with `submit` (Dask `Client`, `concurrent.futures`
            pool).
        address: Of a Ray cluster, see `RayExecutor`; goes with `"ray"` only.

    Raises:
        InputError: It is none of these.
        MissingExtraError: Ray is asked for and not installed.
        ExecutionError: No Ray cluster answers at the address.
    """
    from thalweg.execution.processes import ProcessExecutor
    from thalweg.execution.ray_actors import RayExecutor

    name, count = _named(executor)
    if address is not None and name != "ray":
        raise InputError(
            f"address={address!r} goes with executor='ray' or 'ray:N', "
            f"got executor={executor!r}"
        )
    if executor is None or name == "local":
        return LocalExecutor()
    if name == "process":
        return ProcessExecutor(count)
    if name == "ray":
        return RayExecutor(count, address=address)
    if isinstance(executor, Executor):
        return executor
    if not isinstance(executor, str) and callable(getattr(executor, "submit", None)):
        return FuturesExecutor(executor)
    raise InputError(
        f"executor={executor!r} is not known; give 'local', 'process', 'process:N', "
        "'ray', 'ray:N', a number of worker processes, an Executor or an object with "
        "submit()"
    )


@contextmanager
def running_executor(
    executor: Any = None, *, address: str | None = None
) -> Iterator[Executor]:
    """Lend the executor of a setting; one that is made here is closed at the end."""
    workers = as_executor(executor, address=address)
    try:
        yield workers
    finally:
        if workers is not executor:
            workers.close()


def _named(executor: Any) -> tuple[str, int | None]:
    """Return the kind of executor and the number of workers that a setting names."""
    if isinstance(executor, int) and not isinstance(executor, bool):
        return "process", executor
    if not isinstance(executor, str):
        return "", None
    if executor == "local":
        return "local", None
    name, _, count = executor.partition(":")
    if name in ("process", "ray") and (not count or count.isdigit()):
        return name, int(count) if count else None
    return "", None
