"""The global generators, seeded for the length of a run and put back after it."""

import random
from collections.abc import Iterable
from types import TracebackType

import numpy as np
import torch

from thalweg.seeding import Key, derive


class SeededGlobals:
    """Seed torch's, NumPy's and Python's global generators; restore them on exit.

    Dropout and augmentations draw from global generators; seeding these at each step
    makes what they draw a function of (seed, key), whatever was drawn before.

    Args:
        seed: Seed of the run.
        devices: Devices of the model; generators of other devices stay untouched.
    """

    def __init__(self, seed: int, devices: Iterable[torch.device]) -> None:
        self._seed = seed
        self._cuda = sorted({d.index or 0 for d in devices if d.type == "cuda"})

    def __enter__(self) -> "SeededGlobals":
        self._fork = torch.random.fork_rng(devices=self._cuda)
        self._fork.__enter__()
        self._numpy, self._python = np.random.get_state(), random.getstate()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        self._fork.__exit__(kind, error, trace)

    def reseed(self, *key: Key) -> None:
        """Seed all of them as a function of (seed, key)."""
        value = derive(self._seed, *key)
        torch.default_generator.manual_seed(value)
        for index in self._cuda:
            torch.cuda.default_generators[index].manual_seed(value)
        np.random.seed(value % 2**32)
        random.seed(value)
