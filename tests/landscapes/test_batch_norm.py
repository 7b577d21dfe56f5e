"""Running statistics: found anew, and between checkpoints."""

import pytest
import torch
from torch import nn

from thalweg.errors import DataError, StructureError
from thalweg.landscapes import interpolate_buffers, recalibrate


def test_statistics_are_those_of_the_batches():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)).eval().double()
    model[0].running_mean.normal_()
    before = model[0].running_mean
    batches = [torch.randn(n, 3).double() for n in (7, 5)]
    assert recalibrate(model, batches) == 2
    expected = (batches[0].mean(0) + batches[1].mean(0)) / 2
    torch.testing.assert_close(model[0].running_mean, expected)
    spread = (batches[0].var(0) + batches[1].var(0)) / 2
    torch.testing.assert_close(model[0].running_var, spread)
    assert model[0].running_mean is before
    assert not model.training and model[0].momentum == 0.1
    assert int(model[0].num_batches_tracked) == 2


def test_modes_come_back_after_an_error():
    model = nn.Sequential(nn.BatchNorm1d(3)).train()
    model[0].eval()
    with pytest.raises(RuntimeError):
        recalibrate(model, [torch.randn(4, 2)])
    assert model.training and not model[0].training and model[0].momentum == 0.1
    with pytest.raises(DataError, match="calibration data is empty"):
        recalibrate(model, [])
    assert recalibrate(nn.Linear(2, 2), []) == 0


def test_buffers_move_with_the_coordinates():
    def buffers(i):
        return {
            "mean": torch.tensor([float(i), 0.0]),
            "bn.running_var": torch.tensor([1.0 + i, 2.0]),
            "count": torch.tensor(i),
        }

    sets = [buffers(0), buffers(1), buffers(2)]
    inside, held = interpolate_buffers(sets, torch.tensor([0.2, 0.7]))
    torch.testing.assert_close(inside["mean"], torch.tensor([1.6, 0.0]))
    torch.testing.assert_close(inside["bn.running_var"], torch.tensor([2.6, 2.0]))
    assert int(inside["count"]) == 2 and held == 0
    outside, held = interpolate_buffers(sets, torch.tensor([-3.0, 0.0]))
    torch.testing.assert_close(outside["mean"], torch.tensor([-3.0, 0.0]))
    assert outside["bn.running_var"].tolist() == [1.0, 2.0] and held == 1
    assert int(outside["count"]) == 0
    beyond, held = interpolate_buffers(sets, torch.tensor([0.0, 3.0]))
    assert beyond["bn.running_var"][0] == 7 and held == 0
    with pytest.raises(StructureError, match="2 coordinates need 3 sets"):
        interpolate_buffers(sets[:2], torch.tensor([0.0, 3.0]))
