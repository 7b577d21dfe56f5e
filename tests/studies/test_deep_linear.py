"""The study of deep linear networks: claims, options, datasets."""

import numpy as np
import pytest
import xarray

from thalweg.errors import InputError
from thalweg.studies import run_study

this_study = pytest.mark.parametrize("quick", ["deep-linear"], indirect=True)


@this_study
def test_every_claim_is_supported(quick):
    _, study = quick
    assert [c for c in study.claims if c.verdict != "supported"] == []
    assert len(study.claims) == 17


@this_study
def test_its_files_hold_peaks_and_laws(quick):
    folder, _ = quick
    report = (folder / "report.html").read_text()
    for title in ("Modes are learned one by one", "Noise collapse", "saddle to saddle"):
        assert title in report
    noise = xarray.open_dataset(folder / "noise.nc", engine="h5netcdf")
    np.testing.assert_allclose(
        noise["peak"].sel(level=0.0), [1 / 2, 4 / 7, 3 / 5], rtol=1e-12
    )
    assert np.isnan(noise["peak"].sel(level=1.5)).all()
    laws = xarray.open_dataset(folder / "laws.nc", engine="h5netcdf")
    gap = laws["simulated_variance"] / laws["variance"] - 1
    assert float(np.abs(gap).max()) < 0.08


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
