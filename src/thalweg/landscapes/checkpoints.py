"""Read checkpoints: tensors by name from files that are never unpickled freely."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thalweg.errors import CheckpointError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
WRAPPERS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict in a file, on the CPU.

    `.safetensors` is read as such, everything else by `torch.load(weights_only=True)`.
    A state dict inside a training checkpoint is found under "state_dict",
    "model_state_dict" or "model"; prefixes that data-parallel or compiled models put
    before every name are taken off.

    Raises:
        CheckpointError: No such file, of another kind, truncated, holding more than
            tensors, or with weights that are not finite (they are named).
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path}: there is no such file")
    if path.suffix not in SUFFIXES:
        raise CheckpointError(
            f"checkpoint {path}: suffix {path.suffix!r} is not one of {SUFFIXES}"
        )
    content = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    state = _without_prefix(_state(path, content))
    broken = [
        name
        for name, tensor in state.items()
        if (tensor.is_floating_point() or tensor.is_complex())
        and not bool(torch.isfinite(tensor).all())
    ]
    if broken:
        raise CheckpointError(
            f"checkpoint {path}: {len(broken)} of {len(state)} tensors are not finite "
            f"(NaN or inf): {broken[:8]}"
        )
    return state


def _safetensors(path: Path) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"checkpoint {path} is truncated or no safetensors file: {error}"
        ) from error


def _torch(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        first = str(error).strip().splitlines()[0]
        if path.stat().st_size == 0 or "truncated" in first or "load key" in first:
            raise CheckpointError(f"checkpoint {path} is truncated: {first}") from error
        raise CheckpointError(
            f"checkpoint {path} holds more than tensors and plain values, and is not "
            "unpickled: save `model.state_dict()`, best as safetensors"
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise CheckpointError(
            f"checkpoint {path} is truncated or no torch file: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error


def _state(path: Path, content: object) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and not _is_state(content):
        for key in WRAPPERS:
            if _is_state(content.get(key)):
                content = content[key]
                break
    if not _is_state(content):
        kind = type(content).__name__
        keys = f" with keys {list(content)[:8]}" if isinstance(content, Mapping) else ""
        raise CheckpointError(
            f"checkpoint {path} holds a {kind}{keys}, expected a state dict (names to "
            f"tensors), or one under {WRAPPERS}"
        )
    assert isinstance(content, Mapping)
    return {str(name): value for name, value in content.items()}


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(value, Tensor) for value in content.values())
    )


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            return _without_prefix({n[len(prefix) :]: t for n, t in state.items()})
    return state
