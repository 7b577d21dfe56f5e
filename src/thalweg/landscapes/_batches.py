"""Data as the same sequence of batches in every pass.

Whatever the user hands over (tensors, arrays, a Dataset, a DataLoader, a list of
batches, a function that returns an iterator) becomes `Batches`: iterable again and
again in one order, cached where it fits, selectable by row.
"""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler

from thalweg.errors import DataError, DataWarning, InputError
from thalweg.landscapes._state import RandomState, preserved_random, seed_all
from thalweg.landscapes._trees import (
    as_tensors,
    batch_size,
    leaves,
    move,
    nbytes,
    take_rows,
)
from thalweg.provenance import fingerprint
from thalweg.seeding import generator

CACHE_BYTES = 256 * 2**20
BATCH_BYTES = 2 * 2**20
BATCH_ROWS = 2048
TOKEN_FACTOR = 32  # an integer entry is an index into an embedding


@dataclass(frozen=True)
class Batch:
    """One batch as the user gave it (moved to the device), and its number.

    Args:
        data: The batch: a pair, a mapping, whatever the loss understands.
        index: Its number in the pass, from 0.
        size: Number of rows.
    """

    data: Any
    index: int
    size: int


class Batches:
    """The same batches in the same order at every iteration.

    Args:
        data: Tuple of tensors or arrays with one leading dimension, mapping of such,
            Dataset, DataLoader, list of batches, or a function without arguments that
            returns an iterable of batches. Tensors, mappings and Datasets are cut into
            batches of a size that follows from the shape of a row alone.
        device: Where batches go; None leaves them.
        dtype: dtype of floating entries; None leaves them.
        max_batches: Use the first so many batches.
        subsample: Use so many rows, drawn once without replacement.
        seed: Seed of the rows drawn, and of whatever the reading itself draws.
        materialize: Keep all batches; "auto" below 256 MiB.

    Raises:
        DataError: Empty, one-shot or unreadable data.
    """

    def __init__(
        self,
        data: Any,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        max_batches: int | None = None,
        subsample: int | None = None,
        seed: int = 0,
        materialize: bool | Literal["auto"] = "auto",
    ) -> None:
        for name, value in (("max_batches", max_batches), ("subsample", subsample)):
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        self._read, self._in_memory = _reader(data)
        self.device, self.dtype = device, dtype
        self.max_batches, self.subsample, self.seed = max_batches, subsample, seed
        self.materialize = materialize
        self._rows: Tensor | None = None  # sorted numbers of the rows in use
        self._cache: list[Batch] | None = None
        self._sizes: list[int] | None = None
        self._fingerprint: str | None = None

    def __iter__(self) -> Iterator[Batch]:
        if self._cache is not None:
            yield from self._cache
            return
        if self.subsample is not None and self._rows is None:
            self._rows = self._draw()
        kept: list[Batch] | None = [] if self.materialize is not False else None
        stored, sizes = 0, []
        for batch in self._selected():
            sizes.append(batch.size)
            if kept is not None:
                stored += 0 if self._in_memory else nbytes(batch.data)
                kept.append(batch)
                if self.materialize == "auto" and stored > CACHE_BYTES:
                    kept = None
            yield batch
        if not sizes:
            again = " in a later pass (a one-shot iterator?)" if self._sizes else ""
            raise DataError(f"data is empty{again}: it gave no batch with a row")
        self._sizes, self._cache = sizes, kept

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": None}

    @property
    def sizes(self) -> list[int]:
        """Rows of each batch; reads the data once if nothing has yet."""
        if self._sizes is None:
            for _ in self:
                pass
        assert self._sizes is not None
        return self._sizes

    @property
    def rows(self) -> int:
        """Number of rows in use."""
        return sum(self.sizes)

    def in_dtype(self, dtype: torch.dtype) -> "Batches":
        """Return the same batches with floating entries in another dtype."""
        other = copy.copy(self)
        other.dtype, other._cache, other._in_memory = dtype, None, False
        return other

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the batches' tensors; one pass over the data, once."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint([fingerprint(b.data) for b in self])
        return self._fingerprint

    def select(self, indices: Tensor | Sequence[int]) -> Self:
        """Return the batches of some rows (numbers among those in use, repeats kept).

        Rows stay in the order of the data.
        """
        chosen = torch.as_tensor(indices, dtype=torch.int64).reshape(-1).cpu()
        count = self.rows
        if not len(chosen):
            raise DataError("indices is empty: a landscape needs at least one row")
        if int(chosen.min()) < -count or int(chosen.max()) >= count:
            raise DataError(
                f"indices must lie in [0, {count}), got {int(chosen.min())} to "
                f"{int(chosen.max())}"
            )
        chosen = torch.where(chosen < 0, chosen + count, chosen).sort().values
        other = copy.copy(self)
        other._sizes = other.subsample = other._fingerprint = None
        if self._cache is not None:
            other._rows = chosen
            other._cache = list(_pick(self._cache, chosen))
            other._read = _Stored([batch.data for batch in other._cache])
            other._rows = other.max_batches = None
            other._in_memory = True
            other._sizes = [batch.size for batch in other._cache]
            return other
        other._rows = chosen if self._rows is None else self._rows[chosen]
        return other

    def chunks(self, size: int) -> list[Self]:
        """Return consecutive pieces of `size` rows, the last one smaller."""
        if size < 1:
            raise InputError(f"size must be at least 1, got {size}")
        count = self.rows
        return [
            self.select(torch.arange(start, min(start + size, count)))
            for start in range(0, count, size)
        ]

    def _selected(self) -> Iterator[Batch]:
        batches = self._moved()
        return batches if self._rows is None else _pick(batches, self._rows)

    def _moved(self) -> Iterator[Batch]:
        index = 0
        for data in _isolated(self._read, self.seed):
            if self.max_batches is not None and index >= self.max_batches:
                return
            size = batch_size(data)
            if size == 0:
                continue
            with torch.inference_mode(False):
                moved = move(data, self.device, self.dtype)
            yield Batch(moved, index, size)
            index += 1

    def _draw(self) -> Tensor:
        count = sum(batch.size for batch in self._moved())
        if self.subsample is None or self.subsample > count:
            raise DataError(f"subsample={self.subsample} of {count} rows")
        order = torch.randperm(count, generator=generator(self.seed, "subsample"))
        return order[: self.subsample].sort().values


