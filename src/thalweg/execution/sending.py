"""Objects as bytes for another process, and what to say where that fails.

Code that a fresh process cannot import travels by value: whatever is defined in
`__main__`, in a notebook, or in a file that was loaded by its path.
"""

import functools
import hashlib
import inspect
import pickle
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import cloudpickle

from thalweg.errors import ExecutionError


def pack(thing: object, name: str) -> bytes:
    """Return `thing` as bytes; `unpack` is the inverse, in any process.

    Raises:
        ExecutionError: Part of it cannot be sent; the attribute is named.
    """
    with _by_value():
        try:
            return cloudpickle.dumps(thing)
        except Exception as error:
            path, culprit = _culprit(thing, name)
            raise ExecutionError(
                f"{path} ({type(culprit).__name__}) cannot be sent to another "
                f"process: {error}. Remove it, give it `__getstate__`, or use "
                "executor='local'"
            ) from error


def unpack(blob: bytes) -> Any:
    """Return what `pack` packed."""
    return pickle.loads(blob)


def digest(blob: bytes) -> str:
    """Return the fingerprint of packed bytes."""
    return hashlib.sha256(blob).hexdigest()[:16]


@contextmanager
def _by_value() -> Iterator[None]:
    registered = []
    for module in _unimportable(len(sys.modules)):
        if module.__name__ not in cloudpickle.list_registry_pickle_by_value():
            cloudpickle.register_pickle_by_value(module)
            registered.append(module)
    try:
        yield
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)


@functools.lru_cache(maxsize=1)
def _unimportable(count: int) -> tuple[ModuleType, ...]:
    """Return the modules that a fresh process cannot import; `count` keys the cache."""
    return tuple(module for name, module in _tops() if not _importable(name, module))


def _tops() -> Iterator[tuple[str, ModuleType]]:
    for name, module in list(sys.modules.items()):
        if "." not in name and getattr(module, "__name__", None) == name:
            yield name, module


def _importable(name: str, module: ModuleType) -> bool:
    """Whether `import name` would give this module in a process with our `sys.path`."""
    if name == "__main__":  # cloudpickle sends it by value anyway
        return True
    file = getattr(module, "__file__", None)
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, None)
        except Exception:  # a foreign finder's trouble says nothing about the module
            continue
        if spec is not None:
            return spec.origin in (file, "built-in", "frozen")
    return False


def _culprit(thing: object, path: str, depth: int = 12) -> tuple[str, object]:
    """Return the path and value of the innermost part that cannot be pickled."""
    for name, child in _children(thing) if depth else ():
        if not _can(child):
            return _culprit(child, path + name, depth - 1)
    return path, thing


def _can(thing: object) -> bool:
    try:
        cloudpickle.dumps(thing)
    except Exception:
        return False
    return True


def _children(thing: object) -> Iterator[tuple[str, object]]:
    if isinstance(thing, Mapping):
        yield from ((f"[{key!r}]", value) for key, value in thing.items())
    elif isinstance(thing, list | tuple | set | frozenset):
        yield from ((f"[{i}]", value) for i, value in enumerate(thing))
    elif isinstance(thing, functools.partial):
        yield ".func", thing.func
        yield ".args", thing.args
        yield ".keywords", thing.keywords
    elif isinstance(thing, MethodType):
        yield ".__self__", thing.__self__
    elif isinstance(thing, FunctionType):
        variables = inspect.getclosurevars(thing)
        for name, value in {**variables.globals, **variables.nonlocals}.items():
            yield f" -> {name}", value
        yield ".__defaults__", thing.__defaults__
    elif not isinstance(thing, type | ModuleType | BuiltinFunctionType):
        for name, value in getattr(thing, "__dict__", {}).items():
            yield f".{name}", value
