"""The page: structure, escaping, embedded data, no address outside itself."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr

from thalweg.errors import InputError
from thalweg.reporting import (
    Callout,
    Figure,
    Gallery,
    Quantities,
    Quantity,
    Section,
    Table,
    Text,
    write_report,
)

HOSTILE = '</script><script>alert("1")</script>&amp; <b>\u2028'


class Page(HTMLParser):
    """The elements of a page: tags with attributes, and the text of scripts by id."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self._script = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        self._script = attributes.get("id", "") if tag == "script" else None

    def handle_data(self, data):
        if self._script is not None:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data

    def handle_endtag(self, tag):
        self._script = None

    def having(self, tag, **wanted):
        return [
            a
            for t, a in self.tags
            if t == tag and all(a.get(k) == v for k, v in wanted.items())
        ]


def line():
    return go.Figure(go.Scatter(x=[0.0, 1.0, 2.0], y=[1.0, np.nan, 3.0]))


def sections(text="plain"):
    return [
        Section(
            text,
            [
                Callout("verdict", text),
                Quantities([Quantity(text, 1.5, 0.25, text, {"products": 3}, text)]),
                Quantity("alone", np.float64(2.0)),
                Text(f"{text}\n\nsecond `code` **strong**"),
            ],
        ),
        Section(
            text,
            [
                Table(
                    [text, "b"], [[text, 1.0], ["row", Quantity("", 2.0, 0.1)]], text
                ),
                Figure(line(), text, text),
            ],
        ),
    ]


def read(path):
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_every_part_is_in_the_page(tmp_path):
    path = write_report(tmp_path / "r.html", "Title", sections(), subtitle="under")
    text, page = read(path)
    assert [a["id"] for a in page.having("section")] == ["plain", "plain-2"]
    links = [a["href"] for a in page.having("a") if a["href"].startswith("#plain")]
    assert links[:2] == ["#plain", "#plain-2"]  # of the navigation
    assert len(page.having("h1")) == 1 and len(page.having("h2")) == 2
    assert '<p class="subtitle">under</p>' in text
    assert "<code>code</code>" in text and "<strong>strong</strong>" in text
    assert '<dd class="value">1.50 <span class="unit">plain</span></dd>' in text
    assert '<dd class="detail">± 0.25</dd>' in text and "3 products" in text
    assert '<td class="number">2.00 ± 0.10</td>' in text
    assert page.having("div", role="img")[0]["aria-label"] == "plain"
    assert page.having("html", lang="en")
    assert page.having("link", rel="icon")[0]["href"].startswith("data:")


def test_figures_of_a_gallery_stand_in_one_element(tmp_path):
    gallery = Gallery([Figure(line(), "left"), Figure(line(), "right")])
    path = write_report(tmp_path / "r.html", "Title", [Section("a", [gallery])])
    text, page = read(path)
    (inside,) = re.findall(r'<div class="gallery">(.*?)</div>\n</section>', text, re.S)
    assert inside.count("<figure") == 2 and "Figure 2</strong> right" in inside


def test_hostile_text_stays_text(tmp_path):
    path = write_report(
        tmp_path / "r.html",
        HOSTILE,
        sections(HOSTILE),
        {HOSTILE: HOSTILE},
        subtitle=HOSTILE,
    )
    _, plain = read(write_report(tmp_path / "p.html", "T", sections(), subtitle="u"))
    _, page = read(path)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert not page.having("b")
    assert json.loads(page.scripts["report-data"]) == {HOSTILE: HOSTILE}


def test_data_survives_the_round_trip(tmp_path):
    dataset = xr.Dataset(
        {"loss": ("x0", np.array([1.0, np.nan, np.inf]))},
        {"x0": [-1.0, 0.0, 1.0]},
        {"seed": "0"},
    )
    data = {
        "number": 0.1 + 0.2,
        "nan": float("nan"),
        "array": np.array([[1.0, -np.inf]]),
        "big": 2**60 + 1,
        "nested": {"surface": dataset},
    }
    _, page = read(write_report(tmp_path / "r.html", "T", [], data))
    back = json.loads(page.scripts["report-data"])
    assert back["number"] == 0.1 + 0.2 and back["big"] == 2**60 + 1
    assert back["nan"] == "nan" and back["array"] == [[1.0, "-inf"]]
    surface = back["nested"]["surface"]
    assert surface["data_vars"]["loss"]["data"] == [1.0, "nan", "inf"]
    assert surface["coords"]["x0"]["data"] == [-1.0, 0.0, 1.0]
    assert surface["attrs"] == {"seed": "0"}


def test_the_page_names_no_address_outside_itself(tmp_path):
    path = write_report(tmp_path / "r.html", "T", sections())
    text, page = read(path)
    for _, attributes in page.tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    policy = page.having("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy[0]["content"].startswith("default-src 'none'")
    own = re.sub(r"<script>/\*\*\n\* plotly\.js.*?</script>", "", text, flags=re.S)
    assert len(own) < 60_000  # plotly.js is gone from it, and was there once
    assert "://" not in own


def test_a_page_without_figures_has_no_plotly(tmp_path):
    path = write_report(tmp_path / "r.html", "T", [Section("A", [Text("a")])])
    assert path.stat().st_size < 60_000


def test_figures_leave_their_colors_to_the_page(tmp_path):
    _, page = read(write_report(tmp_path / "r.html", "T", sections()))
    spec = json.loads(page.scripts["figure-1-spec"])
    assert "template" not in spec["layout"]
    assert spec["data"][0]["type"] == "scatter"
    templates = json.loads(page.scripts["report-templates"])
    assert set(templates) == {"light", "dark"}


def test_the_file_replaces_another_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "new" / "r.html"
    write_report(path, "First", [])
    write_report(path, "Second", [])
    assert "<h1>Second</h1>" in path.read_text(encoding="utf-8")
    assert list(path.parent.iterdir()) == [path]


def test_a_failing_part_leaves_the_old_report(tmp_path):
    path = write_report(tmp_path / "r.html", "First", [])
    section = object.__new__(Section)
    for name, value in {"title": "A", "parts": ["no part"], "anchor": ""}.items():
        object.__setattr__(section, name, value)
    with pytest.raises(InputError, match="got str"):
        write_report(path, "Second", [section])
    assert "<h1>First</h1>" in path.read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [path]


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(InputError, match="path must be a file"):
        write_report(tmp_path, "T", [])
    with pytest.raises(InputError, match="title must not be empty"):
        write_report(tmp_path / "r.html", " ", [])
