"""Adaptive surfaces as results: what they hold, resumed, in processes, refused."""

import json
from inspect import unwrap

import numpy as np
import pytest
import torch

from instruments.same_datasets import same
from thalweg import NetworkLandscape
from thalweg import instruments as ti
from thalweg.errors import ExecutionError, InputError, StoreError
from thalweg.execution import ProcessExecutor, load_dataset, save_dataset
from thalweg.instruments.refinement import from_heights, to_heights
from thalweg.landscapes import Landscape, Quadratic

PLANE = torch.eye(2, dtype=torch.float64)
AXES = [np.linspace(-1, 1, 9), np.linspace(-1, 1, 9)]
REFINE = ti.Refine(300)


class Disc(Landscape):
    """A tilted plane with a jump, that is NaN in a disc; remembers where it was."""

    def __init__(self):
        super().__init__(2, origin=torch.zeros(2, dtype=torch.float64))
        self.seen = []

    def loss(self, points):
        self.seen += points.reshape(-1, 2).tolist()
        x, y = points[..., 0], points[..., 1]
        values = 1 + x / 2 + y / 4 + 2 * (y > 0.4 * x + 0.5)
        return torch.where((x - 0.3).hypot(y + 0.4) < 0.3, float("nan"), values)


@pytest.fixture(scope="module")
def whole():
    return ti.surface(Disc(), PLANE, AXES, refine=REFINE)


def test_points_are_evaluated_once_and_stand_on_the_grid(whole):
    land = Disc()
    data = ti.surface(land, PLANE, AXES, refine=REFINE)
    same(data, whole)
    assert len({tuple(p) for p in land.seen}) == len(land.seen) == data.sizes["point"]
    assert data.sizes["point"] == int(data.attrs["evaluated"]) <= 300
    points = np.stack([data["point_x0"], data["point_x1"]], axis=1)
    np.testing.assert_array_equal(points, land.seen)
    exact = land.loss(torch.from_numpy(points)).numpy()
    np.testing.assert_array_equal(data["point_loss"], exact)
    places = [np.searchsorted(data[f"x{j}"], points[:, j]) for j in range(2)]
    np.testing.assert_array_equal(data["loss"].values[*places], exact)
    np.testing.assert_array_equal(data["x0"].values[places[0]], points[:, 0])
    rounds = data["point_round"].values
    assert (rounds[:81] == 0).all() and (rounds[81:] > 0).all()
    assert (np.diff(rounds) >= 0).all() and np.bincount(rounds)[1:].max() <= 9


def test_evaluated_interpolated_and_unknown_are_told_apart(whole):
    status, between = whole["status"].values, whole["interpolated"].values
    evaluated = np.zeros(status.shape, bool)
    for x, y in zip(whole["point_x0"].values, whole["point_x1"].values, strict=True):
        evaluated |= (whole["x0"].values == x)[:, None] & (whole["x1"].values == y)
    assert not (evaluated & between).any()
    np.testing.assert_array_equal(status[between], 0)
    np.testing.assert_array_equal(status == 5, ~evaluated & ~between)
    loss = whole["loss"].values
    assert np.isnan(loss[status == 5]).all() and np.isfinite(loss[between]).all()
    assert set(status[evaluated]) == {0, 1} and (whole["point_status"] == 1).any()
    mesh = np.stack(np.meshgrid(whole["x0"], whole["x1"], indexing="ij"), -1)
    exact = Disc().loss(torch.from_numpy(mesh)).numpy()
    assert np.isfinite(exact[between]).all()  # nothing is drawn across the gap
    far = between & (np.abs(mesh[..., 1] - 0.4 * mesh[..., 0] - 0.5) > 0.35)
    np.testing.assert_allclose(loss[far], exact[far], atol=0.02)


def test_what_decides_is_in_the_attributes(whole):
    refine = json.loads(whole.attrs["refine"])
    assert refine == {
        "max_points": 300, "tol": 0.0, "levels": [], "depth": 3, "round_size": 9
    }  # fmt: skip
    assert float(whole.attrs["remaining"]) > 0
    assert all(type(value) is str for value in whole.attrs.values())
    displacement = whole["displacement"].values
    assert displacement[0, 0] == pytest.approx(2**0.5)


