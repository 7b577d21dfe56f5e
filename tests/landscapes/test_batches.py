"""Data as the same batches in every pass."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from thalweg.errors import DataError, DataWarning, InputError
from thalweg.landscapes._batches import Batches

X = torch.arange(20.0)[:, None]
Y = torch.arange(20)
PAIRS = [(X[:6], Y[:6]), (X[6:12], Y[6:12]), (X[12:], Y[12:])]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


class Noisy(Dataset):
    """Rows that draw from every global generator."""

    def __len__(self):
        return 20

    def __getitem__(self, i):
        noise = torch.rand(1) + random.random() + np.random.rand()
        return X[i] + noise.float(), Y[i]


def targets(batches):
    return torch.cat([batch.data[1] for batch in batches]).tolist()


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        (X.numpy(), Y.numpy()),
        TensorDataset(X, Y),
        DataLoader(TensorDataset(X, Y), batch_size=6),
        PAIRS,
        lambda: iter(PAIRS),
        Stream(),
    ],
    ids=["tensors", "arrays", "dataset", "loader", "list", "function", "stream"],
)
@pytest.mark.parametrize("materialize", ["auto", True, False])
def test_every_kind_gives_all_rows_again_and_again(data, materialize):
    batches = Batches(data, materialize=materialize)
    assert targets(batches) == targets(batches) == list(range(20))
    assert batches.rows == 20 and sum(batches.sizes) == 20
    assert targets(batches.select([3, 17, 3])) == [3, 3, 17]
    assert targets(batches.select([-1])) == [19]
    assert [targets(piece) for piece in batches.chunks(9)] == [
        list(range(9)), list(range(9, 18)), [18, 19],
    ]  # fmt: skip
    assert targets(batches.select(range(5, 15)).select([0, 9])) == [5, 14]


def test_subsample_does_not_depend_on_the_batches():
    few = [targets(Batches(d, subsample=7, seed=2)) for d in ((X, Y), PAIRS)]
    assert few[0] == few[1] == sorted(set(few[0])) and len(few[0]) == 7
    assert few[0] != targets(Batches(PAIRS, subsample=7, seed=3))
    part = Batches(PAIRS, subsample=7, seed=2, materialize=False)
    assert targets(part.select([0, 6])) == [few[0][0], few[0][6]]


def test_mappings_nested_and_uneven_entries():
    data = {"x": X, "labels": Y, "inner": {"twice": 2 * X}}
    (batch,) = Batches(data)
    assert batch.size == 20 and set(batch.data) == set(data)
    (row,) = Batches(data).select([4])
    assert row.data["inner"]["twice"].tolist() == [[8.0]]
    (row,) = Batches([{"x": X, "scale": torch.ones(3), "name": "a"}]).select([4])
    assert row.data["scale"].shape == (3,) and row.data["name"] == "a"


def test_large_rows_make_small_batches():
    wide = torch.zeros(50, 1000, 100)
    sizes = Batches((wide, torch.zeros(50))).sizes
    assert sum(sizes) == 50 and max(sizes) <= 6
    tokens = torch.zeros(50, 4096, dtype=torch.int64)
    assert max(Batches({"ids": tokens}).sizes) <= 2


def test_reading_draws_the_same_and_leaves_generators_alone():
    loader = DataLoader(Noisy(), batch_size=6)
    batches = Batches(loader, materialize=False, seed=5)
    torch.manual_seed(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    first = torch.cat([b.data[0] for b in batches])
    torch.rand(5), random.random()
    second = torch.cat([b.data[0] for b in batches])
    assert torch.equal(first, second)
    torch.manual_seed(1)
    random.setstate(before[1])
    list(batches)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()


def test_a_shuffling_loader_is_read_in_one_order_and_warned_of():
    own = torch.Generator().manual_seed(7)
    state = own.get_state()
    for generator in (None, own):
        loader = DataLoader(
            TensorDataset(X, Y), batch_size=6, shuffle=True, generator=generator
        )
        with pytest.warns(DataWarning, match="shuffling"):
            batches = Batches(loader, materialize=False)
        order = targets(batches)
        assert order == targets(batches) and sorted(order) == list(range(20))
    assert torch.equal(own.get_state(), state)
    with pytest.warns(DataWarning, match="drop_last"):
        cut = Batches(DataLoader(TensorDataset(X, Y), batch_size=6, drop_last=True))
    assert cut.rows == 18


def test_batches_are_cached_where_they_fit():
    calls = []

    def read():
        calls.append(1)
        return iter(PAIRS)

    cached = Batches(read)
    for _ in range(3):
        list(cached)
    assert len(calls) == 1
    streamed = Batches(read, materialize=False)
    for _ in range(3):
        list(streamed)
    assert len(calls) == 4
    next(iter(Batches(read)))  # a pass that stops early caches nothing
    assert len(calls) == 5


def test_cached_batches_serve_autograd_after_inference():
    dataset = TensorDataset(X, Y)
    batches = Batches(dataset, dtype=torch.float64)
    with torch.inference_mode():
        (first,) = batches
    assert first.data[0].dtype == torch.float64 and first.data[1].dtype == torch.int64
    w = torch.ones(1, dtype=torch.float64, requires_grad=True)
    (first.data[0] @ w[:, None]).sum().backward()
    assert w.grad is not None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((torch.zeros(0, 3), torch.zeros(0)), "empty"),
        ([], "empty"),
        ({}, "empty"),
        (lambda: [], "empty"),
        (TensorDataset(torch.zeros(0, 2)), "length 0"),
        ([(torch.zeros(0, 3), torch.zeros(0))], "empty"),
        (iter(PAIRS), r"one-shot iterator \(list_iterator\).*list\("),
        ((p for p in PAIRS), r"one-shot iterator \(generator\)"),
        ((X, Y[:5]), "leading dimension"),
        ("digits", "type str"),
        (3, "type int"),
        (["a", "b"], "no tensor with a leading axis"),
        (lambda: 3, "returned int"),
    ],
)
def test_data_that_cannot_be_used(data, message):
    with pytest.raises(DataError, match=message):
        list(Batches(data))


def test_a_function_over_one_iterator_is_found_out():
    once = iter(PAIRS)
    batches = Batches(lambda: once, materialize=False)
    list(batches)
    with pytest.raises(DataError, match="one-shot"):
        list(batches)


def test_selections_out_of_range():
    batches = Batches((X, Y))
    with pytest.raises(DataError, match=r"\[0, 20\), got 3 to 20"):
        batches.select([3, 20])
    with pytest.raises(DataError, match="empty"):
        batches.select([])
    with pytest.raises(DataError, match="subsample=30 of 20"):
        list(Batches((X, Y), subsample=30))
    with pytest.raises(InputError, match="size must be at least 1"):
        batches.chunks(0)
