"""The one form of labeled data, and its parts."""

import pytest
import torch

from thalweg.data import LabeledData, digits, split
from thalweg.errors import DataError, InputError


def made(n=10, classes=2):
    targets = torch.arange(n) % classes
    return LabeledData(torch.arange(n).float()[:, None], targets, ("a", "b"), "made")


def test_it_is_a_torch_data_set():
    data = made()
    inputs, targets = data.tensors
    assert torch.equal(data[3][0], inputs[3]) and data[3][1] == targets[3]
    batches = list(torch.utils.data.DataLoader(data, batch_size=4))
    assert [len(x) for x, _ in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([x for x, _ in batches]), inputs)
    part = data.subset([7, 1], name="two")
    assert part.inputs[:, 0].tolist() == [7, 1] and part.name == "two"
    assert data.to(dtype=torch.float64).inputs.dtype == torch.float64


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), "x: the data is empty"),
        (torch.zeros(3, 2), torch.tensor([0, 1]), r"3 inputs need targets.*\(2,\)"),
        (torch.zeros(2, 2), torch.tensor([0.0, 1.0]), "integers, got torch.float32"),
        (torch.zeros(2, 2), torch.tensor([0, 2]), r"\[0, 2\), got 0 to 2"),
        (torch.zeros(2, 2), torch.tensor([-1, 1]), r"\[0, 2\), got -1 to 1"),
    ],
)
def test_bad_data_is_refused(inputs, targets, message):
    with pytest.raises(DataError, match=message):
        LabeledData(inputs, targets, ("a", "b"), "x")


@pytest.mark.parametrize("stratified", [True, False])
def test_parts_are_disjoint_complete_and_seeded(stratified):
    data = digits()
    index = LabeledData(
        torch.arange(len(data)), data.targets, data.classes, "positions"
    )
    parts = split(index, (0.7, 0.2, 0.1), stratified=stratified, seed=3)
    again = split(index, (0.7, 0.2, 0.1), stratified=stratified, seed=3)
    other = split(index, (0.7, 0.2, 0.1), stratified=stratified, seed=4)
    rows = torch.cat([part.inputs for part in parts])
    assert torch.equal(rows.sort().values, torch.arange(len(data)))
    assert all(
        torch.equal(a.inputs, b.inputs) for a, b in zip(parts, again, strict=True)
    )
    assert not torch.equal(parts[0].inputs, other[0].inputs)
    assert [p.name for p in parts] == [
        f"positions {part}" for part in ("train", "validation", "test")
    ]
    if stratified:
        total = data.targets.bincount()
        for part, fraction in zip(parts, (0.7, 0.2, 0.1), strict=True):
            off = part.targets.bincount() - fraction * total
            assert float(off.abs().max()) < 1
    else:
        assert [len(p) for p in parts] == [1258, 359, 180]


def test_bad_fractions_are_refused():
    with pytest.raises(InputError, match="positive"):
        split(made(), (1.2, -0.2))
    with pytest.raises(InputError, match="add up to 1"):
        split(made(), (0.5, 0.4))
    with pytest.raises(InputError, match="'test' of made .10 rows. empty"):
        split(made(), (0.99, 0.01))