def test_it_goes_through_files_unchanged(whole, tmp_path):
    for name in ("one.nc", "one.zarr"):
        save_dataset(whole, tmp_path / name)
        back = load_dataset(tmp_path / name)
        assert back.attrs == whole.attrs
        for variable in whole.variables:
            assert back[variable].dtype == whole[variable].dtype
            np.testing.assert_array_equal(back[variable], whole[variable])


def test_a_store_resumes_to_the_same_bits_and_refuses_another(whole, tmp_path):
    store = tmp_path / "s"
    land = Disc()
    same(ti.surface(land, PLANE, AXES, refine=REFINE, store=store), whole)
    land.seen.clear()
    same(ti.surface(land, PLANE, AXES, refine=REFINE, store=store), whole)
    assert not land.seen
    files = sorted((store / "items").iterdir(), key=lambda file: file.stat().st_mtime)
    for file in files[40:]:  # killed in the middle
        file.unlink()
    again = ti.surface(land, PLANE, AXES, refine=REFINE, store=store)
    same(again, whole)
    assert 0 < len(land.seen) < 300
    assert json.loads(again.attrs["cost"])["points"] == len(land.seen)
    for refine in (ti.Refine(301), ti.Refine(300, levels=(1.0,)), None):
        with pytest.raises(StoreError, match="belongs to another plan"):
            ti.surface(land, PLANE, AXES, refine=refine, store=store)


def test_processes_give_the_same_bits(whole):
    with ProcessExecutor(2) as executor:
        found = ti.surface(Disc(), PLANE, AXES, refine=REFINE, executor=executor)
    same(found, whole)


def test_progress_counts_through_the_rounds(tmp_path):
    class Display:
        def __init__(self):
            self.log, self.done = [], 0

        def start(self, total, done):
            self.log.append(("start", total, done))
            self.done = done

        def advance(self, size, arrays):
            self.done += size

        def close(self):
            self.log.append(("close",))

    display = Display()
    settings = {"refine": REFINE, "store": tmp_path / "s"}
    data = ti.surface(Disc(), PLANE, AXES, progress=display, **settings)
    assert display.log == [("start", 300, 0), ("close",)]
    assert display.done == data.sizes["point"]
    files = sorted((tmp_path / "s" / "items").iterdir())
    for file in files[-3:]:
        file.unlink()
    display = Display()
    ti.surface(Disc(), PLANE, AXES, progress=display, **settings)
    assert display.log[0][1] == 300 and display.log[0][2] > 200
    assert display.done == data.sizes["point"]


def test_a_network_with_its_metrics_and_the_same_points_as_a_grid():
    torch.manual_seed(0)
    x, y = torch.randn(30, 4).double(), torch.randint(0, 3, (30,))
    model = torch.nn.Linear(4, 3).double()
    land = NetworkLandscape(model, torch.nn.functional.cross_entropy, (x, y))
    directions = ti.random_directions(land, 2, seed=1)
    axes = [np.linspace(-2, 2, 7), np.linspace(2, -2, 5)]
    data = ti.surface(land, directions, axes, refine=ti.Refine(120, depth=2))
    points = np.stack([data["point_x0"], data["point_x1"]], axis=1)
    alone = ti.surface_at_points(land, directions, points)
    np.testing.assert_allclose(data["point_loss"], alone["loss"], rtol=1e-12)
    np.testing.assert_array_equal(data["point_accuracy"], alone["accuracy"])
    assert data["accuracy"].dims == ("x0", "x1") and (np.diff(data["x1"]) < 0).all()
    grid = ti.surface(land, directions, [data["x0"].values, data["x1"].values])
    between = data["interpolated"].values
    np.testing.assert_allclose(
        data["loss"].values[~between], grid["loss"].values[~between], rtol=1e-12
    )
    error = to_heights(data["loss"].values) - to_heights(grid["loss"].values)
    assert 0 < np.abs(error[between]).max() < 0.02
    assert not torch.is_grad_enabled() or model.weight.grad is None


