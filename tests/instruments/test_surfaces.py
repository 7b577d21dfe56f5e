"""Surfaces against closed forms, and against the defects that peers had."""

import json

import numpy as np
import pytest
import torch

from instruments.same_datasets import same
from thalweg import instruments as ti
from thalweg.errors import ExecutionError, InputError, StoreError, StructureError
from thalweg.execution import ProcessExecutor
from thalweg.landscapes import Landscape, NetworkLandscape, Quadratic

AXES = [np.linspace(-1, 1, 5), np.array([2.0, 0.5, -3.0])]


def problem(dim=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    A, D = (torch.randn(dim, dim, generator=generator).double() for _ in range(2))
    center = torch.randn(dim, generator=generator).double()
    at = torch.randn(dim, generator=generator).double()
    return Quadratic(A + A.T, center, offset=0.25), D[:, :2].clone(), at


def expected(land, D, at):
    A, shift = land.matrix.numpy(), (at - land.center).numpy()
    values = np.empty((5, 3))
    for i, a in enumerate(AXES[0]):
        for j, b in enumerate(AXES[1]):
            x = shift + a * D[:, 0].numpy() + b * D[:, 1].numpy()
            values[i, j] = x @ A @ x / 2 + 0.25
    return values


class Pointwise(Landscape):
    """A quadratic that is evaluated point by point, with a metric, as a network is."""

    def __init__(self, inner, on_error="raise"):
        super().__init__(inner.dim, origin=inner.origin)
        self.inner, self.on_error, self.seen = inner, on_error, []

    def loss(self, points):
        return self.inner.loss(points)

    def evaluate_each(self, points):
        return [self.evaluate(point) for point in points]

    def evaluate(self, point):
        self.seen.append(point.clone())
        loss = float(self.inner.loss(point))
        return {"loss": loss, "norm": float(point.norm())}


@pytest.mark.parametrize("wrap", [lambda land: land, Pointwise])
def test_a_quadratic_surface_is_the_closed_form(wrap):
    land, D, at = problem()
    data = ti.surface(wrap(land), D, AXES, at)
    assert data["loss"].dims == ("x0", "x1")
    values, exact = data["loss"].values, expected(land, D, at)
    np.testing.assert_allclose(values, exact, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(data["x1"], AXES[1])
    assert (data["status"].values == 0).all() and data["status"].dtype == np.int8
    # A peer's 2-D surface came out constant; another shifted every second row.
    assert np.ptp(values, axis=0).min() > 0.1 and np.ptp(values, axis=1).min() > 0.1
    second = np.diff(values, n=3, axis=0)  # cubic differences of a quadratic vanish
    np.testing.assert_allclose(second, 0, atol=1e-11)


def test_displacement_is_the_distance_moved():
    land, D, at = problem()
    data = ti.surface(land, D, AXES, at)
    for i in range(5):
        for j in range(3):
            step = AXES[0][i] * D[:, 0] + AXES[1][j] * D[:, 1]
            assert float(data["displacement"][i, j]) == pytest.approx(
                float(step.norm())
            )


def test_every_point_is_built_from_the_center_anew():
    land, D, at = problem()
    land = Pointwise(land)
    ti.surface(land, D, [np.array([0.1, 0.2, 0.3]), np.array([0.0])], at)
    for point, a in zip(land.seen, [0.1, 0.2, 0.3], strict=True):
        torch.testing.assert_close(point, at + a * D[:, 0], rtol=0, atol=4e-16)
    ti.surface(land, D, [np.array([0.0]), np.array([0.0])], at)
    assert torch.equal(land.seen[-1], at)


def test_metrics_come_from_the_same_pass():
    land, D, at = problem()
    land = Pointwise(land)
    data = ti.surface(land, D, AXES, at)
    assert len(land.seen) == 15 and list(data.data_vars) == ["loss", "norm", "status"]
    x = at + AXES[0][1] * D[:, 0] + AXES[1][2] * D[:, 1]
    assert float(data["norm"][1, 2]) == pytest.approx(float(x.norm()), rel=1e-14)


class Clipped(Landscape):
    """Not finite in places, and raising in one."""

    def loss(self, points):
        x = points[..., 0]
        if bool((x == 3).any()):
            raise ArithmeticError("no value here")
        x = torch.where(x == 0, float("nan"), x)
        x = torch.where(x == 1, float("inf"), x)
        return torch.where(x == 2, float("-inf"), x)


def test_values_that_are_not_finite_are_kept_and_flagged():
    land, D = Clipped(1), torch.ones(1, 1, dtype=torch.float64)
    at = torch.zeros(1, dtype=torch.float64)
    data = ti.surface(land, D, [[-1, 0, 1, 2, 4]], at)
    # A peer replaced NaN by a mean.
    np.testing.assert_array_equal(data["loss"], [-1, np.nan, np.inf, -np.inf, 4])
    np.testing.assert_array_equal(data["status"], [0, 1, 2, 3, 0])
    codes = json.loads(data.attrs["status_codes"])
    assert codes == {
        "ok": 0, "nan": 1, "+inf": 2, "-inf": 3, "exception": 4, "pending": 5
    }  # fmt: skip


def test_an_exception_is_raised_or_recorded_at_its_point_alone():
    land, D = Clipped(1), torch.ones(1, 1, dtype=torch.float64)
    at = torch.zeros(1, dtype=torch.float64)
    axis = [np.linspace(-1, 63, 65)]
    with pytest.raises(ExecutionError, match="chunk-00000.*ArithmeticError: no value"):
        ti.surface(land, D, axis, at)
    data = ti.surface(land, D, axis, at, on_error="record")
    assert (data["status"] == 4).sum() == 1
    assert int(data["status"].sel(x0=3.0)) == 4 and np.isnan(data["loss"].sel(x0=3.0))
    assert float(data["loss"].sel(x0=4.0)) == 4.0


def test_several_landscapes_on_one_plane():
    land, D, at = problem()
    data = ti.surface({"train": land, "twice": 2 * land}, D, AXES, at)
    assert list(data.data_vars) == ["train", "twice", "status"]
    np.testing.assert_allclose(data["twice"], 2 * data["train"])
    both = {"a": Pointwise(land), "b": Pointwise(land)}
    names = list(ti.surface(both, D, AXES, at).data_vars)
    assert names == ["a", "b", "a_norm", "b_norm", "status"]
    with pytest.raises(StructureError, match="one dimension"):
        ti.surface({"a": land, "b": Quadratic(torch.eye(2))}, D, AXES, at)
    with pytest.raises(InputError, match="'b' stands at another point"):
        ti.surface({"a": land, "b": land.at(at)}, D, AXES)
    with pytest.raises(InputError, match="empty"):
        ti.surface({}, D, AXES)
    with pytest.raises(InputError, match="'status'"):
        ti.surface({"status": land}, D, AXES)


class Embedding:
    """A basis known by its products only."""

    def __init__(self, dense):
        self.dense, self.shape = dense, tuple(dense.shape)

    @property
    def T(self):
        return Embedding(self.dense.T)

    def __matmul__(self, c):
        return self.dense @ c


def test_a_linear_map_serves_as_directions():
    land, D, at = problem()
    data = ti.surface(land, Embedding(D), AXES, at)
    np.testing.assert_allclose(data["loss"], expected(land, D, at), rtol=1e-12)
    dense = ti.surface(land, D, AXES, at)
    np.testing.assert_allclose(data["displacement"], dense["displacement"], rtol=1e-12)


def test_scattered_points_equal_those_of_the_grid():
    land, D, at = problem()
    grid = ti.surface(land, D, AXES, at)
    mesh = np.stack(np.meshgrid(*AXES, indexing="ij"), -1).reshape(-1, 2)
    data = ti.surface_at_points(land, D, mesh[::-1].copy(), at)
    assert data["loss"].dims == ("point",)
    np.testing.assert_allclose(data["loss"][::-1], grid["loss"].values.ravel(), 1e-13)
    np.testing.assert_array_equal(data["x0"], mesh[::-1, 0])
    with pytest.raises(InputError, match=r"shape \(M, 2\)"):
        ti.surface_at_points(land, D, mesh[:, :1], at)
    with pytest.raises(InputError, match="finite"):
        ti.surface_at_points(land, D, mesh * np.nan, at)


def test_gradient_and_curvature_on_the_plane():
    land, D, at = problem()
    A = land.matrix
    slopes = ti.gradient_on_plane(land, D, AXES, at)
    assert slopes["gradient"].dims == ("x0", "x1", "direction")
    x = at - land.center + AXES[0][3] * D[:, 0] + AXES[1][1] * D[:, 1]
    np.testing.assert_allclose(slopes["gradient"][3, 1], D.T @ A @ x, rtol=1e-12)
    np.testing.assert_allclose(slopes["loss"], expected(land, D, at), rtol=1e-12)
    bends = ti.curvature_on_plane(land, D, AXES, at)["curvature"]
    assert bends.dims == ("x0", "x1", "direction", "other_direction")
    exact = np.broadcast_to(D.T @ A @ D, (5, 3, 2, 2))
    np.testing.assert_allclose(bends, exact, rtol=1e-12)


def test_volumes_and_the_defaults_of_the_center():
    land, _, at = problem()
    D = torch.eye(7).double()[:, :3]
    data = ti.surface(land.at(at), D, [[0.0, 1.0], [0.0], [0.0, 2.0, 3.0]])
    assert data["loss"].shape == (2, 1, 3) and data["loss"].dims == ("x0", "x1", "x2")
    assert float(data["loss"][0, 0, 0]) == float(land.loss(at))
    tied = ti.Directions(D, origin=at + 1)
    data = ti.surface(land, tied, [[0.0], [0.0], [0.0]])
    assert data["loss"].item() == float(land.loss(at + 1))


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ([[0.0, 1.0]], "axes must be 2, one a direction, got 1"),
        ([[0.0, 1.0], []], r"axes\[1\] must be a non-empty 1-D array"),
        ([np.zeros((1, 1)), [0.0]], r"axes\[0\] must be a non-empty 1-D array"),
        ([[0.0, np.nan], [0.0]], r"axes\[0\] must be finite"),
        ([[0.0, 2.0, 1.0], [0.0]], r"axes\[0\] must be strictly increasing"),
        ([[0.0], [1.0, 1.0]], r"axes\[1\] must be strictly increasing"),
    ],
)
def test_bad_axes(axes, message):
    land, D, at = problem()
    with pytest.raises(InputError, match=message):
        ti.surface(land, D, axes, at)


