"""The demo: a small network on real handwritten digits, trained in a few seconds."""

import math

import torch
from torch.nn import functional

from thalweg.data import LabeledData, digits, split
from thalweg.landscapes import NetworkLandscape
from thalweg.models import small_cnn
from thalweg.training import fit

WEIGHT_DECAY = 1e-3
EPOCHS = 40


def demo_landscape(seed: int = 0) -> NetworkLandscape:
    """Train a small CNN on 1,438 digits and return the landscape it then stands in.

    Weight decay was part of what the optimizer minimized, so it is part of the
    landscape's loss.
    """
    train, _ = demo_data(seed)
    model = small_cnn(seed=seed)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=WEIGHT_DECAY
    )
    fit(
        model,
        lambda net, batch, state: functional.cross_entropy(net(batch[0]), batch[1]),
        train,
        optimizer,
        epochs=EPOCHS,
        schedules={"lr": lambda done: 0.1 * (1 + math.cos(math.pi * done)) / 2},
        seed=seed,
    )
    model.eval()
    return NetworkLandscape(
        model, functional.cross_entropy, train.tensors, weight_decay=WEIGHT_DECAY
    )


def demo_data(seed: int = 0) -> tuple[LabeledData, LabeledData]:
    """Return the digits that the demo trains on, and those it holds out."""
    train, test = split(digits(images=True), (0.8, 0.2), seed=seed)
    return train, test
