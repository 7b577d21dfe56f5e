"""A directory of finished items: the plan first, then one file an item, all atomic."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np

from thalweg.errors import InputError, StoreError
from thalweg.provenance import to_json

PLAN = "plan.json"
RESOLVED = "resolved"
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,199}")


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears at `path` whole, or not at all.

    Written to a temporary file beside it, forced to disk, then renamed.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    if os.name == "nt":  # a directory cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Store:
    """Finished items of one plan in a directory, to which a killed job goes back.

    `plan.json` is written before the first item; `items/KEY.npz` holds the arrays of
    one item, bit for bit. The plan's entry `"resolved"` holds what timing, free memory
    or a budget chose: it is not compared, the stored one wins (`store.resolved`).

    Make one by `create`, `open` or `resume`.
    """

    def __init__(self, path: Path, plan: dict[str, object]) -> None:
        self.path, self.plan = path, plan
        self._items = path / "items"

    @classmethod
    def create(cls, path: str | Path, plan: Mapping[str, object]) -> Self:
        """Make a store in a directory that is absent or empty.

        Raises:
            StoreError: The directory holds something, or is a file.
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise StoreError(f"store {str(path)!r} is a file, not a directory")
        path.mkdir(parents=True, exist_ok=True)
        held = sorted(p.name for p in path.iterdir() if p.suffix != ".tmp")
        if held:
            raise StoreError(
                f"store {str(path)!r} holds something else ({', '.join(held[:3])}): "
                "give an empty directory, or one with a plan to resume"
            )
        with atomic_file(path / PLAN) as file:
            file.write(to_json(plan, indent=1).encode())
        return cls.open(path, plan)

    @classmethod
    def open(cls, path: str | Path, plan: Mapping[str, object] | None = None) -> Self:
        """Open the store of a plan; of whichever plan it holds where `plan` is None.

        Raises:
            StoreError: There is no plan, it cannot be read, or it is another one; the
                entries that differ are named.
        """
        path = Path(path)
        try:
            stored = json.loads((path / PLAN).read_text())
        except FileNotFoundError:
            raise StoreError(f"store {str(path)!r} holds no {PLAN}") from None
        except (OSError, ValueError) as error:
            raise StoreError(
                f"store {str(path)!r} is damaged: {PLAN} cannot be read ({error})"
            ) from None
        if not isinstance(stored, dict):
            raise StoreError(f"store {str(path)!r} is damaged: {PLAN} is no mapping")
        if plan is not None:
            _compare(path, stored, json.loads(to_json(plan)))
        for leftover in path.glob("items/*.tmp"):  # of a job that was killed
            leftover.unlink(missing_ok=True)
        return cls(path, stored)

    @classmethod
    def resume(cls, path: str | Path, plan: Mapping[str, object]) -> Self:
        """Open the store where there is one, else create it."""
        exists = (Path(path) / PLAN).exists()
        return cls.open(path, plan) if exists else cls.create(path, plan)

    @property
    def resolved(self) -> dict[str, object]:
        """What timing, free memory or a budget chose when the plan was written."""
        entry = self.plan.get(RESOLVED, {})
        return entry if isinstance(entry, dict) else {}

    def done(self) -> set[str]:
        """Return the keys of the finished items."""
        return {path.stem for path in self._items.glob("*.npz")}

    def write(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep the arrays of one item."""
        check_key(key)
        self._items.mkdir(exist_ok=True)
        plain = {name: np.asarray(array) for name, array in arrays.items()}
        with atomic_file(self._items / f"{key}.npz") as file:
            np.savez(file, allow_pickle=False, **plain)

    def abandon(self) -> None:
        """Take the plan back if nothing was done: the directory is free again."""
        if not self.done():
            (self.path / PLAN).unlink(missing_ok=True)

    def read(self, key: str) -> dict[str, np.ndarray]:
        """Return the arrays of one item.

        Raises:
            StoreError: The item is missing or its file is damaged.
        """
        path = self._items / f"{key}.npz"
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except FileNotFoundError:
            raise StoreError(f"item {key!r} is not in {str(self.path)!r}") from None
        except Exception as error:  # zipfile and numpy raise many kinds
            raise StoreError(
                f"{str(path)!r} is damaged ({error}): delete it, and resuming "
                "computes this item again"
            ) from None


def check_key(key: str) -> None:
    """Raise unless an item's key can name a file."""
    if not _KEY.fullmatch(key):
        raise InputError(
            f"an item's key is letters, digits and ._=+- (at most 200), got {key!r}"
        )


def _compare(path: Path, stored: dict[str, object], plan: dict[str, object]) -> None:
    ours = {name: plan[name] for name in plan if name != RESOLVED}
    theirs = {name: stored[name] for name in stored if name != RESOLVED}
    differing = list(_differences(theirs, ours))
    if differing:
        raise StoreError(
            f"store {str(path)!r} belongs to another plan; it differs in "
            + "; ".join(differing[:4])
            + (f" and {len(differing) - 4} more" if len(differing) > 4 else "")
            + ". Give another directory, or the settings it was begun with"
        )


def _differences(stored: object, given: object, name: str = "") -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in sorted(stored.keys() | given.keys()):
            dotted = f"{name}.{key}" if name else key
            yield from _differences(stored.get(key), given.get(key), dotted)
    elif stored != given:
        yield f"{name} (stored {_short(stored)}, given {_short(given)})"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
