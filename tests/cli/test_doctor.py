"""`thalweg doctor`: what it finds and says."""

import json
import subprocess
import tomllib
import types
from pathlib import Path

import pytest

from thalweg.cli import doctor, run
from thalweg.studies import Claim, Study


@pytest.fixture
def quick(monkeypatch):
    def set_verdict(verdict):
        study = Study((Claim("it is so", 1e-12, None, verdict),))
        monkeypatch.setattr("thalweg.studies.run_study", lambda name, size: study)

    set_verdict("supported")
    return set_verdict


def test_findings(quick, capsys):
    assert run(["doctor"]) == 0
    out = capsys.readouterr().out
    for text in ("torch threads", "devices", "cpu", "merging", "all 1 checks agree"):
        assert text in out
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["torch"] and found["self_test"][0]["measured"] == 1e-12
    quick("contradicted")
    assert run(["doctor"]) == 1
    assert "WRONG it is so" in capsys.readouterr().out


def test_a_broken_torchvision_is_said_plainly(monkeypatch):
    versions = {"torchvision": None}
    monkeypatch.setattr(doctor, "_version", versions.get)
    assert "not installed" in doctor._torchvision()
    versions["torchvision"] = "0.1"
    result = types.SimpleNamespace(
        returncode=1,
        stderr="...\nRuntimeError: operator torchvision::nms does not exist",
    )
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: result)
    text = doctor._torchvision()
    assert text.startswith("BROKEN: 0.1 does not import")
    assert "nms does not exist" in text and "pip uninstall torchvision" in text
    result.returncode = 0
    assert doctor._torchvision() == "0.1, works"


def test_the_extras_are_those_of_the_project():
    file = Path(__file__).parents[2] / "pyproject.toml"
    declared = tomllib.loads(file.read_text())["project"]["optional-dependencies"]
    for extra in declared.keys() - {"all", "test"}:
        names = [line.partition(">=")[0].partition("[")[0] for line in declared[extra]]
        assert list(doctor._EXTRAS[extra]) == names