def test_bad_directions():
    land, D, at = problem()
    with pytest.raises(StructureError, match="dimension 6"):
        ti.surface(land, D[:6], AXES, at)
    with pytest.raises(InputError, match="finite"):
        ti.surface(land, D * np.nan, AXES, at)


def test_a_store_resumes_to_the_same_bits_and_refuses_another_surface(tmp_path):
    land, D, at = problem()
    whole = ti.surface(land, D, AXES, at)
    same(ti.surface(land, D, AXES, at, store=tmp_path / "s"), whole)
    lost = sorted((tmp_path / "s" / "items").iterdir())[::2]
    for file in lost:
        file.unlink()
    again = ti.surface(land, D, AXES, at, store=tmp_path / "s")
    same(again, whole)
    assert 0 < json.loads(again.attrs["cost"])["points"] < 15
    for other in (
        lambda: ti.surface(land, D, AXES, at + 1, store=tmp_path / "s"),
        lambda: ti.surface(land, D + 1, AXES, at, store=tmp_path / "s"),
        lambda: ti.surface(2 * land, D, AXES, at, store=tmp_path / "s"),
        lambda: ti.surface(land, D, [AXES[0] + 1, AXES[1]], at, store=tmp_path / "s"),
    ):
        with pytest.raises(StoreError, match="belongs to another plan"):
            other()


