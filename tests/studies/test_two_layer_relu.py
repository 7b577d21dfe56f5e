"""The study of two-layer ReLU minima: families, students more, options."""

import numpy as np
import pytest
import xarray

from thalweg.errors import InputError
from thalweg.studies import run_study
from thalweg.studies.two_layer_relu.measurements import make_teacher

this_study = pytest.mark.parametrize("quick", ["two-layer-relu"], indirect=True)


@this_study
def test_its_files_hold_the_families(quick):
    folder, _ = quick
    report = (folder / "report.html").read_text()
    assert "One student more" in report and "Ways down" in report
    stored = xarray.open_dataset(folder / "families.nc", engine="h5netcdf")
    assert stored.attrs["format"] == "1"
    assert int(stored["count"].sum()) == 300
    assert stored["level"].values[0] == "global"
    assert "[7, 1]" in stored["isotropy"].values


@this_study
def test_one_student_more_leads_down_from_every_spurious_minimum(quick):
    _, study = quick
    (claim,) = (c for c in study.claims if "One student more turns" in c.claim)
    assert (claim.measured, claim.verdict) == (0, "supported")


def test_teachers():
    for kind in ("orthonormal", "correlated", "gaussian"):
        V = make_teacher(kind, 4)
        np.testing.assert_allclose(V.norm(dim=1), 1)
    with pytest.raises(InputError, match="teacher must be one of"):
        run_study("two-layer-relu", size="quick", options={"teacher": "random"})
    for option in ("M", "K", "starts"):
        with pytest.raises(InputError, match=f"{option} must be at least 1, got 0"):
            run_study("two-layer-relu", size="quick", options={option: 0})
