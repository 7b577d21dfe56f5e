"""Lines and barriers of a double well, known in closed form."""

import numpy as np
import pytest
import torch

from thalweg import instruments as ti
from thalweg.errors import InputError
from thalweg.landscapes import Landscape


class DoubleWell(Landscape):
    """(x^2 - 1)^2 + tilt x along the first coordinate, NaN where asked."""

    def __init__(self, tilt=0.0, hole=None):
        super().__init__(2)
        self.tilt, self.hole = tilt, hole

    def loss(self, points):
        x = points[..., 0]
        value = (x**2 - 1) ** 2 + self.tilt * x
        if self.hole is None:
            return value
        return torch.where((x - self.hole).abs() < 0.05, float("nan"), value)


A, B = torch.tensor([[-1.0, 0.0], [1.0, 2.0]], dtype=torch.float64)


def test_a_line_between_two_points():
    data = ti.line(DoubleWell(), A, B, points=5)
    assert data["loss"].dims == ("t",)
    np.testing.assert_array_equal(data["t"], [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(data["loss"], [0, 0.5625, 1, 0.5625, 0], atol=1e-14)
    length = float((B - A).norm())
    np.testing.assert_allclose(data["displacement"], length * data["t"])
    with pytest.raises(InputError, match="points"):
        ti.line(DoubleWell(), A, B, points=1)


def test_a_symmetric_barrier_off_the_grid():
    # 8 samples miss t = 1/2; the refinement finds it.
    result = ti.barrier(DoubleWell(), A, B, points=8)
    for value in (result.value, result.max_end, result.mean_end, result.peak):
        assert value == pytest.approx(1.0, abs=1e-7)
    assert result.t == pytest.approx(0.5, abs=1e-4)
    assert result.ends == (0.0, 0.0)
    assert result.evaluations < 8 + 2 * 25


def test_the_three_definitions_differ_with_unequal_ends():
    tilt = 0.3
    result = ti.barrier(DoubleWell(tilt), A, B, points=9)
    # Less the chord the tilt is gone: the maximum is 1 at x = 0.
    assert result.value == pytest.approx(1.0, abs=1e-7)
    assert result.t == pytest.approx(0.5, abs=1e-4)
    roots = np.roots([4, 0, -4, tilt])  # L'(x) = 0, the middle one is the top
    x = np.sort(roots.real)[1]
    peak = (x**2 - 1) ** 2 + tilt * x
    assert result.peak == pytest.approx(peak, abs=1e-7)
    assert result.t_peak == pytest.approx((x + 1) / 2, abs=1e-4)
    assert result.max_end == pytest.approx(peak - tilt, abs=1e-7)
    assert result.mean_end == pytest.approx(peak, abs=1e-7)


def test_no_barrier_inside_one_well():
    result = ti.barrier(DoubleWell(), B, 1.2 * B)
    assert result.value == 0.0 and result.max_end == 0.0


def test_a_hole_on_the_line_makes_the_barrier_nan():
    result = ti.barrier(DoubleWell(hole=0.0), A, B, points=25)
    assert np.isnan([result.value, result.max_end, result.mean_end]).all()
    assert result.t == 0.5
    assert result.evaluations == 25 and int((result.line["status"] == 1).sum()) == 1
