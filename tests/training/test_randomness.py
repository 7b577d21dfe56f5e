"""Global generators: seeded inside, as they were outside."""

import random

import numpy as np
import torch

from thalweg.training.randomness import SeededGlobals


def draw():
    return torch.rand(()).item(), np.random.rand(), random.random()


def test_all_three_are_seeded_and_put_back():
    globals_ = SeededGlobals(3, [torch.device("cpu")])
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    expected = draw()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    with globals_ as seeded:
        seeded.reseed("step", 1)
        first = draw()
        seeded.reseed("step", 2)
        other = draw()
        seeded.reseed("step", 1)
        assert draw() == first
    assert all(a != b for a, b in zip(first, other, strict=True))
    assert draw() == expected
