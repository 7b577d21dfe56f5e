"""The instruments on the exact two-layer ReLU loss against its closed forms."""

import math

import numpy as np
import pytest
import torch

from thalweg import instruments as ti
from thalweg.solvable import ReLUTeacherStudent
from thalweg.solvable.two_layer_relu import student_loss


def orthonormal(k, d=None):
    return ReLUTeacherStudent(torch.eye(k, dtype=torch.float64), k, d=d)


def test_top_eigenpairs_and_trace_at_the_global_minimum():
    k, d = 4, 9
    land = orthonormal(k, d)
    W = torch.eye(k, d, dtype=torch.float64)
    H = land.hessian(land.point(W))
    exact = land.spectrum(W).values
    top = ti.top_eigenpairs(H, 5, block=5)  # (k + 1) / 4 comes d - k = 5 times
    torch.testing.assert_close(top.values, exact[-5:].flip(0), rtol=1e-8, atol=0)
    low = ti.top_eigenpairs(H, 1, which="SA")
    smallest = 0.25 - 1 / (2 * math.pi)
    assert float(low.values[0]) == pytest.approx(smallest, abs=1e-7)
    estimate = ti.trace(H, rtol=0.01)
    assert abs(estimate.value - float(exact.sum())) <= 4 * estimate.stderr + 1e-9


def test_lowest_eigenvalue_tells_the_saddle_from_the_minimum():
    for k, sign in ((5, -1), (6, 1)):
        land = orthonormal(k)
        W = land.symmetric_minimum((k - 1, 1)).W
        H = land.hessian(land.point(W))
        low = ti.top_eigenpairs(H, 1, which="SA")
        exact = land.spectrum(W).smallest
        assert float(low.values[0]) == pytest.approx(exact, abs=1e-7)
        assert sign * exact > 0


def test_a_surface_is_the_closed_form_on_its_grid():
    land = orthonormal(3)
    W = torch.eye(3, dtype=torch.float64)
    directions = ti.random_directions(land, 2, seed=1, at=land.point(W))
    axes = [np.linspace(-1, 1, 5), np.linspace(-0.5, 0.5, 3)]
    grid = ti.surface(land, directions, axes, at=land.point(W), progress="none")
    for i, x in enumerate(axes[0]):
        for j, y in enumerate(axes[1]):
            point = land.point(W) + directions.basis @ torch.tensor([x, y])
            exact = student_loss(land.weights(point), land.V)
            assert float(grid["loss"][i, j]) == pytest.approx(float(exact), abs=1e-14)
    # Filters are neurons: each part of a direction has the norm of its neuron.
    norms = land.weights(directions.basis[:, 0]).norm(dim=1)
    torch.testing.assert_close(norms, W.norm(dim=1))


def test_the_barrier_between_two_zeros_is_the_exact_one():
    """Halfway between a student and its swap lie two equal neurons."""
    land = orthonormal(2)
    W = torch.eye(2, dtype=torch.float64)
    found = ti.barrier(land, land.point(W), land.point(W.flip(0)), points=25)
    middle = torch.full((2, 2), 0.5, dtype=torch.float64)
    exact = float(student_loss(middle, land.V))
    assert found.value == pytest.approx(exact, abs=1e-12)


def test_the_density_in_high_dimension_is_that_of_S_with_outliers():
    """At W = V of width 3, S has eigenvalues ¼, ¼ and 1, each d - 3 times."""
    k, d = 3, 60
    land = orthonormal(k, d)
    W = torch.eye(k, d, dtype=torch.float64)
    exact = land.spectrum(W)
    H = land.hessian(land.point(W))
    spectrum = ti.spectral_density(H, probes=100, steps=30)
    for order in (1, 2, 3):
        found = ti.spectral_moment(spectrum, order)
        moment = float((exact.values**order).mean())
        assert abs(found.value - moment) <= 4 * found.stderr + 1e-12
    assert float(spectrum["nodes"].max()) == pytest.approx(exact.largest, abs=1e-10)
    weights = (
        spectrum["weights"].values / spectrum["weights"].sum("step").values[:, None]
    )
    for value, copies in ((0.25, 2), (1.0, 1)):
        near = np.abs(spectrum["nodes"].values - value) < 1e-6
        mass = np.where(near, weights, 0.0).sum(1)
        share = copies * (d - k) / (k * d)
        error = mass.std(ddof=1) / np.sqrt(len(mass))
        assert abs(mass.mean() - share) <= 4 * error


def test_a_slice_is_the_closed_form_with_its_derivatives():
    land = orthonormal(3, 4)
    W = torch.eye(3, 4, dtype=torch.float64) + 0.1
    directions = ti.random_directions(land, 2, seed=2, at=land.point(W))
    slice_ = land.restrict(land.point(W), directions.basis)
    x = torch.tensor([0.3, -0.2], dtype=torch.float64)
    point = land.point(W) + directions.basis @ x
    torch.testing.assert_close(slice_.loss(x), land.loss(point))
    B = directions.basis
    torch.testing.assert_close(slice_.gradient(x), B.T @ land.gradient(point))
    inner = B.T @ land.hessian(point).dense() @ B
    torch.testing.assert_close(slice_.hessian(x).dense(), inner)
