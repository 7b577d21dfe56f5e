"""One landscape on two processes: gloo, shards of 1,000 and 797 rows.

This file is also the script that each rank runs; what it measured is compared with the
landscape of all rows in one process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn

import thalweg
from thalweg import NetworkLandscape, survey
from thalweg import instruments as ti
from thalweg.errors import InputError, LossError, ThalwegError

SIZES = (1000, 797)
SOURCE = str(Path(thalweg.__file__).parents[1])


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10)).double()


def digits(rank=None):
    """All rows, or those of a rank."""
    digits = load_digits()
    x = torch.from_numpy(digits.data) / 16
    y = torch.from_numpy(digits.target)
    if rank is None:
        return x, y
    return tuple(part.split(SIZES)[rank] for part in (x, y))


def batches(data, size):
    return list(zip(*(part.split(size) for part in data), strict=True))


def skewed():
    """A loss whose batches count by the weights of their labels, some ignored."""
    weight = torch.linspace(0.5, 2, 10, dtype=torch.float64)
    return nn.CrossEntropyLoss(weight=weight, ignore_index=3)


def landscapes(rank=None, **options):
    data = digits(rank)
    parts = batches(data, 400 if rank is None else 300)
    decay = {"weight_decay": 0.01, **options}
    yield "plain", NetworkLandscape(model(), nn.CrossEntropyLoss(), data, **decay)
    yield "weighted", NetworkLandscape(model(), skewed(), parts, **decay)
    labels = digits()[1].clone()
    labels[SIZES[0] :] = -100  # the second shard has no weight at all
    parts = batches(
        (data[0], labels if rank is None else labels.split(SIZES)[rank]), 400
    )
    yield "silent", NetworkLandscape(model(), nn.CrossEntropyLoss(), parts, **decay)
    squares = nn.MSELoss(reduction="sum")
    targets = data[0], nn.functional.one_hot(data[1], 10).double()
    yield "sum", NetworkLandscape(model(), squares, targets, reduction="sum", **decay)


def draws(dim, rank=0):
    """Points and vectors, those of other ranks than 0 being other ones."""
    generator = torch.Generator().manual_seed(7 + rank)
    return torch.randn(6, dim, generator=generator, dtype=torch.float64)


def measure(land, rank=0):
    """Return everything that must not depend on how the rows are spread."""
    vectors = draws(land.dim, rank)
    point, V = land.point() + 0.01 * vectors[0], vectors[1:4].T
    yield "loss", land.loss(land.point() + 0.1 * vectors[:2])
    value, gradient = land.value_and_gradient(land.point() + 0.1 * vectors[:2])
    yield "value", value
    yield "gradient", gradient
    yield "metrics", torch.tensor(list(land.evaluate(point).values()))
    operators = {
        "hessian": land.hessian(point),
        "rebuilt": land.hessian(point, method="rebuilt"),
        "ggn": land.ggn(point),
        "fisher": land.fisher(point),
        "sampled": land.fisher(point, kind="mc", samples=2, seed=3),
        "empirical": land.fisher(point, kind="empirical"),
        "covariance": land.gradient_covariance(point),
    }
    for name, A in operators.items():
        yield f"{name} vector", A @ vectors[4]
        yield f"{name} matrix", A @ V
        matrix, right = A.project(V, vectors[4])
        yield f"{name} projected", torch.cat([matrix, right[:, None]], dim=1)
        part = A.submatrix("2.*")
        yield f"{name} part", part @ vectors[4, : part.dim]
        A.close()
    yield "tr C", torch.tensor(operators["covariance"].trace())
    if land.reduction == "sum":
        return
    yield "rows", land.example_losses(point)
    yield "stderr", torch.tensor(land.loss_stderr(point))
    scale = land.noise_scale(point)
    yield "noise", torch.tensor([scale.value, scale.stderr])


def spectra(land):
    """Return what the instruments say, from the origin."""
    H = land.hessian(land.point())
    yield "eigenvalues", ti.top_eigenpairs(H, 3).values
    trace = ti.trace(H, rtol=0.05)
    yield "trace", torch.tensor([trace.value, trace.stderr])
    density = ti.spectral_density(H, probes=2, steps=10)
    yield "nodes", torch.from_numpy(density["nodes"].values)
    rise = ti.sharpness(land, kind="zeroth", rho=0.05)
    yield "sharpness", torch.tensor(rise.value)


def counted(A, v):
    """Return how many numbers each all-reduce of a product carries."""
    numbers, reduce = [], dist.all_reduce

    def counting(tensor, *args, **kwargs):
        numbers.append(tensor.numel())
        return reduce(tensor, *args, **kwargs)

    dist.all_reduce = counting
    try:
        _ = A @ v
    finally:
        dist.all_reduce = reduce
    return numbers


def refusals(rank):
    """Return the messages of what is refused on every rank."""
    x, y = digits(rank)
    other = model()
    with torch.no_grad():
        other[0].bias += rank
    attempts = {
        "labels": lambda: NetworkLandscape(
            model(), nn.CrossEntropyLoss(), (x, y + rank), process_group="world"
        ).evaluate(),
        "models": lambda: NetworkLandscape(
            other, nn.CrossEntropyLoss(), (x, y), process_group="world"
        ),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
        except ThalwegError as error:
            yield name, f"{type(error).__name__}: {error}"


def main(rank, folder):
    """Measure as one rank of two, and save what was found."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    found = {}
    for name, land in landscapes(rank, process_group="world"):
        found |= {f"{name} {key}": value for key, value in measure(land, rank)}
    found |= spectra(next(landscapes(rank, process_group=dist.group.WORLD))[1])
    H = land.hessian(land.point())
    v = torch.ones(land.dim, dtype=torch.float64)
    found["numbers"] = torch.tensor(counted(H, v) + counted(H, v))
    found["described"] = {k: land.describe()[k] for k in ("rows", "shards", "data")}
    found |= refusals(rank)
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), folder], env=environment)
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("kind", ["plain", "weighted", "silent", "sum"])
def test_every_product_is_that_of_one_process(ranks, kind):
    land = dict(landscapes())[kind]
    for name, expected in measure(land):
        found = ranks[0][f"{kind} {name}"].double()
        if name == "rows":  # those that are ignored have no loss
            assert torch.equal(found.isnan(), expected.isnan())
            found, expected = found.nan_to_num(), expected.nan_to_num()
        scale = expected.double().abs().max()
        assert torch.allclose(found, expected.double(), rtol=0, atol=1e-12 * scale), (
            name
        )


