"""The small networks: shapes, seeds, the user's RNG."""

import pytest
import torch

from thalweg.errors import InputError
from thalweg.models import mlp, small_cnn


@pytest.mark.parametrize("build", [mlp, small_cnn])
def test_seeded_and_without_touching_the_global_generator(build):
    before = torch.get_rng_state()
    first, again, other = build(seed=1), build(seed=1), build(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    nets = (net.parameters() for net in (first, again, other))
    for a, b, c in zip(*nets, strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)


def test_shapes():
    images = torch.zeros(3, 1, 8, 8)
    assert mlp()(images).shape == small_cnn()(images).shape == (3, 10)
    assert sum(p.numel() for p in small_cnn().parameters()) == 1898
    assert sum(p.numel() for p in mlp((5, 4, 3), bias=False).parameters()) == 32
    wide = small_cnn((3, 9, 8), 7, channels=(2,), activation="gelu")
    assert wide(torch.zeros(2, 3, 9, 8)).shape == (2, 7)


def test_bad_sizes_are_refused():
    with pytest.raises(InputError, match="two or more positive"):
        mlp((4,))
    with pytest.raises(InputError, match="halved 4 times"):
        small_cnn(channels=(2, 2, 2, 2))
    with pytest.raises(InputError, match="must be positive"):
        small_cnn(classes=0)
