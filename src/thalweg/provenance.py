"""What a result carries about its origin: versions, fingerprints, cost."""

import hashlib
import json
import platform
import time
from collections.abc import Mapping
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

__all__ = ["Meter", "attributes", "fingerprint", "to_json", "versions"]


def versions() -> dict[str, str]:
    """Return the versions of thalweg, torch, numpy and Python."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("thalweg")
    except PackageNotFoundError:  # run from a source tree without installation
        own = "unknown"
    return {
        "thalweg": own,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def fingerprint(*things: object) -> str:
    """Return the first 16 hex digits of a SHA-256 over the bytes of `things`.

    Tensors and arrays count with dtype, shape and bytes; mappings in the order of
    their sorted keys; everything else by its JSON form.
    """
    digest = hashlib.sha256()
    for thing in things:
        _absorb(digest, thing)
    return digest.hexdigest()[:16]


def _absorb(digest: "hashlib._Hash", thing: object) -> None:
    if isinstance(thing, Tensor):
        digest.update(f"array {thing.dtype} {tuple(thing.shape)}".encode())
        raw = thing.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    elif isinstance(thing, np.ndarray):
        _absorb(digest, torch.from_numpy(np.ascontiguousarray(thing)))
    elif isinstance(thing, Mapping):
        digest.update(f"mapping {len(thing)}".encode())
        for key in sorted(thing, key=str):
            digest.update(str(key).encode())
            _absorb(digest, thing[key])
    elif isinstance(thing, list | tuple):
        digest.update(f"sequence {len(thing)}".encode())
        for item in thing:
            _absorb(digest, item)
    else:
        digest.update(to_json(thing).encode())


def to_json(value: object, indent: int | None = None) -> str:
    """Return strict JSON; NaN and the infinities become "nan", "inf" and "-inf"."""
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def _plain(value: object) -> object:
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


class Meter:
    """Measure what a computation cost: wall and CPU seconds, passes and products.

    ```python
    with Meter() as meter:
        ...
        meter.add(forward=25)
    dataset.attrs["cost"] = meter.attribute()
    ```
    """

    def __init__(self) -> None:
        self.counts: dict[str, float] = {}
        self.seconds = 0.0
        self.cpu_seconds = 0.0

    def __enter__(self) -> "Meter":
        self._started = time.perf_counter(), time.process_time()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        wall, cpu = self._started
        self.seconds += time.perf_counter() - wall
        self.cpu_seconds += time.process_time() - cpu

    def add(self, **counts: float) -> None:
        """Add to the counts, for example `forward=25, products=10`."""
        for name, count in counts.items():
            self.counts[name] = self.counts.get(name, 0) + count

    def attribute(self) -> str:
        """Return the JSON that a result keeps in its one attribute `cost`."""
        return to_json(
            {
                "seconds": round(self.seconds, 6),
                "cpu_seconds": round(self.cpu_seconds, 6),
                "host": platform.node(),
                **self.counts,
            }
        )


def attributes(
    *, seed: int | None = None, cost: Meter | None = None, **entries: object
) -> dict[str, str]:
    """Return the attributes of a result, all plain strings (JSON for structures).

    Two runs of one plan differ in the one attribute `cost` only.
    """
    result = {"versions": to_json(versions())}
    if seed is not None:
        result["seed"] = str(seed)
    for name, entry in entries.items():
        result[name] = entry if isinstance(entry, str) else to_json(entry)
    if cost is not None:
        result["cost"] = cost.attribute()
    return result