def test_instruments_of_spectra_work_unchanged(ranks):
    for name, expected in spectra(next(landscapes())[1]):
        assert torch.allclose(ranks[0][name], expected, rtol=1e-7), name


def test_all_is_identical_on_every_rank(ranks):
    first, second = ranks
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, torch.Tensor):
            assert value.numpy().tobytes() == second[name].numpy().tobytes(), name
    assert first["described"] == second["described"]
    assert first["described"]["rows"] == 1797
    assert first["described"]["shards"] == [1000, 797]


def test_a_product_is_one_all_reduce_of_dim_and_one_numbers(ranks):
    dim = sum(p.numel() for p in model().parameters())
    assert ranks[0]["numbers"].tolist() == [dim + 1, dim + 1]


def test_what_one_rank_refuses_is_raised_on_all(ranks):
    assert ranks[1]["labels"].startswith("DataError: labels out of range")
    assert ranks[0]["labels"].startswith(
        "ExecutionError: rank 1 failed: DataError: lab"
    )
    for found in ranks:
        assert "rank 1 holds another model than rank 0" in found["models"]
        assert "same checkpoint" in found["models"]


@pytest.fixture
def alone(tmp_path):
    """A group of this process alone."""
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


def test_bad_settings(alone):
    def make(group="world", **options):
        data = digits(1)
        return NetworkLandscape(
            model(), nn.CrossEntropyLoss(), data, process_group=group, **options
        )

    with pytest.raises(InputError, match="must be .world. or a group .* got 'gloo'"):
        make("gloo")
    with pytest.raises(InputError, match="buffers='recalibrate' does not go with"):
        make(buffers="recalibrate")
    with pytest.raises(InputError, match="stochastic='fix' does not go with"):
        make(stochastic="fix")
    with pytest.raises(InputError, match="on_error='record' does not go with"):
        make(on_error="record")
    land = make()
    with pytest.raises(InputError, match="rows cannot be picked"):
        land.subset([0, 1])
    with pytest.raises(InputError, match="rows cannot be picked"):
        land.batches(100)
    with pytest.raises(LossError, match="over a process group has no graph"):
        land.loss(land.point().requires_grad_())
    directions = ti.random_directions(land, 1)
    with pytest.raises(InputError, match="a survey plans by the clock of one process"):
        survey(land)
    with pytest.raises(InputError, match="store= does not go with"):
        ti.surface(land, directions, [[0.0, 1.0]], store="anywhere")
    with pytest.raises(ThalwegError, match="stays in its processes"):
        ti.surface(land, directions, [[0.0, 1.0]], executor="process:1")


def test_without_a_group_torch_distributed_is_asked_for():
    with pytest.raises(InputError, match=r"call init_process_group\(\) first"):
        NetworkLandscape(
            model(), nn.CrossEntropyLoss(), digits(), process_group="world"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
