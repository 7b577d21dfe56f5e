"""Weighted sums over batches."""

import pytest
import torch

from thalweg.errors import DataError
from thalweg.landscapes.accumulation import Accumulator


def test_weights_count_rows_not_batches():
    total = Accumulator()
    total.add(torch.tensor([1.0]), 140)
    total.add(torch.tensor([16.0]), 10)
    assert total.result().tolist() == [2.0]
    assert total.result().dtype == torch.float32


def test_sum_adds():
    total = Accumulator("sum")
    for value in (1.0, 2.0, 4.0):
        total.add(torch.tensor(value), 7)
    assert total.result() == 7.0


def test_one_batch_is_handed_through_and_none_changes():
    first = torch.tensor([1.0])
    total = Accumulator()
    total.add(first, 3)
    assert total.result() is first
    total.add(torch.tensor([2.0]), 3)
    assert first.item() == 1.0
    assert total.result().item() == 1.5


def test_small_terms_survive_in_float64():
    total = Accumulator("sum")
    total.add(torch.tensor(1e8), 1)
    for _ in range(16):
        total.add(torch.tensor(1.0), 1)
    assert total.result().item() == 1e8 + 16


def test_no_batch_and_no_weight_are_refused():
    with pytest.raises(DataError, match="no batch"):
        Accumulator().result()
    total = Accumulator()
    total.add(torch.tensor(1.0), 0.0)
    with pytest.raises(DataError, match="zero"):
        total.result()
