"""`thalweg study`: the list, the run, the messages."""

import json

import pytest

from thalweg.cli import run
from thalweg.studies import Claim, Study
from thalweg.studies import instruments as module


@pytest.fixture
def toy(monkeypatch):
    calls = []

    def toy_run(size, seeds, store, *, M: int = 2, long_name: float = 0.5):
        calls.append((size, seeds, M, long_name))
        verdict = "supported" if M < 9 else "contradicted"
        return Study((Claim("it is so", 1.25, None, verdict),))

    monkeypatch.setattr(module, "run", toy_run)
    return calls


def test_list(capsys):
    assert run(["study"]) == 0
    assert "instruments\n    The instruments against" in capsys.readouterr().out
    assert run(["study", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0].keys() >= {"name", "paper"}


def test_options_sizes_and_seeds(toy, capsys, tmp_path):
    line = ["study", "instruments", "--M", "3", "--long-name=0.25", "--seeds", "4,7"]
    assert run([*line, "--quick", "--out", str(tmp_path / "x")]) == 0
    assert toy == [("quick", (4, 7), 3, 0.25)]
    out = capsys.readouterr().out
    assert "it is so" in out and "1.25" in out and "report.html" in out
    assert run(["study", "instruments", "--json", "--full", "--M", "9"]) == 1
    assert json.loads(capsys.readouterr().out)["claims"][0]["measured"] == 1.25
    assert toy[1] == ("full", (0, 1, 2, 3, 4), 9, 0.5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["none"], "no study 'none'; there are: "),
        (["instruments", "--quick", "--full"], "exclude each other"),
        (["instruments", "--seeds", "x"], "--seeds must be a number"),
        (["instruments", "--K", "1"], r"no option 'K'; it accepts: M (int)"),
        (["instruments", "--M", "x"], "option M must be int, got 'x'"),
        (["instruments", "--M"], "option --M has no value"),
        (["instruments", "more"], "unexpected argument 'more'; study instruments has"),
        (["instruments", "--resume"], "resume needs the folder"),
    ],
)
def test_bad_lines_exit_2_with_one_line(toy, capsys, line, message):
    assert run(["study", *line]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert toy == []
