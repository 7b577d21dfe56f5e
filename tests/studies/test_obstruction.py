"""The study of obstruction: its datasets and starts."""

import numpy as np
import pytest
import xarray

from thalweg.solvable import relu_topology as rt
from thalweg.studies.obstruction.measurements import circle, draw_starts


@pytest.mark.parametrize("quick", ["obstruction"], indirect=True)
def test_its_files_hold_floors_widths_and_betti_numbers(quick):
    folder, _ = quick
    report = (folder / "report.html").read_text()
    for text in ("Betti numbers", "Weight decay does not remove", "Random starts"):
        assert text in report
    floors = xarray.open_dataset(folder / "floors.nc", engine="h5netcdf")["floor"]
    x, y = (side.numpy() for side in circle())
    assert floors.sel(bound="nnls").item() == rt.loss_floor(x, y, 1).value
    widths = xarray.open_dataset(folder / "widths.nc", engine="h5netcdf")
    assert (widths["successes"].sel(free=0) == 0).all()


def test_starts_have_the_classes_they_are_asked_for():
    w1, w2 = draw_starts(50, (1, -1, 1), (True, True, False), seed=1, d=4)
    c = w1.square().sum(-1) - w2.square()
    np.testing.assert_allclose(c, np.tile([-0.3, -0.3, 0.3], (50, 1)))
    assert (w2.sign().numpy() == [1, -1, 1]).all() and w1.shape == (50, 3, 4)
