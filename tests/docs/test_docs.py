"""The pages of the documentation: their Python runs, their links lead somewhere."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md"))
_BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```", re.M | re.S)
_LINK = re.compile(r"\]\((?!https?:)([^)#]+\.md)")


def blocks(page):
    text = (DOCS / page).read_text()
    for match in _BLOCK.finditer(text):
        # as many empty lines before it as the page has, for true line numbers
        yield "\n" * (text[: match.start()].count("\n") + 1) + match.group(1)


@pytest.mark.parametrize("page", [p for p in PAGES if list(blocks(p))])
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    if "hugging-face" in page:
        pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for block in blocks(page):
        exec(compile(block, str(DOCS / page), "exec"), names)


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page):
    folder = (DOCS / page).parent
    for link in _LINK.findall((DOCS / page).read_text()):
        assert (folder / link).is_file(), link


def test_the_navigation_names_every_page():
    navigation = (DOCS.parent / "mkdocs.yml").read_text()
    assert [page for page in PAGES if page not in navigation] == []
