"""Readers for IDX (MNIST) and CIFAR binary files that the user has."""

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from thalweg.data.labeled import LabeledData
from thalweg.errors import DataError, InputError

_IDX_TYPES: dict[int, np.dtype] = {
    0x08: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
_PIXELS = 3 * 32 * 32
_CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer",
    "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


def read_idx(path: str | Path) -> Tensor:
    """Read an IDX file, gzipped or not, as a tensor of its own dtype and shape.

    The format: two zero bytes, a type code, the number of dimensions, each dimension
    as a big-endian 32-bit integer, then the values, big-endian, row by row.

    Raises:
        DataError: No IDX file, an unknown type code, a file that ends early or goes
            on after its data, a damaged gzip stream.
    """
    file = Path(path)
    raw = _bytes(file)
    if len(raw) < 4 or raw[:2] != b"\0\0":
        raise DataError(f"{file} is no IDX file: it must begin with two zero bytes")
    code, ndim = raw[2], raw[3]
    if code not in _IDX_TYPES:
        raise DataError(f"{file} has the unknown IDX type code 0x{code:02x}")
    start = 4 + 4 * ndim
    if len(raw) < start:
        raise DataError(f"{file} ends inside its header of {start} bytes")
    shape = struct.unpack(f">{ndim}I", raw[4:start])
    dtype = _IDX_TYPES[code]
    expected = start + math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        problem = "is truncated" if len(raw) < expected else "has bytes left over"
        raise DataError(
            f"{file} {problem}: shape {shape} needs {expected} bytes, it has {len(raw)}"
        )
    values = np.frombuffer(raw, dtype, offset=start).reshape(shape)
    return torch.from_numpy(values.astype(dtype.newbyteorder("=")))


def idx_dataset(
    images: str | Path, labels: str | Path, *, name: str = "idx"
) -> LabeledData:
    """Read a pair of IDX files (MNIST and its kin), images float32 in [0, 1].

    Rows of unsigned bytes of shape (height, width) become (1, height, width).

    Raises:
        DataError: A file that cannot be read, files of different lengths.
    """
    pixels, targets = read_idx(images), read_idx(labels)
    if pixels.dtype != torch.uint8:
        raise DataError(f"{images} must hold unsigned bytes, got {pixels.dtype}")
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    if targets.ndim != 1 or targets.is_floating_point():
        raise DataError(f"{labels} must hold one integer a row")
    if len(pixels) != len(targets) or len(targets) == 0:
        raise DataError(
            f"{images} holds {len(pixels)} images, {labels} {len(targets)} labels"
        )
    targets = targets.long()
    classes = tuple(str(c) for c in range(int(targets.max()) + 1))
    return LabeledData(pixels.float() / 255.0, targets, classes, name)


def cifar_binary(
    paths: str | Path | Sequence[str | Path],
    *,
    labels: Literal["cifar10", "fine", "coarse"] = "cifar10",
) -> LabeledData:
    """Read the binary version of CIFAR-10 or CIFAR-100, float32 (3, 32, 32) in [0, 1].

    A record is one label byte (CIFAR-100: coarse, then fine) and 3,072 bytes: the red,
    green and blue planes, row by row (Krizhevsky, "Learning Multiple Layers of Features
    from Tiny Images", 2009). Normalization belongs into the model.

    Args:
        paths: One file or several, read in the order given; gzipped or not.
        labels: "cifar10", or which labels of CIFAR-100.

    Raises:
        InputError: Another kind of labels.
        DataError: A file whose size is no whole number of records, labels out of range.
    """
    columns = {"cifar10": (1, 0, 10), "coarse": (2, 0, 20), "fine": (2, 1, 100)}
    if labels not in columns:
        raise InputError(f"labels must be one of {tuple(columns)}, got {labels!r}")
    width, column, count = columns[labels]
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    if not files:
        raise InputError("paths must name at least one file")
    records = np.concatenate([_records(Path(f), width + _PIXELS) for f in files])
    targets = torch.from_numpy(records[:, column].astype(np.int64))
    pixels = torch.from_numpy(records[:, width:].reshape(-1, 3, 32, 32))
    classes = _CIFAR10 if labels == "cifar10" else tuple(str(c) for c in range(count))
    name = "CIFAR-10" if labels == "cifar10" else f"CIFAR-100 {labels}"
    return LabeledData(pixels.float() / 255.0, targets, classes, name)


def _records(file: Path, size: int) -> np.ndarray:
    raw = _bytes(file)
    if len(raw) == 0 or len(raw) % size:
        raise DataError(
            f"{file} has {len(raw)} bytes, which is no whole number of records of "
            f"{size} bytes: truncated, or of the other CIFAR"
        )
    return np.frombuffer(raw, np.uint8).reshape(-1, size)


def _bytes(file: Path) -> bytes:
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} is a damaged gzip file: {error}") from None