def test_processes_give_the_same_bits():
    land, D, at = problem()
    axes = [np.linspace(-1, 1, 9), np.linspace(-1, 1, 8)]
    with ProcessExecutor(2) as executor:
        for one in (land, Pointwise(land)):
            whole = ti.surface(one, D, axes, at)
            same(ti.surface(one, D, axes, at, executor=executor), whole)


def test_directions_and_float32():
    land, D, at = problem()
    narrow = Quadratic(land.matrix.float(), land.center.float(), offset=0.25)
    data = ti.surface(narrow, D, AXES, at.float())
    np.testing.assert_allclose(data["loss"], expected(land, D, at), rtol=1e-4)
    assert data["loss"].dtype == np.float64
    random = ti.random_directions(land, 2, seed=3, at=at)
    data = ti.surface(land, random, AXES, at)
    assert data.attrs["seed"] == "3"
    assert json.loads(data.attrs["directions"])["kind"] == "random"
    assert all(type(value) is str for value in data.attrs.values())


def test_metrics_of_a_failed_point_are_nan_and_those_of_others_are_kept():
    class Fragile(torch.nn.Linear):
        def forward(self, x):
            if float(self.weight.detach().abs().max()) > 1:
                raise ArithmeticError("too large")
            return super().forward(x)

    x, y = torch.eye(3).double(), torch.tensor([0, 1, 1])
    model = Fragile(3, 2, bias=False).double()
    model.weight.data.fill_(0.1)
    land = NetworkLandscape(
        model, torch.nn.functional.cross_entropy, (x, y), on_error="record"
    )
    ones = torch.ones(land.dim, 1, dtype=torch.float64)
    data = ti.surface(land, ones, [[-2.0, 0.0, 0.5, 2.0]])
    np.testing.assert_array_equal(data["status"], [4, 0, 0, 4])
    assert np.isnan(data["accuracy"].values).tolist() == [True, False, False, True]
