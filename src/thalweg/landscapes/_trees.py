"""Read and rebuild a user's batch: tensors inside tuples, lists and mappings."""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import DataError


def leaves(data: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch, in order."""
    if isinstance(data, Tensor):
        yield data
    elif isinstance(data, Mapping):
        for item in data.values():
            yield from leaves(item)
    elif isinstance(data, tuple | list):
        for item in data:
            yield from leaves(item)


def transform(data: Any, function: Callable[[Any], Any]) -> Any:
    """Return the batch with `function` applied to everything that is no container."""
    if isinstance(data, Mapping):
        result: Any = copy.copy(data)
        for key in data:
            result[key] = transform(data[key], function)
        return result
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(transform(item, function) for item in data))
    if isinstance(data, tuple | list):
        return type(data)(transform(item, function) for item in data)
    return function(data)


def batch_size(data: Any) -> int:
    """Return the leading dimension of the first tensor of a batch.

    Raises:
        DataError: The batch has no tensor with an axis.
    """
    for tensor in leaves(data):
        if tensor.ndim:
            return tensor.shape[0]
    raise DataError(
        f"a batch of type {type(data).__name__} has no tensor with a leading axis: "
        "give batches of tensors, and `weight=` where rows do not count the weight"
    )


def take_rows(data: Any, rows: Tensor) -> Any:
    """Return the batch of some rows; entries without a row axis stay as they are."""
    size = batch_size(data)
    first = int(rows[0]) if len(rows) else 0
    consecutive = len(rows) > 0 and torch.equal(
        rows, torch.arange(first, first + len(rows))
    )

    def pick(item: Any) -> Any:
        if not isinstance(item, Tensor) or item.ndim == 0 or item.shape[0] != size:
            return item
        if consecutive:
            return item[first : first + len(rows)]
        return item[rows.to(item.device)]

    return transform(data, pick)


def as_tensors(data: Any) -> Any:
    """Return the batch with NumPy arrays as tensors."""
    return transform(
        data, lambda x: torch.from_numpy(x) if isinstance(x, np.ndarray) else x
    )


def move(data: Any, device: torch.device | None, dtype: torch.dtype | None) -> Any:
    """Return the batch on `device`, floating entries in `dtype` (None: as given)."""
    if device is None and dtype is None:
        return data

    def convert(item: Any) -> Any:
        if not isinstance(item, Tensor):
            return item.to(device) if hasattr(item, "to") and device else item
        return item.to(device=device, dtype=dtype if item.is_floating_point() else None)

    return transform(data, convert)


def nbytes(data: Any) -> int:
    """Return the bytes of a batch's tensors."""
    return sum(t.numel() * t.element_size() for t in leaves(data))
