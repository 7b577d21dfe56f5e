"""The study of deep linear networks: claims, options, files, resume."""

import json

import numpy as np
import pytest
import xarray

from thalweg.errors import InputError
from thalweg.studies import list_studies, run_study


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "out"
    return folder, run_study("deep-linear", size="quick", store=folder)


def test_every_claim_is_supported(quick):
    _, study = quick
    assert [c for c in study.claims if c.verdict != "supported"] == []
    assert len(study.claims) == 17


def test_its_files(quick):
    folder, study = quick
    assert "deep-linear" in [info.name for info in list_studies()]
    report = (folder / "report.html").read_text()
    for title in ("Modes are learned one by one", "Noise collapse", "saddle to saddle"):
        assert title in report
    record = json.loads((folder / "claims.json").read_text())
    assert len(record["claims"]) == len(study.claims)
    noise = xarray.open_dataset(folder / "noise.nc", engine="h5netcdf")
    np.testing.assert_allclose(
        noise["peak"].sel(level=0.0), [1 / 2, 4 / 7, 3 / 5], rtol=1e-12
    )
    assert np.isnan(noise["peak"].sel(level=1.5)).all()
    laws = xarray.open_dataset(folder / "laws.nc", engine="h5netcdf")
    gap = laws["simulated_variance"] / laws["variance"] - 1
    assert float(np.abs(gap).max()) < 0.08


def test_resuming_gives_the_same_numbers(quick):
    folder, study = quick
    again = run_study("deep-linear", size="quick", store=folder, resume=True)
    assert again.records() == study.records()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"L": 1}, "L must be at least 2, got 1: a single layer"),
        ({"B": 0}, "B must be an integer of at least 1, got 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        run_study("deep-linear", size="quick", options=options)
