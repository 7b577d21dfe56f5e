"""Surveys side by side: exact differences, common axes, refusals."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from torch.nn import functional

from surveying.plans import PLAN
from thalweg import NetworkLandscape, Quadratic, survey
from thalweg.errors import InputError, StoreError
from thalweg.models import mlp
from thalweg.surveying import compare_surveys

STEPS = ("point", "eigenvalues", "trace", "spectrum", "sharpness", "surface")


def quadratic(eigenvalues):
    draws = torch.randn(7, 7, generator=torch.Generator().manual_seed(0)).double()
    rotation = torch.linalg.qr(draws).Q
    matrix = rotation @ torch.diag(eigenvalues) @ rotation.T
    return Quadratic((matrix + matrix.T) / 2, offset=0.5)


def network(seed=0, data=1, width=4, loss=functional.cross_entropy, **options):
    generator = torch.Generator().manual_seed(data)
    x = torch.randn(40, 5, generator=generator)
    y = torch.randint(0, 3, (40,), generator=generator)
    return NetworkLandscape(mlp((5, width, 3), seed=seed), loss, (x, y), **options)


def stored(folder, land, name, **changes):
    rows = land.rows if isinstance(land, NetworkLandscape) else 0
    changes = {"examples": rows, "total": rows, **changes}
    plan = dataclasses.replace(PLAN, **changes)
    survey(land, out=folder / name, plan=plan, name=name)
    return folder / name


def page_of(comparison):
    return comparison.report.read_text()


def table(page, title):
    """Return the rows of the first table of a section as lists of texts."""
    section = page.partition(f">{title}</a></h2>")[2].partition("</section>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", section.partition("</table>")[0], re.S)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def figures_of(page):
    specs = re.findall(r'id="figure-\d+-spec">(.*?)</script>', page, re.S)
    return [json.loads(spec) for spec in specs]


def test_two_quadratics_differ_by_their_closed_forms(tmp_path):
    eigenvalues = torch.tensor([9.0, 4, 2, 1, 0.5, 0.25, 0.125], dtype=torch.float64)
    first = stored(tmp_path, quadratic(eigenvalues), "flat", steps=STEPS)
    second = stored(tmp_path, quadratic(4 * eigenvalues), "steep", steps=STEPS)
    comparison = compare_surveys([first, second], tmp_path / "new" / "c.html")
    assert comparison.different == {}
    assert [one.name for one in comparison.surveys] == ["flat", "steep"]
    page = page_of(comparison)
    head, *rows = table(page, "Curvature")
    assert head == ["", "flat", "steep", "steep − flat", "in errors"]
    curvature = {row[0]: row[1:4] for row in rows}
    assert curvature["eigenvalue 1"] == ["9", "36", "27"]
    assert curvature["smallest eigenvalue"] == ["0.125", "0.5", "0.375"]
    assert curvature["trace"][2].startswith("50.62")  # 3 · 16.875 = 50.625
    sharpness = {row[0]: row[1:4] for row in table(page, "Sharpness")[1:]}
    # max of ½ λ ρ² over a ball of ρ = 0.05: 0.01125 and four times that
    assert sharpness["zeroth"] == ["0.01125", "0.045", "0.03375"]
    assert "Data, loss and radius are the same" in page
    found = json.loads(comparison.to_json())
    assert found["different"] == {} and set(found["figures"]) == {"flat", "steep"}
    # Both surfaces have one window and one range of colors.
    surfaces = [spec for spec in figures_of(page) if "scene" in spec["layout"]]
    assert len(surfaces) == 2
    for view in ("xaxis", "yaxis"):
        assert len({str(spec["layout"][view]["range"]) for spec in surfaces}) == 1
    ranges = {(spec["data"][0]["cmin"], spec["data"][0]["cmax"]) for spec in surfaces}
    heights = {str(spec["layout"]["scene"]["zaxis"]["range"]) for spec in surfaces}
    assert len(ranges) == len(heights) == 1
    low, high = ranges.pop()
    losses = [one.datasets["surface"]["loss"].values for one in comparison.surveys]
    np.testing.assert_allclose(10**low, min(loss.min() for loss in losses))
    np.testing.assert_allclose(10**high, max(loss.max() for loss in losses))


def test_errors_add_up_in_squares_and_differences_are_told_in_them(tmp_path):
    one, two, three = network(0), network(1), network(2)
    folders = [
        stored(tmp_path, land, name)
        for name, land in (("a", one), ("b", two), ("c", three))
    ]
    comparison = compare_surveys(folders, tmp_path / "c.html")
    figures = [survey.summary["figures"] for survey in comparison.surveys]
    values = [entry["loss"] for entry in figures]
    errors = [entry["loss_stderr"] for entry in figures]
    page = page_of(comparison)
    assert table(page, "Loss and gradient")[0] == ["", "a", "b", "c"]
    section = page.partition(">Loss and gradient</a></h2>")[2]
    second = section.partition("</table>")[2]
    head, first, *_ = table(">Loss and gradient</a></h2>" + second, "Loss and gradient")
    assert head == ["", "b − a", "in errors", "c − a", "in errors"]
    for j, cell in ((1, first[2]), (2, first[4])):
        error = np.hypot(errors[0], errors[j])
        times = (values[j] - values[0]) / error
        assert float(cell.replace("−", "-")) == pytest.approx(times, rel=0.06)


def smoothed(output, target):
    return functional.cross_entropy(output, target, label_smoothing=0.1)


@pytest.mark.parametrize(
    ("land", "changes", "condition"),
    [
        (network(data=2), {}, "data: "),
        (network(loss=smoothed), {}, "loss: cross_entropy / smoothed"),
        (network(weight_decay=0.5), {}, "weight_decay: 0.0 / 0.5"),
        (network(), {"rho": 0.1}, "radius: 0.05 / 0.1"),
        (network(), {"sharpness_method": "one_step"}, "worst case by: pgd / one_step"),
        (
            network(),
            {"examples": 20},
            "examples: 40 of 40 / 20 of 40, drawn with seed 0",
        ),
    ],
)
def test_other_data_loss_or_radius_is_refused(tmp_path, land, changes, condition):
    first = stored(tmp_path, network(), "a")
    second = stored(tmp_path, land, "b", **changes)
    out = tmp_path / "c.html"
    with pytest.raises(InputError, match="a, b differ in") as refusal:
        compare_surveys([first, second], out)
    assert condition in str(refusal.value)
    assert "--allow-different" in str(refusal.value) and not out.exists()
    comparison = compare_surveys([first, second], out, allow_different=True)
    name, _, values = condition.partition(": ")
    assert name in comparison.different
    page = page_of(comparison)
    assert "not made under the same conditions" in page
    for value in values.split(" / "):
        assert f"<code>{value}</code>" in page or not value


def test_unequal_efforts_are_told(tmp_path):
    first = stored(tmp_path, network(0), "a")
    second = stored(tmp_path, network(1), "b", sharpness_steps=3)
    page = page_of(compare_surveys([first, second], tmp_path / "c.html"))
    assert "ascents of the worst cases took 20 / 3 steps" in page
    assert "<strong>20</strong>" in page  # in the table of settings


def test_networks_of_other_sizes_and_missing_steps_are_told(tmp_path):
    first = stored(tmp_path, network(), "a", steps=("point", "surface", "sharpness"))
    second = stored(tmp_path, network(width=6), "b", steps=("point",))
    comparison = compare_surveys([first, second], tmp_path / "c.html")
    assert comparison.different == {}  # no radius that could be another
    page = page_of(comparison)
    assert "different numbers of parameters" in page
    assert "Without the step <code>surface</code>: b." in page


def test_names_are_the_ends_of_paths_that_tell_them_apart(tmp_path):
    for run in "xy":
        (tmp_path / run).mkdir()
        stored(tmp_path / run, network(), "out", steps=("point",))
    folders = [tmp_path / run / "out" for run in "xy"]
    comparison = compare_surveys(folders, tmp_path / "c.html")
    assert [one.name for one in comparison.surveys] == ["x/out", "y/out"]


def test_what_cannot_be_compared_is_named(tmp_path):
    land = network()
    first = stored(tmp_path, land, "a", steps=("point",))
    with pytest.raises(InputError, match="two surveys at least, got 1"):
        compare_surveys([first])
    with pytest.raises(InputError, match="a is given twice"):
        compare_surveys([first, tmp_path / "b" / ".." / "a"])
    with pytest.raises(StoreError, match="no survey at"):
        compare_surveys([first, tmp_path / "gone"])
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "plan.json").write_text((first / "plan.json").read_text())
    with pytest.raises(InputError, match="no finished step"):
        compare_surveys([first, empty])
    (first / "plan.json").write_text("{}")
    with pytest.raises(StoreError, match="no plan of a survey"):
        compare_surveys([first, stored(tmp_path, land, "c", steps=("point",))])
