"""Borrow a model and the random generators, and give them back bit for bit."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.seeding import derive

Slot = tuple[nn.Module, str]


@dataclass(frozen=True)
class RandomState:
    """State of all global generators: torch (CPU and CUDA), Python, NumPy."""

    cpu: Tensor
    cuda: list[Tensor]
    python: Any
    numpy: Any

    @classmethod
    def capture(cls) -> "RandomState":
        """Read the state of all global generators."""
        live = torch.cuda.is_available() and torch.cuda.is_initialized()
        return cls(
            torch.get_rng_state(),
            torch.cuda.get_rng_state_all() if live else [],
            random.getstate(),
            np.random.get_state(),
        )

    def restore(self) -> None:
        """Set all global generators to this state."""
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        random.setstate(self.python)
        np.random.set_state(self.numpy)


def seed_all(seed: int, *key: int | str) -> None:
    """Seed the global generators; only inside `preserved_random`."""
    value = derive(seed, *key)
    # Not torch.manual_seed: it queues calls, with stack traces, for absent devices.
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(value)
    random.seed(value)
    np.random.seed(value % 2**32)


@contextmanager
def preserved_random() -> Iterator[None]:
    """Restore every global generator on the way out."""
    state = RandomState.capture()
    try:
        yield
    finally:
        state.restore()


def tensor_slots(model: nn.Module, kind: str) -> dict[str, list[Slot]]:
    """Return where each parameter or buffer hangs: first name -> (module, attribute)s.

    A tied tensor has one name, its first, and several places.

    Args:
        model: The model.
        kind: "_parameters" or "_buffers".
    """
    names: dict[int, str] = {}
    slots: dict[str, list[Slot]] = {}
    for prefix, module in model.named_modules():
        for attribute, tensor in getattr(module, kind).items():
            if tensor is None:
                continue
            name = f"{prefix}.{attribute}" if prefix else attribute
            first = names.setdefault(id(tensor), name)
            slots.setdefault(first, []).append((module, attribute))
    return slots


def current(slots: Mapping[str, list[Slot]], kind: str) -> dict[str, Tensor]:
    """Return the tensors that hang in their places now, by name."""
    return {
        name: getattr(module, kind)[attribute]
        for name, ((module, attribute), *_) in slots.items()
    }


def install(
    slots: Mapping[str, list[Slot]], tensors: Mapping[str, Tensor], kind: str
) -> None:
    """Hang `tensors` into their places, without registering or copying them."""
    for name, tensor in tensors.items():
        for module, attribute in slots[name]:
            getattr(module, kind)[attribute] = tensor


@contextmanager
def swapped(
    slots: Mapping[str, list[Slot]], tensors: Mapping[str, Tensor]
) -> Iterator[None]:
    """Replace parameters by `tensors` for a while, at all places of tied ones."""
    before = [
        (module, attribute, module._parameters[attribute])
        for name in tensors
        for module, attribute in slots[name]
    ]
    try:
        install(slots, tensors, "_parameters")
        yield
    finally:
        for module, attribute, tensor in before:
            module._parameters[attribute] = tensor


@contextmanager
def preserved(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Lend the model in one mode; everything is as before afterwards.

    Parameters, buffers (by identity: work on replacements, never on the user's
    tensors), `.grad`, `requires_grad`, the mode of every submodule and the global
    generators are restored, also after an exception or an interrupt.
    """
    modules = list(model.modules())
    modes = [module.training for module in modules]
    tensors = [
        (getattr(module, kind), dict(getattr(module, kind)))
        for module in modules
        for kind in ("_parameters", "_buffers")
        if getattr(module, kind)
    ]
    gradients = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    state = RandomState.capture()
    try:
        for module, mode in zip(modules, modes, strict=True):
            if mode is not training:
                module.training = training
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            if module.training is not mode:
                module.training = mode
        for registry, before in tensors:
            registry.clear()
            registry.update(before)
        for parameter, gradient, requires_grad in gradients:
            if parameter.grad is not gradient:
                parameter.grad = gradient
            if parameter.requires_grad is not requires_grad:
                parameter.requires_grad_(requires_grad)
        state.restore()


@contextmanager
def math_kernels(second_order: bool) -> Iterator[None]:
    """Use attention and recurrence kernels that have second derivatives."""
    if not second_order:
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
        yield
