"""Checkpoints of a run: written whole or not at all, read without unpickling code."""

import pickle
from pathlib import Path
from typing import Any

import torch

from thalweg.errors import CheckpointError
from thalweg.execution import atomic_file


def write_checkpoint(path: Path, content: dict[str, Any], *, verify: bool) -> None:
    """Write beside `path`, flush to disk, then put it in place.

    Args:
        path: The file.
        content: Tensors, numbers, strings and containers of these.
        verify: Whether to read the file back before it replaces the old one.

    Raises:
        CheckpointError: The content cannot be read back weights-only.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        torch.save(content, file)
        if verify:
            file.flush()
            _verify(file.name)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, tensors on the CPU.

    Raises:
        CheckpointError: The file is truncated, no checkpoint of a run, or not
            weights-only.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} cannot be read: {reason}") from None
    if not isinstance(content, dict) or "thalweg" not in content:
        raise CheckpointError(f"{path} is no checkpoint of a training run")
    return content


def _verify(path: str) -> None:
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[-1]
        raise CheckpointError(
            "the state of the model, the optimizer or a hook holds something else "
            f"than tensors, numbers, strings and containers of these: {reason}"
        ) from None
