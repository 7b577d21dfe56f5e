"""A study as a module: found without import, run, resumed."""

import json
import sys
import types

import numpy as np
import pytest
import xarray

from thalweg.errors import InputError, StoreError
from thalweg.reporting import Section, Text
from thalweg.studies import Claim, Study, registry, run_study, running, study_options

SOURCE = '''"""A study for the tests.

More.
"""
raise RuntimeError("a list of studies must not import them")
NAME = "toy"
PAPER = "On toys; A. Author; 2020"
'''


def make_toy(calls):
    def run(
        size, seeds, store, *, M: int = 2, rate: float | None = None, fast: bool = False
    ):
        if M < 0:
            raise InputError("M must not be negative")
        values = []
        for seed in seeds:
            piece = store.once(
                f"seed-{seed}",
                lambda seed=seed: calls.append(seed) or {"value": M * seed},
            )
            values.append(float(piece["value"]))
        calls.append((size, M, rate, fast))
        data = xarray.Dataset({"value": ("seed", np.asarray(values))})
        claim = Claim("the mean is one", float(np.mean(values)), None, "supported")
        return Study((claim,), {"values": data}, (Section("More", (Text("x"),)),))

    toy = types.ModuleType("toy_study")
    toy.run = run
    return toy


@pytest.fixture
def calls(monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "toy_study", make_toy(calls))
    info = registry.StudyInfo("toy", "On toys", "A study.", "toy_study")
    monkeypatch.setattr(running, "find_study", lambda name: info)
    return calls


def test_studies_are_listed_without_importing_them(tmp_path):
    file = tmp_path / "toy.py"
    file.write_text(SOURCE)
    info = registry._read(file, "somewhere.toy")
    assert (info.name, info.summary) == ("toy", "A study for the tests.")
    assert info.paper == "On toys; A. Author; 2020"
    file.write_text("NAME = 'x'")
    assert registry._read(file, "somewhere.toy") is None
    with pytest.raises(InputError, match="no study 'none'; there are: "):
        run_study("none")


def test_options_are_read_by_their_annotation(calls):
    run_study("toy", size="quick", options={"M": "3", "rate": "0.5", "fast": "true"})
    assert calls == [0, ("quick", 3, 0.5, True)]
    run_study("toy", seeds=[7], options={"rate": "none"})
    assert calls[2:] == [7, ("default", 2, None, False)]
    assert study_options("toy")["rate"] == "float or none = None"
    with pytest.raises(InputError, match="option M must be int, got '1.5'"):
        run_study("toy", options={"M": "1.5"})
    with pytest.raises(InputError, match=r"no option 'K'; it accepts: M \(int\), rate"):
        run_study("toy", options={"K": 1})


def test_files_and_resume(calls, tmp_path):
    folder = tmp_path / "toy"
    study = run_study("toy", seeds=3, store=folder)
    record = json.loads((folder / "claims.json").read_text())
    assert record["claims"] == [
        {
            "claim": "the mean is one",
            "measured": 2.0,
            "stderr": None,
            "verdict": "supported",
        }
    ]
    assert record["seeds"] == [0, 1, 2] and record["options"]["M"] == 2
    with xarray.open_dataset(folder / "values.nc", engine="h5netcdf") as stored:
        assert stored.identical(study.datasets["values"])
    page = (folder / "report.html").read_text()
    assert "the mean is one" in page and "More" in page
    assert list(folder.glob("*.tmp")) == []

    (folder / "items" / "seed-1.npz").unlink()
    calls.clear()
    again = run_study("toy", seeds=3, store=folder, resume=True)
    assert calls == [1, ("default", 2, None, False)]
    assert again.claims == study.claims
    with pytest.raises(StoreError, match="holds something else"):
        run_study("toy", seeds=3, store=folder)
    with pytest.raises(StoreError, match="another plan; it differs in options.M"):
        run_study("toy", seeds=3, store=folder, resume=True, options={"M": 5})


def test_bad_settings_are_refused(calls):
    with pytest.raises(InputError, match="seeds must be a positive number"):
        run_study("toy", seeds=0)
    with pytest.raises(InputError, match="different seeds, got"):
        run_study("toy", seeds=[1, 1])
    with pytest.raises(InputError, match="resume needs the folder"):
        run_study("toy", resume=True)
    assert calls == []


def test_a_refused_option_leaves_the_folder_free(calls, tmp_path):
    with pytest.raises(InputError, match="must not be negative"):
        run_study("toy", store=tmp_path, options={"M": -1})
    run_study("toy", store=tmp_path, options={"M": 1})
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StoreError, match="another plan"):
        run_study("toy", store=tmp_path, resume=True, options={"M": -1})
    assert sorted(tmp_path.iterdir()) == before