def test_several_landscapes_share_points_that_suit_all():
    A = torch.diag(torch.tensor([40.0, 0.0])).double()
    B = torch.diag(torch.tensor([0.0, 40.0])).double()
    lands = {"a": Quadratic(A), "b": Quadratic(B)}
    at = torch.zeros(2, dtype=torch.float64)
    settings = {"refine": ti.Refine(2000, tol=0.05)}
    both = ti.surface(lands, PLANE, AXES, at, **settings)
    alone = ti.surface(lands["a"], PLANE, AXES, at, **settings)
    assert alone.sizes["x1"] == 9 < both.sizes["x1"] == both.sizes["x0"]
    for name, land in lands.items():
        exact = ti.surface(land, PLANE, [both["x0"].values, both["x1"].values], at)
        error = to_heights(both[name].values) - to_heights(exact["loss"].values)
        assert np.abs(error).max() < 0.05 / 4
    assert {"point_a", "point_b", "a", "b"} <= set(both.data_vars)


def test_a_volume():
    at = torch.zeros(3, dtype=torch.float64)
    bowl = Quadratic(torch.diag(torch.tensor([1.0, 4.0, 30.0])).double())
    axes = [np.linspace(-1, 1, 4)] * 3
    D = torch.eye(3, dtype=torch.float64)
    data = ti.surface(bowl, D, axes, at, refine=ti.Refine(400))
    assert data["loss"].dims == ("x0", "x1", "x2")
    exact = ti.surface(bowl, D, [data[f"x{j}"].values for j in range(3)], at)["loss"]
    error = to_heights(data["loss"].values) - to_heights(exact.values)
    assert np.abs(error).max() < 0.15
    assert data.sizes["x2"] > data.sizes["x0"]


class Fragile(Disc):
    def loss(self, points):
        if bool((points[..., 0] == 0).any() and (points[..., 1] > 0.9).any()):
            raise ArithmeticError("no value here")
        return super().loss(points)


def test_failures_are_raised_or_recorded_and_looked_at_more_closely():
    with pytest.raises(ExecutionError, match=r"round-0000-.*ArithmeticError: no value"):
        ti.surface(Fragile(), PLANE, AXES, refine=REFINE)
    data = ti.surface(Fragile(), PLANE, AXES, refine=REFINE, on_error="record")
    failed = data["point_status"].values == 4
    at = np.stack([data["point_x0"], data["point_x1"]], 1)[failed]
    assert len(at) and (at[:, 0] == 0).all() and (at[:, 1] > 0.9).all()
    assert np.isnan(data["point_loss"].values[failed]).all()
    assert int(data["status"].sel(x0=0.0, x1=1.0)) == 4


def test_heights_join_smoothly_across_zero():
    class Signed(Landscape):
        def loss(self, points):
            return points[..., 0] * 3

    at = torch.zeros(1, dtype=torch.float64)
    line = ti.surface(
        Signed(1), torch.ones(1, 1).double(), [AXES[0]], at, refine=ti.Refine(60)
    )
    assert line["loss"].dims == ("x0",)
    np.testing.assert_allclose(line["loss"], 3 * line["x0"], atol=5e-3)
    heights = to_heights(line["point_loss"].values)
    np.testing.assert_allclose(from_heights(heights), line["point_loss"], rtol=1e-14)


def test_bad_input_is_refused():
    land = Disc()
    with pytest.raises(InputError, match=r"refine must be ti.Refine\(max_points"):
        unwrap(ti.surface)(land, PLANE, AXES, refine=500)
    with pytest.raises(InputError, match="81 points is more than max_points=80"):
        ti.surface(land, PLANE, AXES, refine=ti.Refine(80))
    with pytest.raises(InputError, match=r"axes\[1\] has 2"):
        ti.surface(land, PLANE, [AXES[0], [0.0, 1.0]], refine=REFINE)
    with pytest.raises(InputError, match="'interpolated' is the name of another"):
        ti.surface({"interpolated": land}, PLANE, AXES)
