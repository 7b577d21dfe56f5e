"""One self-contained HTML file from sections and data: no network, no server.

The page is built here; its looks are in `report.css`, its behavior in `report.js`.
"""

import json
import os
import re
import tempfile
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from thalweg.errors import InputError
from thalweg.provenance import to_json, versions
from thalweg.reporting._numbers import format_cost, format_number, format_value
from thalweg.reporting.figures.theme import template
from thalweg.reporting.sections import (
    Callout,
    Figure,
    Gallery,
    Quantities,
    Quantity,
    Section,
    Table,
    Text,
)

__all__ = ["write_report"]

_LABELS = {
    "verdict": "Verdict",
    "warning": "Warning",
    "info": "Note",
    "error": "Error",
}
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'unsafe-inline'; img-src data: blob:; worker-src blob:"
)


def write_report(
    path: str | os.PathLike[str],
    title: str,
    sections: Sequence[Section],
    data: Mapping[str, object] | None = None,
    *,
    subtitle: str = "",
) -> Path:
    """Write a report as one HTML file that needs no network, and return its path.

    The file embeds plotly.js once, its figures, and `data` as JSON in the element
    `#report-data` (NaN and the infinities as "nan", "inf", "-inf"; datasets by their
    dictionary). It is written beside its place and renamed, so that a reader never
    sees half of it. All text is escaped.

    Args:
        path: File to write, replaced where it exists; its folder is made.
        title: Heading of the page.
        sections: What it shows, in this order.
        data: Plain values, arrays and datasets that the numbers come from.
        subtitle: One line under the heading.

    Raises:
        InputError: `path` is a folder, the title is empty, or a part is of no kind
            that a report knows.
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"path must be a file, {target} is a folder")
    if not title.strip():
        raise InputError("title must not be empty")
    page = _Page()
    body = [page.section(section) for section in sections]
    _write_atomically(target, _document(title, subtitle, page, body, data or {}))
    return target


class _Page:
    """Sets the parts of one page; keeps the anchors given out and the figures met."""

    def __init__(self) -> None:
        self.anchors: dict[str, str] = {}  # anchor -> title
        self.figures: list[str] = []  # scripts that hold the figures' JSON

    def section(self, section: Section) -> str:
        anchor = self._anchor(section.anchor or section.title)
        self.anchors[anchor] = section.title
        parts = "\n".join(self.part(part) for part in section.parts)
        return (
            f'<section id="{anchor}" aria-labelledby="{anchor}-title">\n'
            f'<h2 id="{anchor}-title"><a href="#{anchor}">{escape(section.title)}</a>'
            f"</h2>\n{parts}\n</section>"
        )

    def part(self, part: object) -> str:
        match part:
            case Text():
                return _paragraphs(part.text)
            case Quantity():
                return _tiles([part])
            case Quantities():
                return _tiles(part.items)
            case Table():
                return _table(part)
            case Figure():
                return self.figure(part)
            case Gallery():
                figures = "".join(self.figure(figure) for figure in part.figures)
                return f'<div class="gallery">{figures}</div>'
            case Callout():
                return _callout(part)
        raise InputError(
            "a section's parts must be Text, Quantity, Quantities, Table, Figure, "
            f"Gallery or Callout, got {type(part).__name__}"
        )

    def figure(self, part: Figure) -> str:
        name = f"figure-{len(self.figures) + 1}"
        content = _embeddable(_figure_json(part))
        self.figures.append(
            f'<script type="application/json" id="{name}-spec">{content}</script>'
        )
        alt = escape(part.alt or part.caption or "Figure", quote=True)
        height = _height(part)
        return (
            f'<figure id="{name}"><div class="plot" data-spec="{name}-spec" '
            f'style="height:{height}px" role="img" aria-label="{alt}"></div>'
            f"{_caption(part.caption, f'Figure {len(self.figures)}')}</figure>"
        )

    def _anchor(self, text: str) -> str:
        slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"
        anchor, number = slug, 2
        while anchor in self.anchors:
            anchor, number = f"{slug}-{number}", number + 1
        return anchor


def _figure_json(part: Figure) -> str:
    """Return the figure's JSON without its template: the page brings light and dark."""
    from plotly.io.json import to_json_plotly

    spec = dict(part.figure.to_plotly_json())
    layout = dict(spec.get("layout") or {})  # type: ignore[call-overload]  # plotly's
    layout.pop("template", None)
    spec["layout"] = layout
    return str(to_json_plotly(spec))


def _height(part: Figure) -> int:
    layout = part.figure.to_plotly_json().get("layout")
    height = layout.get("height") if isinstance(layout, Mapping) else None
    return int(height) if isinstance(height, int | float) else 440


def _paragraphs(text: str) -> str:
    blocks = [block for block in re.split(r"\n\s*\n", text.strip()) if block]
    return "\n".join(f"<p>{_inline(block)}</p>" for block in blocks)


def _inline(text: str) -> str:
    """Escape a text, then mark `code` and **strong** in it."""
    marked = re.sub(r"`([^`\n]+)`", r"<code>\1</code>", escape(text))
    return re.sub(r"\*\*([^*\n]+)\*\*", r"<strong>\1</strong>", marked)


def _callout(part: Callout) -> str:
    return (
        f'<div class="callout {part.kind}" role="note"><p class="label">'
        f"{_LABELS[part.kind]}</p>{_paragraphs(part.text)}</div>"
    )


def _tiles(items: Sequence[Quantity]) -> str:
    return f'<dl class="tiles">{"".join(_tile(item) for item in items)}</dl>'


