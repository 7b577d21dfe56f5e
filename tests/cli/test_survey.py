"""`thalweg survey` and `thalweg report` as somebody types them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import xarray as xr
from safetensors.torch import save_file

from thalweg.cli import run
from thalweg.errors import TargetError

NET = """
import torch
from torch import nn
from torch.nn import functional as F

generator = torch.Generator().manual_seed(0)
x = torch.randn(60, 4, generator=generator)
y = torch.randint(0, 3, (60,), generator=generator)

def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))

class Slow(nn.Sequential):
    def forward(self, x):
        import time
        time.sleep(0.002)
        return super().forward(x)

def triple():
    return net(), F.cross_entropy, (x, y)

def slow():
    torch.manual_seed(0)
    return Slow(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), F.cross_entropy, (x, y)

def needs(argument):
    return triple()

classifier = net(), x, y
dropping = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)), F.cross_entropy, (x, y)
number = 7
labels = net(), F.cross_entropy, (x, y + 1)
vector = net(), lambda o, t: F.cross_entropy(o, t, reduction="none"), (x, y)
plain = net(), lambda o, t: float(F.cross_entropy(o, t)), (x, y)
empty = net(), F.cross_entropy, (x[:0], y[:0])
oneshot = net(), F.cross_entropy, ((x[i : i + 1], y[i : i + 1]) for i in range(3))
nowhere = net(), lambda o, t: F.cross_entropy(o, t) * float("nan"), (x, y)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder: a file that names networks, and checkpoints of them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NET)
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    for seed in range(3):
        torch.manual_seed(seed)
        layers = torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)
        state = torch.nn.Sequential(*layers).state_dict()
        save_file(state, tmp_path / f"m{seed}.safetensors")
    wrong = dict(state)
    wrong["3.weight"] = wrong.pop("0.bias")
    torch.save(wrong, tmp_path / "wrong.pt")
    whole = (tmp_path / "m0.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    return tmp_path


QUICK = ["--budget", "4s", "--only", "point,trace", "--progress", "none"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nets"], 'must be "package.module:name"'),
        (["no_such:net"], "looked for in"),
        (["broken.py:net"], "No module named 'no_such_package'"),
        (["gone.py:net"], "there is no file"),
        (["nets.py:missing"], "has no 'missing'"),
        (["nets.py:number"], "names an int"),
        (["nets.py:needs"], "needs arguments"),
        (["nets.py:labels"], "labels out of range"),
        (["nets.py:vector"], "expected a scalar"),
        (["nets.py:plain"], "without a graph"),
        (["nets.py:empty"], "data is empty"),
        (["nets.py:oneshot"], "one-shot iterator"),
        (["nets.py:triple", "--checkpoint", "wrong.pt"], "missing ['0.bias']"),
        (["nets.py:triple", "--checkpoint", "wrong.pt"], "unexpected ['3.weight']"),
        (["nets.py:triple", "--checkpoint", "cut.safetensors"], "truncated"),
        (["nets.py:triple", "--checkpoint", "none.pt"], "no such file"),
        (["nets.py:triple", "--budget", "soon"], "30s, 5m or 1h"),
        (["nets.py:triple", "--memory", "lots"], "minimal, 500MB or 2GB"),
        (["nets.py:triple", "--only", "all"], "is no step"),
        (["nets.py:triple", "--only", "paths"], "needs 2 checkpoints"),
        (["nets.py:triple", "--align"], "align needs 2 checkpoints, got 0"),
        (["nets.py:triple", "--layers", "fc.*"], "no name matches"),
        (["nets.py:triple", "--plan", "gone"], "no plan at"),
        (["nets.py:triple", "--executor", "proces"], "'proces' is not known"),
        (["nets.py:triple", "--address", "auto"], "goes with executor='ray'"),
        (["nets.py:triple", "--config", "gone.toml"], "cannot be read"),
        (["--weight-decay", "0.1"], "needs a TARGET"),
        (["--checkpoint", "m0.safetensors"], "needs a TARGET"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(folder, capsys, arguments, message):
    base = ["survey", "--out", "out", *QUICK] if "--only" not in arguments else None
    code = run([*(base or ["survey", "--out", "out"]), *arguments])
    shown = capsys.readouterr().err.strip()
    assert code == 2
    assert message in shown and "Traceback" not in shown
    lines = [text for text in shown.splitlines() if not text.startswith("warning:")]
    assert len(lines) <= 2, shown
    assert not Path("out").exists()


def test_a_cluster_that_does_not_answer_is_refused_before_anything(folder, capsys):
    pytest.importorskip("ray")
    arguments = ["--executor", "ray", "--address", "127.0.0.1:1"]
    assert run(["survey", "nets.py:slow", "--out", "out", *arguments]) == 2
    shown = capsys.readouterr().err
    assert "no Ray cluster answers at address='127.0.0.1:1'" in shown
    assert not Path("out").exists()


def test_debug_shows_the_traceback(folder):
    with pytest.raises(TargetError):
        run(["survey", "nets.py:number", "--debug"])


def test_a_survey_prints_what_it_found_and_where_the_report_is(folder, capsys):
    assert run(["survey", "nets.py:triple", "--out", "out", *QUICK]) == 0
    shown = capsys.readouterr().out
    assert "report: out/report.html" in shown and "trace" in shown
    assert Path("out/report.html").is_file()
    assert run(["survey", "nets.py:triple", "--out", "out", *QUICK]) == 2
    assert "--resume" in capsys.readouterr().err
    Path("out/report.html").unlink()
    assert run(["report", "out"]) == 0
    assert Path("out/report.html").is_file()
    assert run(["report", "gone"]) == 2


def test_a_step_is_exported_by_the_name_of_the_file(folder, capsys):
    steps = ["--only", "surface,point", "--budget", "4s", "--progress", "none"]
    assert run(["survey", "nets.py:triple", "--out", "out", *steps]) == 0
    capsys.readouterr()
    files = ["surface.vts", "pictures/surface.svg", "point.nc"]
    options = [part for file in files for part in ("--export", file)]
    assert run(["report", "out", *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"exported": files}
    assert all(Path(file).is_file() for file in files)
    for wrong, message in [
        ("layers.nc", "for example surface.vts; finished are: point, surface"),
        ("surface.stl", "path must end in .nc or .zarr"),
        ("point.vts", "no variable over axes x0, x1"),
    ]:
        assert run(["report", "out", "--export", wrong]) == 2
        assert message in capsys.readouterr().err
    for wrong in ("surface.stl", "layers.nc"):  # told before anything is written
        options = ["--export", "new/point.nc", "--export", wrong]
        assert run(["report", "out", *options]) == 2
        assert not Path("new").exists()


def test_several_directories_are_compared(folder, capsys):
    for out, decay in (("a", "0.1"), ("b", "0.1"), ("c", "0.2")):
        options = ["--out", out, "--weight-decay", decay, "--only", "point"]
        assert run(["survey", "nets.py:triple", "--budget", "4s", *options]) == 0
    capsys.readouterr()
    assert run(["report", "a", "b"]) == 0
    assert capsys.readouterr().out == "report: comparison.html\n"
    assert Path("comparison.html").is_file()
    assert run(["report", "a", "c"]) == 2
    refusal = capsys.readouterr().err
    assert "a, c differ in weight_decay: 0.1 / 0.2" in refusal
    options = ["--allow-different", "--json", "--out", "other.html"]
    assert run(["report", "a", "c", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["report"] == "other.html"
    assert found["different"] == {"weight_decay": ["0.1", "0.2"]}
    assert run(["report", "a", "b", "--export", "point.nc"]) == 2
    assert "results of one survey, got 2" in capsys.readouterr().err


def test_json_is_the_summary_and_nothing_else(folder, capsys):
    assert run(["survey", "nets.py:classifier", "--json", "--out", "o", *QUICK]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["figures"]["trace"]["products"] > 0
    # A tuple (model, x, y) is surveyed with cross-entropy, and that is said.
    assert any("cross-entropy" in note for note in summary["notes"])


def test_options_come_from_a_file_and_the_line_wins(folder, capsys):
    Path("options.toml").write_text('only = "point"\nseed = 3\nweight-decay = 0.5\n')
    arguments = ["survey", "nets.py:triple", "--config", "options.toml", "--json"]
    assert run([*arguments, "--seed", "4", "--out", "o"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["seed"] == 4 and summary["landscape"]["weight_decay"] == 0.5
    assert set(summary["cost"]["steps"]) == {"point"}
    Path("options.toml").write_text("colour = 3\n")
    assert run(arguments) == 2
    assert "unknown options: ['colour']" in capsys.readouterr().err


def test_several_checkpoints_draw_barriers(folder, capsys):
    files = [part for i in range(3) for part in ("--checkpoint", f"m{i}.safetensors")]
    steps = ["--only", "paths,plane", "--budget", "5s", "--json", "--out", "o"]
    assert run(["survey", "nets.py:triple", *files, *steps]) == 0
    summary = json.loads(capsys.readouterr().out)
    barriers = summary["figures"]["barriers"]
    lines = [pair for pair in barriers if not pair.endswith("curve")]
    assert lines == ["m0 – m1", "m0 – m2"]


def test_aligned_checkpoints_have_barriers_of_their_own(folder, capsys):
    files = [part for i in range(2) for part in ("--checkpoint", f"m{i}.safetensors")]
    steps = ["--only", "point", "--align", "--budget", "5s", "--json", "--out", "o"]
    assert run(["survey", "nets.py:triple", *files, *steps]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert list(figures["aligned_barriers"]) == ["m0 – m1"]
    assert "m0 – m1" in figures["barriers"]


def test_a_loss_that_is_nowhere_finite_exits_with_three(folder, capsys):
    steps = ["--only", "surface", "--budget", "4s", "--out", "o"]
    assert run(["survey", "nets.py:nowhere", *steps]) == 3


def test_train_mode_is_mentioned(folder, capsys):
    assert run(["survey", "nets.py:dropping", "--json", "--out", "o", *QUICK]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert any("train mode" in note for note in notes)


def command(*arguments: str) -> list[str]:
    code = "import sys; from thalweg.cli import run; sys.exit(run(sys.argv[1:]))"
    return [sys.executable, "-c", code, "survey", *arguments]


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_survey_resumes_to_the_same_bits(folder, sign):
    source = Path(__file__).parents[2] / "src"
    environment = os.environ | {"PYTHONPATH": str(source)}
    steps = ["nets.py:slow", "--only", "surface", "--progress", "none"]
    begin = command(*steps, "--budget", "4s", "--out", "whole")
    subprocess.run(begin, env=environment, check=True, capture_output=True)
    again = command(*steps, "--plan", "whole", "--out", "cut")
    process = subprocess.Popen(
        again, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    chunks = folder / "cut" / "chunks" / "surface" / "items"
    deadline = time.monotonic() + 60
    while not list(chunks.glob("*.npz")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(sign)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == (130 if sign == signal.SIGINT else -sign), shown
    assert not (folder / "cut" / "survey.nc").exists()
    resume = command(*steps, "--out", "cut", "--resume")
    subprocess.run(resume, env=environment, check=True, capture_output=True)
    first, second = (
        xr.open_dataset(folder / name / "survey.nc", group="surface", engine="h5netcdf")
        for name in ("whole", "cut")
    )
    with first, second:
        for dataset in (first, second):
            dataset.attrs.pop("cost")
        assert first.identical(second)
