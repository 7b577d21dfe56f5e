"""Training in subspaces against least squares; the dimension that a problem has."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from thalweg import NetworkLandscape
from thalweg import instruments as ti
from thalweg.errors import (
    InputError,
    NonFiniteLossError,
    StoreError,
    StructureError,
)
from thalweg.landscapes import Landscape, Quadratic
from thalweg.models import mlp

DIM, RANK = 60, 10


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def constrained():
    """Return a quadratic in the first RANK of DIM coordinates: RANK constraints."""
    weights = torch.zeros(DIM, dtype=torch.float64)
    weights[:RANK] = 1
    return Quadratic(torch.diag(weights), draw(DIM), origin=torch.zeros(DIM).double())


def lbfgs(parameters):
    return torch.optim.LBFGS(
        parameters,
        lr=1.0,
        max_iter=60,
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )


@pytest.mark.parametrize("kind", ["dense", "sparse", "fastfood"])
def test_training_ends_at_the_least_squares_solution(kind):
    A = draw(40, 40)
    land = Quadratic(A @ A.T / 40, draw(40), origin=torch.zeros(40).double())
    basis = ti.random_basis(40, 5, kind, seed=2)
    run = ti.train_in_subspace(land, basis, steps=4, optimizer=lbfgs)
    matrix = torch.stack([basis @ row for row in torch.eye(5).double()], dim=1)
    normal = matrix.T @ land.matrix
    exact = torch.linalg.solve(normal @ matrix, normal @ land.center)
    torch.testing.assert_close(run.coordinates, exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(run.point, matrix @ exact, rtol=1e-6, atol=1e-6)
    assert run.loss == pytest.approx(float(land.loss(matrix @ exact)), rel=1e-9)
    assert len(run.losses) == 4
    assert run.losses[0] == pytest.approx(float(land.loss(land.origin)))


def test_adam_gets_there_too_and_from_elsewhere():
    land, start = constrained(), draw(DIM, seed=5)
    basis = ti.random_basis(DIM, 20, seed=1)
    run = ti.train_in_subspace(land, basis, at=start, steps=200, rate=0.06)
    assert run.loss < 1e-3 * float(land.loss(start))
    torch.testing.assert_close(run.point, start + basis @ run.coordinates)
    again = ti.train_in_subspace(land, basis, at=start, steps=200, rate=0.06)
    assert torch.equal(run.point, again.point)


def test_a_problem_of_ten_constraints_has_dimension_ten():
    # With d columns the share explained of RANK constraints is d / RANK on average, and
    # all of it from d = RANK on.
    land = constrained()
    initial = float(land.loss(land.origin))

    def explained(point):
        return 1 - float(land.loss(point)) / initial

    found = ti.intrinsic_dimension(
        land,
        explained,
        share=0.999,
        tol=0.0,
        first=4,
        seeds=3,
        steps=2,
        optimizer=lbfgs,
    )
    assert (found.value, found.below) == (10, 9)
    assert found.start == 0 and found.baseline == pytest.approx(1.0)
    assert found.threshold == pytest.approx(0.999)
    runs = found.runs
    assert runs["metric"].dims == ("d", "seed")
    assert runs["d"].values.tolist() == [4, 8, 9, 10, 12, 16]
    assert (runs["metric"].sel(d=[10, 12, 16]) > 0.9999).all()
    assert (runs["metric"].sel(d=[4, 8, 9]) < 0.999).all()
    np.testing.assert_allclose(
        runs["loss"], initial * (1 - runs["metric"]), rtol=1e-9, atol=1e-12
    )
    assert float(runs["metric"].sel(d=4).std("seed")) > 0.01  # bases of their own
    assert runs.attrs["steps"] == "2"


def test_a_landscape_smaller_than_the_first_dimension():
    land = Quadratic(torch.eye(3, dtype=torch.float64))
    start = torch.ones(3, dtype=torch.float64)
    found = ti.intrinsic_dimension(
        land,
        lambda point: 1.5 - float(land.loss(point)),
        baseline=1.5,
        at=start,
        tol=0.0,
        steps=2,
        optimizer=lbfgs,
    )
    assert found.value is not None and found.runs["d"].max() == 3


def network():
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(90, 6, generator=draws)
    y = (x @ torch.randn(6, 3, generator=draws)).argmax(1)
    return NetworkLandscape(mlp((6, 8, 3), seed=0), F.cross_entropy, (x, y))


SHORT = {"first": 2, "seeds": 2, "steps": 40, "batch_size": 32, "rate": 0.03}


def test_the_dimension_of_a_network(tmp_path):
    land = network()
    found = ti.intrinsic_dimension(land, **SHORT, store=tmp_path / "runs")
    assert found.value is not None and 2 <= found.value < land.dim / 2
    assert found.baseline > 0.9 and found.start < found.threshold
    reached = found.runs["metric"].mean("seed") >= found.threshold
    assert bool(reached.sel(d=found.value))
    assert not reached.sel(
        d=[d for d in found.runs["d"].values if d <= found.below]
    ).any()
    again = ti.intrinsic_dimension(land, **SHORT, store=tmp_path / "runs")
    assert again.runs.equals(found.runs) and again.value == found.value
    fresh = ti.intrinsic_dimension(land, **SHORT)
    assert fresh.runs.equals(found.runs)
    with pytest.raises(StoreError):
        ti.intrinsic_dimension(land, **SHORT | {"steps": 41}, store=tmp_path / "runs")


def test_a_limit_that_does_not_suffice():
    found = ti.intrinsic_dimension(
        network(), baseline=1.0, limit=3, kind="fastfood", **SHORT | {"steps": 3}
    )
    assert found.value is None and found.below == 3
    assert found.runs["d"].values.tolist() == [2, 3]


class Cliff(Landscape):
    """|x|^2 within 3 of the start at (1, ...), NaN beyond."""

    def __init__(self):
        super().__init__(8, origin=torch.ones(8).double())

    def loss(self, points):
        far = (points - 1).norm(dim=-1) > 3
        return torch.where(far, float("nan"), points.square().sum(-1))


def test_a_run_that_is_not_finite():
    basis = ti.random_basis(8, 4)
    with pytest.raises(NonFiniteLossError, match="nan after 1 steps .* smaller `rate`"):
        ti.train_in_subspace(Cliff(), basis, rate=10.0)

    def height(point):
        return 9 - float(point.square().sum())

    found = ti.intrinsic_dimension(
        Cliff(), height, baseline=8.0, first=8, steps=5, rate=10.0
    )
    assert found.value is None and found.runs["metric"].isnull().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"first": 0}, "first must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"limit": 1000}, "limit must lie in 1 ... dim = 83, got 1000"),
        ({"share": 0.0}, r"share must lie in \(0, 1\], got 0.0"),
        ({"tol": -1.0}, "tol must not be negative"),
        ({"baseline": -1.0}, "baseline must be positive and finite, got -1.0"),
        ({"baseline": 0.01}, "start has .* already"),
        ({"metric": "bleu"}, r"metric='bleu' is none .*\['accuracy'\]"),
    ],
)
def test_searches_that_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        ti.intrinsic_dimension(network(), **SHORT | options)


def test_arguments_of_training_that_are_refused():
    land = constrained()
    with pytest.raises(InputError, match="steps must be at least 1, got 0"):
        ti.train_in_subspace(land, ti.random_basis(DIM, 3), steps=0)
    with pytest.raises(InputError, match="rate must be positive, got -0.1"):
        ti.train_in_subspace(land, ti.random_basis(DIM, 3), rate=-0.1)
    with pytest.raises(StructureError, match=r"\(5, 2\) does not fit .* 60"):
        ti.train_in_subspace(land, ti.random_basis(5, 2))
    with pytest.raises(InputError, match="a Quadratic has no metrics"):
        ti.intrinsic_dimension(land)
