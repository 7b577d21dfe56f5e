"""A job: keyed items run by an executor, kept in a store, shown as they go."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np
import torch

from thalweg.errors import ExecutionError, InputError, ThalwegError
from thalweg.execution.executors import Executor, running_executor
from thalweg.execution.interrupts import deferred_interrupt
from thalweg.execution.progress import Progress, ProgressName, as_progress
from thalweg.execution.store import Store, check_key

Arrays = dict[str, np.ndarray]
OnError = Literal["raise", "record"]


@dataclass(frozen=True)
class Item:
    """One piece of work: a key that names it and the small arguments it needs.

    Args:
        key: Letters, digits and `._=+-`; names the item's file.
        args: What the function gets after the constant.
        size: How many points it counts for in the progress.
    """

    key: str
    args: tuple = ()
    size: int = 1


def execute(
    items: Sequence[Item],
    function: Callable[..., Arrays],
    recipe: Callable[[], Any],
    *,
    store: Store | None = None,
    executor: Any = None,
    progress: ProgressName | Progress | None = None,
    on_error: OnError = "raise",
    threads: int = 1,
) -> dict[str, Arrays]:
    """Run `function(constant, *item.args)` for every item and return the arrays by key.

    The constant is `recipe()`, built once a worker. Items found in the store are read;
    each other one is stored when it is finished. At most two items a worker are in
    flight. Ctrl-C finishes what is running, keeps it and raises `KeyboardInterrupt`;
    a second Ctrl-C stops at once. All executors compute with `threads` torch threads.

    Args:
        items: The work; keys are unique.
        function: Returns a dict of arrays; must be importable or picklable by
            cloudpickle for other processes.
        recipe: Builds the constant; as picklable as the function.
        store: Where finished items are kept.
        executor: See `as_executor`; one that is made here is closed here.
        progress: See `as_progress`.
        on_error: "raise" stops at the first item that fails, with everything finished
            kept; "record" gives such an item the one array `error`, a text, does not
            store it, and goes on.
        threads: torch threads of every worker, this process included.

    Raises:
        ExecutionError: An item failed (named, with its error), or something cannot be
            sent to a worker. Errors of thalweg pass as they are, the item in a note.
    """
    _check(items, on_error, threads)
    done = store.done() if store else set()
    waiting = [item for item in items if item.key not in done]
    fresh: dict[str, Arrays] = {}
    if waiting:
        total = sum(item.size for item in items)
        display = as_progress(progress)
        with thread_count(threads), running_executor(executor) as workers:
            handle = workers.open(_Recipe(recipe, threads))
            display.start(total, total - sum(item.size for item in waiting))
            try:
                run = _run(waiting, function, workers, handle, on_error)
                with closing(run):
                    for item, arrays in run:
                        if store and "error" not in arrays:
                            store.write(item.key, arrays)
                        fresh[item.key] = arrays
                        display.advance(item.size, arrays)
            finally:
                display.close()
    return {
        item.key: fresh[item.key] if item.key in fresh else _read(store, item.key)
        for item in items
    }


def _read(store: Store | None, key: str) -> Arrays:
    assert store is not None  # an item that is not fresh was found there
    return store.read(key)


def _run(
    items: Sequence[Item],
    function: Callable[..., Arrays],
    workers: Executor,
    handle: Any,
    on_error: OnError,
) -> Generator[tuple[Item, Arrays], None, None]:
    """Yield items as they finish; after a failure or Ctrl-C only what is running."""
    waiting = deque(items)
    finished: SimpleQueue = SimpleQueue()
    flying: dict[str, Any] = {}
    failure: BaseException | None = None
    with deferred_interrupt() as interrupted:
        try:
            while flying or (waiting and failure is None):
                room = 2 * workers.workers - len(flying)
                while waiting and failure is None and room > 0 and finished.empty():
                    item = waiting.popleft()
                    flying[item.key] = workers.submit(handle, function, *item.args)
                    flying[item.key].add_done_callback(_into(finished, item))
                    room -= 1
                item, future = finished.get()
                del flying[item.key]
                arrays, error = _outcome(future)
                if error is not None and on_error == "record":
                    arrays, error = {"error": np.array(_text(error))}, None
                if arrays is not None:
                    yield item, arrays
                if error is not None and failure is None:
                    failure = _named(item, error)
                if interrupted.is_set() and failure is None:
                    failure = KeyboardInterrupt()
                if failure is not None:
                    _cancel(flying)
        finally:
            _cancel(flying)
    if failure is not None:
        raise failure


def _outcome(future: Any) -> tuple[Arrays | None, Exception | None]:
    """Return arrays or error of a finished future, neither where it was cancelled."""
    if future.cancelled():
        return None, None
    try:
        return future.result(), None
    except Exception as error:
        return None, error


def _cancel(flying: dict[str, Any]) -> None:
    for future in flying.values():
        if isinstance(future, Future):  # others need not report a cancellation
            future.cancel()


def _into(finished: SimpleQueue, item: Item) -> Callable[[Any], None]:
    return lambda future: finished.put((item, future))


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _named(item: Item, error: Exception) -> Exception:
    if isinstance(error, ExecutionError) or not isinstance(error, ThalwegError):
        named = ExecutionError(f"item {item.key!r} failed: {_text(error)}")
        named.__cause__ = error
        return named
    error.add_note(f"in item {item.key!r}")
    return error


def _check(items: Sequence[Item], on_error: str, threads: int) -> None:
    seen: set[str] = set()
    for item in items:
        check_key(item.key)
        if item.key in seen:
            raise InputError(f"two items have the key {item.key!r}")
        seen.add(item.key)
    if on_error not in ("raise", "record"):
        raise InputError(f"on_error must be 'raise' or 'record', got {on_error!r}")
    if threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}")


class _Recipe:
    """The recipe, and the settings of torch that decide the bits of a result."""

    def __init__(self, build: Callable[[], Any], threads: int) -> None:
        self.build, self.threads = build, threads
        self.dtype = torch.get_default_dtype()
        self.precision = torch.get_float32_matmul_precision()
        self.deterministic = torch.are_deterministic_algorithms_enabled()
        self.warn_only = torch.is_deterministic_algorithms_warn_only_enabled()

    def __call__(self) -> Any:
        torch.set_num_threads(self.threads)
        torch.set_default_dtype(self.dtype)
        torch.set_float32_matmul_precision(self.precision)
        torch.use_deterministic_algorithms(self.deterministic, warn_only=self.warn_only)
        return self.build()


@contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Compute with so many torch threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