def _tile(item: Quantity) -> str:
    value, error = _value_and_error(item)
    unit = f' <span class="unit">{escape(item.unit)}</span>' if item.unit else ""
    details = [error, escape(item.note), escape(format_cost(item.cost))]
    lines = "".join(f'<dd class="detail">{line}</dd>' for line in details if line)
    return (
        f"<div><dt>{_inline(item.label)}</dt>"
        f'<dd class="value">{value}{unit}</dd>{lines}</div>'
    )


def _value_and_error(item: Quantity) -> tuple[str, str]:
    """Return the number, and its error as a line of its own."""
    text = escape(format_value(item.value, item.stderr))
    if " ± " not in text:
        return text, ""
    if text.startswith("("):
        inner, power = text[1:].split(")")
        value, error = inner.split(" ± ")
        return value + power, f"± {error}{power}"
    value, error = text.split(" ± ")
    return value, f"± {error}"


def _table(table: Table) -> str:
    numeric = [
        _is_numeric([row[j] for row in table.rows]) for j in range(len(table.columns))
    ]
    head = "".join(
        f'<th scope="col"{_number_class(is_number)}>{_inline(name)}</th>'
        for name, is_number in zip(table.columns, numeric, strict=True)
    )
    rows = "\n".join(_row(row, numeric) for row in table.rows)
    label = escape(table.caption or "Table", quote=True)
    return (
        f'<figure class="table"><div class="scroll" role="region" tabindex="0" '
        f'aria-label="{label}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{_caption(table.caption, '')}</figure>"
    )


def _row(row: Sequence[object], numeric: Sequence[bool]) -> str:
    cells = []
    for j, (cell, is_number) in enumerate(zip(row, numeric, strict=True)):
        tag = "th" if j == 0 and isinstance(cell, str) else "td"
        scope = ' scope="row"' if tag == "th" else ""
        cells.append(f"<{tag}{scope}{_number_class(is_number)}>{_cell(cell)}</{tag}>")
    return f"<tr>{''.join(cells)}</tr>"


def _cell(cell: object) -> str:
    if isinstance(cell, Quantity):
        unit = f" {cell.unit}" if cell.unit else ""
        return escape(format_value(cell.value, cell.stderr) + unit)
    if isinstance(cell, str):
        return _inline(cell) or "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return escape(format_number(cell))


def _is_numeric(cells: Sequence[object]) -> bool:
    """Return whether a column holds numbers: those are set flush right."""
    kinds = [not isinstance(cell, str | bool) for cell in cells if cell is not None]
    return bool(kinds) and all(kinds)


def _number_class(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def _caption(caption: str, label: str) -> str:
    strong = f"<strong>{label}</strong> " if label else ""
    if not caption and not label:
        return ""
    return f"<figcaption>{strong}{_inline(caption)}</figcaption>"


def _embeddable(text: str) -> str:
    """Return JSON that cannot end the script element it stands in."""
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _data_json(data: Mapping[str, object]) -> str:
    return _embeddable(to_json({name: _plain(data[name]) for name in data}))


def _plain(value: object) -> object:
    """Replace the datasets in a value by their dictionaries."""
    if isinstance(value, Mapping) and not hasattr(value, "to_dict"):
        return {name: _plain(value[name]) for name in value}
    to_dict = getattr(value, "to_dict", None)
    return to_dict() if callable(to_dict) else value


def _document(
    title: str,
    subtitle: str,
    page: _Page,
    body: Sequence[str],
    data: Mapping[str, object],
) -> str:
    from plotly.offline import get_plotlyjs

    entries = "".join(
        f'<li><a href="#{anchor}">{escape(name)}</a></li>'
        for anchor, name in page.anchors.items()
    )
    plotly = f"<script>{get_plotlyjs()}</script>" if page.figures else ""
    templates = _embeddable(
        json.dumps({"light": template(dark=False), "dark": template(dark=True)})
    )
    under = f'<p class="subtitle">{_inline(subtitle)}</p>' if subtitle else ""
    packages = ", ".join(f"{name} {number}" for name, number in versions().items())
    newline = "\n"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="thalweg">
<title>{escape(title)}</title>
<link rel="icon" href="{_icon()}">
<style>
{_resource("report.css")}
</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header><div class="inner"><p class="brand">{_brand()}thalweg</p>
<h1>{escape(title)}</h1>{under}</div></header>
<div class="columns">
<nav aria-label="Sections"><ol>{entries}</ol></nav>
<main id="content">
{newline.join(body)}
</main>
</div>
<footer><div class="inner"><p>Written by {escape(packages)}.
All numbers of this page are inside it as JSON.</p>
<p><button type="button" id="save-data">Save the data</button></p></div></footer>
<script type="application/json" id="report-data">{_data_json(data)}</script>
<script type="application/json" id="report-templates">{templates}</script>
{newline.join(page.figures)}
{plotly}
<script>
{_resource("report.js")}
</script>
</body>
</html>
"""


def _icon() -> str:
    content = b64encode(_resource("icon.svg").strip().encode()).decode()
    return f"data:image/svg+xml;base64,{content}"


def _brand() -> str:
    """Return the icon to stand inside the page, where it needs no namespace."""
    icon = re.sub(r' xmlns="[^"]*"', ' aria-hidden="true"', _resource("icon.svg"))
    return icon.strip()


def _resource(name: str) -> str:
    return (files("thalweg.reporting") / name).read_text(encoding="utf-8")


def _write_atomically(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
