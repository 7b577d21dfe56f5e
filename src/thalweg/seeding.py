"""Every random number as a function of a seed and a key, never of global state."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

Key = int | str


def derive(seed: int, *key: Key) -> int:
    """Return the 63-bit seed that belongs to `seed` and `key`.

    Different keys give independent streams, so that probe 7 is the same whether
    five or fifty are drawn, and in whichever process.
    """
    digest = hashlib.sha256(repr((int(seed), *key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *key: Key) -> torch.Generator:
    """Return a CPU generator for (seed, key); values drawn do not depend on device."""
    return torch.Generator("cpu").manual_seed(derive(seed, *key))


def numpy_generator(seed: int, *key: Key) -> np.random.Generator:
    """Return a NumPy generator for (seed, key)."""
    return np.random.default_rng(derive(seed, *key))


@contextmanager
def seeded(seed: int, *key: Key) -> Iterator[None]:
    """Seed torch's global CPU generator for a block of code, and put it back after.

    For code that draws from the global generator and takes no other, such as the
    initialization of modules.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, *key))
        yield


def normal(shape: tuple[int, ...], seed: int, *key: Key, like: Tensor) -> Tensor:
    """Draw N(0, 1) entries in `like`'s dtype and device.

    Drawn on the CPU in float64 for a float64 `like` and in float32 below.
    """
    return _draw(torch.randn, shape, seed, key, like)


def rademacher(shape: tuple[int, ...], seed: int, *key: Key, like: Tensor) -> Tensor:
    """Draw entries of +1 and -1, each with probability one half."""
    bits = torch.randint(0, 2, shape, generator=generator(seed, *key))
    return (2 * bits - 1).to(device=like.device, dtype=like.dtype)


def uniform(shape: tuple[int, ...], seed: int, *key: Key, like: Tensor) -> Tensor:
    """Draw entries uniform on [0, 1) in `like`'s dtype and device."""
    return _draw(torch.rand, shape, seed, key, like)


def _draw(sampler, shape, seed, key, like):  # type: ignore[no-untyped-def]  # torch.rand and torch.randn share no type
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    values = sampler(shape, generator=generator(seed, *key), dtype=dtype)
    return values.to(device=like.device, dtype=like.dtype)
