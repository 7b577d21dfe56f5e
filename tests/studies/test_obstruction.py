"""The study of obstruction: claims, files, resume."""

import json

import numpy as np
import pytest
import xarray

from thalweg.solvable import relu_topology as rt
from thalweg.studies import list_studies, run_study
from thalweg.studies.obstruction.measurements import circle, draw_starts


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "out"
    return folder, run_study("obstruction", size="quick", store=folder)


def test_no_claim_is_contradicted(quick):
    _, study = quick
    assert [c for c in study.claims if c.verdict == "contradicted"] == []
    supported = [c for c in study.claims if c.verdict == "supported"]
    assert len(supported) >= len(study.claims) - 2


def test_its_files_hold_floors_widths_and_betti_numbers(quick):
    folder, study = quick
    assert "obstruction" in [info.name for info in list_studies()]
    report = (folder / "report.html").read_text()
    for text in ("Betti numbers", "Weight decay does not remove", "Random starts"):
        assert text in report
    floors = xarray.open_dataset(folder / "floors.nc", engine="h5netcdf")["floor"]
    x, y = (side.numpy() for side in circle())
    assert floors.sel(bound="nnls").item() == rt.loss_floor(x, y, 1).value
    widths = xarray.open_dataset(folder / "widths.nc", engine="h5netcdf")
    assert (widths["successes"].sel(free=0) == 0).all()
    record = json.loads((folder / "claims.json").read_text())
    assert len(record["claims"]) == len(study.claims)


def test_resuming_gives_the_same_numbers(quick):
    folder, study = quick
    again = run_study("obstruction", size="quick", store=folder, resume=True)
    assert again.records() == study.records()


def test_starts_have_the_classes_they_are_asked_for():
    w1, w2 = draw_starts(50, (1, -1, 1), (True, True, False), seed=1, d=4)
    c = w1.square().sum(-1) - w2.square()
    np.testing.assert_allclose(c, np.tile([-0.3, -0.3, 0.3], (50, 1)))
    assert (w2.sign().numpy() == [1, -1, 1]).all() and w1.shape == (50, 3, 4)