def _pick(batches: Iterable[Batch], rows: Tensor) -> Iterator[Batch]:
    start = index = 0
    for batch in batches:
        low, high = torch.searchsorted(
            rows, torch.tensor([start, start + batch.size])
        ).tolist()
        if high > low:
            local = rows[low:high] - start
            with torch.inference_mode(False):
                data = take_rows(batch.data, local)
            yield Batch(data, index, high - low)
            index += 1
        start += batch.size


def _isolated(read: Callable[[], Iterable[Any]], seed: int) -> Iterator[Any]:
    """Read with generators of the reading's own: same seed, same order, each pass."""
    iterator, own = None, None
    while True:
        with preserved_random(), torch.inference_mode(False):
            if own is None:
                seed_all(seed, "data")
                iterator = iter(read())
            else:
                own.restore()
            assert iterator is not None
            try:
                item = next(iterator)
            except StopIteration:
                return
            own = RandomState.capture()
        yield as_tensors(item)


# Readers ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stored:
    """Batches that are in memory already."""

    batches: Sequence[Any]

    def __call__(self) -> Iterable[Any]:
        return self.batches


@dataclass(frozen=True)
class _Rows:
    """Tensors of one leading dimension, cut into batches."""

    data: Any
    size: int

    def __call__(self) -> Iterable[Any]:
        count = batch_size(self.data)
        if count <= self.size:
            yield self.data
            return
        for start in range(0, count, self.size):
            yield take_rows(
                self.data, torch.arange(start, min(start + self.size, count))
            )


@dataclass(frozen=True)
class _Loader:
    """A DataLoader, its own generators as before after each pass."""

    loader: DataLoader

    def __call__(self) -> Iterable[Any]:
        with _generators_preserved(self.loader):
            yield from self.loader


