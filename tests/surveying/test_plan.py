"""Options of a survey, and the plan's way through JSON."""

import dataclasses

import pytest

from surveying.plans import PLAN
from thalweg.errors import InputError, StoreError
from thalweg.surveying.plan import (
    STEPS,
    Plan,
    chosen_steps,
    parse_bytes,
    parse_seconds,
)

KEPT = dataclasses.replace(
    PLAN, examples=5, total=7, measured={"loss_seconds": 0.1}, notes=("less",)
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("5m", 300), ("1h", 3600), (45, 45), ("1.5", 1.5)],
)
def test_seconds(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "count"), [("500MB", 500_000_000), ("2GB", 2_000_000_000), (7, 7)]
)
def test_bytes(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("bad", ["soon", "0s", "-3s", "5 days", ""])
def test_a_budget_that_is_no_duration_is_refused(bad):
    with pytest.raises(InputError, match="budget=.*30s, 5m or 1h"):
        parse_seconds(bad)


def test_a_memory_that_is_no_amount_is_refused():
    with pytest.raises(InputError, match="memory='lots'"):
        parse_bytes("lots")


def test_steps_bring_what_they_need():
    assert chosen_steps(None, checkpoints=3) == STEPS[:-1]
    assert chosen_steps(None, checkpoints=2) == STEPS[:-2]
    assert chosen_steps(None, checkpoints=3, align=True) == STEPS
    assert chosen_steps("point", 2, align=True) == ("point", "paths", "aligned")
    assert chosen_steps(None, checkpoints=0) == STEPS[:-3]
    wanted = ("point", "eigenvalues", "hessian_surface")
    assert chosen_steps("hessian_surface", checkpoints=0) == wanted
    assert chosen_steps(" trace, surface ", checkpoints=0) == ("trace", "surface")
    assert chosen_steps(("trace",), checkpoints=0) == ("trace",)


def test_unknown_steps_are_refused():
    with pytest.raises(InputError, match="'surfaces' is no step"):
        chosen_steps("surfaces", checkpoints=0)
    with pytest.raises(InputError, match="needs 2 checkpoints, got 1"):
        chosen_steps("paths", checkpoints=1)
    with pytest.raises(InputError, match="align needs 2 checkpoints, got 1"):
        chosen_steps("point", checkpoints=1, align=True)
    with pytest.raises(InputError, match="names no step"):
        chosen_steps(" ", checkpoints=0)


def test_a_plan_survives_json(tmp_path):
    assert Plan.from_json(KEPT.to_json()) == KEPT
    (tmp_path / "plan.json").write_text(KEPT.to_json())
    assert Plan.read(tmp_path) == KEPT
    assert Plan.read(tmp_path / "plan.json") == KEPT


def test_what_is_no_plan_is_refused(tmp_path):
    with pytest.raises(StoreError, match="no plan at"):
        Plan.read(tmp_path)
    entries = dataclasses.asdict(KEPT)
    entries.pop("seed")
    for text in ("{", "{}", str(entries)):
        with pytest.raises(StoreError, match="no plan of a survey"):
            Plan.from_json(text)
