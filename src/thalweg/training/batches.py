"""The batches of an epoch, in an order that is a function of (seed, epoch)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from thalweg.errors import DataError, InputError
from thalweg.provenance import fingerprint
from thalweg.seeding import generator


class Batches:
    """Iterate over data in batches; the last one of an epoch may be smaller.

    Args:
        data: Tensors (a tuple or a mapping of tensors, anything with `.tensors`), a
            map-style data set, or a sized iterable of ready batches.
        batch_size: Rows of a batch; None for all. Ready batches are taken as they are.
        shuffle: Whether rows come in a new seeded order each epoch.
        seed: The order is a function of (seed, epoch).

    Raises:
        DataError: Empty or one-shot data, tensors of different lengths.
        InputError: batch_size below 1.
    """

    def __init__(
        self, data: Any, batch_size: int | None, *, shuffle: bool, seed: int
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size must be at least 1 or None, got {batch_size}")
        self._tensors = _tensors(data)
        self._data, self._shuffle, self._seed = data, shuffle, seed
        self._ready = self._tensors is None and _holds_batches(data)
        rows = _length(data) if self._tensors is None else _rows(self._tensors)
        if rows == 0:
            raise DataError("the training data is empty")
        self.rows = rows
        self.size = rows if batch_size is None else min(batch_size, rows)
        self.per_epoch = rows if self._ready else -(-rows // self.size)

    def describe(self) -> dict[str, object]:
        """Return what must be equal for a run to be resumed."""
        content = None if self._tensors is None else fingerprint(self._tensors)
        return {
            "rows": self.rows,
            "batch_size": None if self._ready else self.size,
            "shuffle": self._shuffle,
            "data": content,
        }

    def epoch(
        self, epoch: int, first: int, before_each: Callable[[int], None]
    ) -> Iterator[tuple[int, Any]]:
        """Yield (number, batch) from number `first` on.

        Args:
            epoch: Which epoch.
            first: The first batch that is wanted.
            before_each: Called with the number before a batch is fetched, to seed what
                a data set or a loader draws from global generators.
        """
        if self._ready:
            yield from self._from_loader(first, before_each)
            return
        order = torch.arange(self.rows)
        if self._shuffle:
            order = torch.randperm(
                self.rows, generator=generator(self._seed, "order", epoch)
            )
        for number in range(first, self.per_epoch):
            before_each(number)
            rows = order[number * self.size : (number + 1) * self.size]
            yield number, self._take(rows)

    def _from_loader(
        self, first: int, before_each: Callable[[int], None]
    ) -> Iterator[tuple[int, Any]]:
        before_each(0)  # a loader draws its order here or at the first batch
        batches = iter(self._data)
        for number in range(self.per_epoch):
            before_each(number)
            try:
                batch = next(batches)
            except StopIteration:
                raise DataError(
                    f"the training data has length {self.per_epoch} but gave only "
                    f"{number} batches in an epoch"
                ) from None
            if number >= first:
                yield number, batch

    def _take(self, rows: Tensor) -> Any:
        if isinstance(self._tensors, Mapping):
            return {k: t[rows.to(t.device)] for k, t in self._tensors.items()}
        if self._tensors is not None:
            return tuple(t[rows.to(t.device)] for t in self._tensors)
        from torch.utils.data import default_collate

        return default_collate([self._data[int(i)] for i in rows])


def batch_rows(batch: Any) -> int:
    """Return the leading dimension of the first tensor of a batch, 1 without one."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 1
    items: Sequence[Any] = ()
    if isinstance(batch, Mapping):
        items = list(batch.values())
    elif isinstance(batch, list | tuple):
        items = batch
    for item in items:
        if isinstance(item, Tensor | Mapping | list | tuple):
            return batch_rows(item)
    return 1


def to_device(batch: Any, device: torch.device) -> Any:
    """Return the batch with its tensors on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: to_device(item, device) for name, item in batch.items()}
    if isinstance(batch, list | tuple):
        moved = [to_device(item, device) for item in batch]
        if hasattr(batch, "_fields"):  # a named tuple
            return type(batch)(*moved)
        return type(batch)(moved)
    return batch


def _tensors(data: Any) -> tuple[Tensor, ...] | dict[str, Tensor] | None:
    data = getattr(data, "tensors", data)
    if isinstance(data, Mapping) and data:
        if all(isinstance(t, Tensor) for t in data.values()):
            return dict(data)
        raise DataError("a mapping of data must hold tensors only")
    if isinstance(data, Tensor):
        return (data,)
    if isinstance(data, list | tuple) and data:
        if all(isinstance(t, Tensor) for t in data):
            return tuple(data)
    return None


def _rows(tensors: tuple[Tensor, ...] | dict[str, Tensor]) -> int:
    values = list(tensors.values() if isinstance(tensors, dict) else tensors)
    if any(t.ndim == 0 or len(t) != len(values[0]) for t in values):
        shapes = ", ".join(str(tuple(t.shape)) for t in values)
        raise DataError(
            f"tensors of data must share their leading dimension, got {shapes}"
        )
    return len(values[0])


def _holds_batches(data: Any) -> bool:
    """A loader or a list gives batches; a map-style data set gives rows."""
    return isinstance(data, list | tuple) or not hasattr(data, "__getitem__")


def _length(data: Any) -> int:
    if not hasattr(data, "__len__") or not (
        hasattr(data, "__iter__") or hasattr(data, "__getitem__")
    ):
        raise DataError(
            f"data of type {type(data).__name__} has no length, so it cannot be read "
            "again in each epoch: give tensors, a data set, a DataLoader, or wrap the "
            "batches in a list"
        )
    return len(data)