@dataclass(frozen=True)
class _Function:
    """A function that returns an iterable of batches."""

    function: Callable[[], Iterable[Any]]

    def __call__(self) -> Iterable[Any]:
        batches = self.function()
        if not isinstance(batches, Iterable):
            raise DataError(
                f"the data function returned {type(batches).__name__}; it must "
                "return an iterable of batches"
            )
        return batches


def _reader(data: Any) -> tuple[Callable[[], Iterable[Any]], bool]:
    """Return how to read `data`, and whether its batches are in memory already."""
    if isinstance(data, DataLoader):
        _warn_of_loader(data)
        return _Loader(data), False
    if isinstance(data, Dataset):
        return _Loader(_loader_of(data)), False
    if isinstance(data, Tensor | np.ndarray):
        data = (data,)
    if isinstance(data, Mapping) or (
        isinstance(data, tuple)
        and all(isinstance(item, Tensor | np.ndarray) for item in data)
    ):
        return _rows_of(as_tensors(data)), True
    if isinstance(data, list | tuple):
        if not data:
            raise DataError("data is empty: the list has no batch")
        return _Stored(data), True
    if isinstance(data, Iterator):
        raise DataError(
            f"data is a one-shot iterator ({type(data).__name__}), but is read once a "
            "point: wrap it in `list(...)`, or give a function that returns a new one"
        )
    if callable(data) and not isinstance(data, Iterable):
        return _Function(data), False
    if isinstance(data, Iterable) and not isinstance(data, str | bytes):
        return _Again(data), False
    raise DataError(
        f"data of type {type(data).__name__} is not understood: give tensors "
        "(inputs, targets), a Dataset, a DataLoader, a list of batches, or a function "
        "that returns an iterable of batches"
    )


@dataclass(frozen=True)
class _Again:
    """Any other iterable that can be iterated again."""

    data: Iterable[Any]

    def __call__(self) -> Iterable[Any]:
        return self.data


def _rows_of(data: Any) -> _Rows:
    tensors = list(leaves(data))
    if not tensors:
        raise DataError("data is empty: it holds no tensor")
    counts = {t.shape[0] if t.ndim else None for t in tensors}
    if len(counts) > 1 or None in counts:
        shapes = [tuple(t.shape) for t in tensors]
        raise DataError(f"data tensors differ in their leading dimension: {shapes}")
    if counts == {0}:
        raise DataError("data is empty: its tensors have no row")
    return _Rows(data, rows_per_batch(tensors[0][0]))


def rows_per_batch(row: Tensor) -> int:
    """Return how many rows like this one make a batch: about 2 MiB, at most 2048."""
    size = row.numel() * row.element_size()
    if not row.is_floating_point() and not row.is_complex():
        size *= TOKEN_FACTOR
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, size)))


def _loader_of(dataset: Dataset) -> DataLoader:
    if isinstance(dataset, IterableDataset):
        return DataLoader(dataset, batch_size=64)
    if len(dataset) == 0:  # type: ignore[arg-type]  # a map-style dataset has a length
        raise DataError("data is empty: the dataset has length 0")
    with preserved_random():
        tensors = [t for t in leaves(as_tensors(dataset[0])) if t.ndim or True]
    rows = rows_per_batch(tensors[0]) if tensors else 64
    return DataLoader(dataset, batch_size=rows)


def _generators(loader: DataLoader) -> list[torch.Generator]:
    owners = (loader, loader.sampler, loader.batch_sampler)
    found = [getattr(owner, "generator", None) for owner in owners]
    return [g for g in found if isinstance(g, torch.Generator)]


@contextmanager
def _generators_preserved(loader: DataLoader) -> Iterator[None]:
    states = [(g, g.get_state()) for g in _generators(loader)]
    try:
        yield
    finally:
        for own, state in states:
            own.set_state(state)


def _warn_of_loader(loader: DataLoader) -> None:
    if isinstance(loader.sampler, RandomSampler):
        warnings.warn(
            "data is a shuffling DataLoader: its batches are read in one order, drawn "
            "by `seed=`; give `shuffle=False` to choose it",
            DataWarning,
            stacklevel=4,
        )
    if loader.drop_last:
        warnings.warn(
            "data is a DataLoader with drop_last=True: the rows of its last, smaller "
            "batch are not part of the loss",
            DataWarning,
            stacklevel=4,
        )
