"""Every study: its claims, its files, resume."""

import json

import pytest

from thalweg.studies import list_studies, run_study

NAMES = [info.name for info in list_studies()]

every_study = pytest.mark.parametrize("quick", NAMES, indirect=True)


def test_names():
    assert NAMES == ["deep-linear", "instruments", "obstruction", "two-layer-relu"]


@every_study
def test_no_claim_is_contradicted(quick):
    _, study = quick
    assert [c for c in study.claims if c.verdict == "contradicted"] == []
    supported = [c for c in study.claims if c.verdict == "supported"]
    assert len(supported) >= len(study.claims) - 2


@every_study
def test_its_files(quick):
    folder, study = quick
    report = (folder / "report.html").read_text()
    assert all(section.title in report for section in study.sections)
    record = json.loads((folder / "claims.json").read_text())
    assert record["claims"] == study.records()
    assert all((folder / f"{name}.nc").is_file() for name in study.datasets)


@every_study
def test_resuming_gives_the_same_numbers(quick):
    folder, study = quick
    name = json.loads((folder / "claims.json").read_text())["study"]
    again = run_study(name, size="quick", store=folder, resume=True)
    assert again.records() == study.records()
