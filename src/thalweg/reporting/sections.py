"""What a report is made of: sections of text, numbers, tables, figures and callouts.

Plain values only. A room builds sections; `write_report` sets them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, get_args, runtime_checkable

from thalweg.errors import InputError

__all__ = [
    "Callout",
    "CalloutKind",
    "Drawable",
    "Figure",
    "Gallery",
    "Part",
    "Quantities",
    "Quantity",
    "Section",
    "Table",
    "Text",
]

CalloutKind: TypeAlias = Literal["verdict", "warning", "info", "error"]


@runtime_checkable
class Drawable(Protocol):
    """What a figure needs to be: a plotly figure, or anything that gives its JSON."""

    def to_plotly_json(self) -> dict[str, object]:
        """Return {"data": [...], "layout": {...}}."""
        ...


@dataclass(frozen=True)
class Text:
    """Prose. An empty line parts paragraphs; `code` and **strong** are marked so."""

    text: str


@dataclass(frozen=True)
class Quantity:
    """One number with its standard error, its unit and what it cost.

    Args:
        label: What was measured.
        value: A number, a text, or None where there is none.
        stderr: Standard error, or None where the number carries none.
        unit: Unit, written after the number.
        cost: What it took, as text or as counts ({"products": 20, "seconds": 1.2}).
        note: One more line: the method, a bound, why it is missing.
    """

    label: str
    value: object
    stderr: float | None = None
    unit: str = ""
    cost: str | Mapping[str, object] = ""
    note: str = ""


@dataclass(frozen=True)
class Quantities:
    """Numbers side by side, the ones to read first."""

    items: Sequence[Quantity]


@dataclass(frozen=True)
class Table:
    """Rows under named columns; a cell is a number, a text, None or a `Quantity`.

    Raises:
        InputError: A row has another number of cells than there are columns.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise InputError(
                    f"rows[{index}] has {len(row)} cells, "
                    f"the table has {len(self.columns)} columns"
                )


@dataclass(frozen=True)
class Figure:
    """An interactive figure with its caption.

    Args:
        figure: A plotly figure.
        caption: What is seen, and what was clipped or left out.
        alt: What somebody reads who does not see it; the caption where it is empty.
    """

    figure: Drawable
    caption: str = ""
    alt: str = ""


@dataclass(frozen=True)
class Gallery:
    """Figures to compare: side by side where the page is wide, else one by one."""

    figures: Sequence[Figure]


@dataclass(frozen=True)
class Callout:
    """A sentence set apart: the verdict, a warning, a remark, an error.

    Raises:
        InputError: The kind is none of "verdict", "warning", "info", "error".
    """

    kind: CalloutKind
    text: str

    def __post_init__(self) -> None:
        if self.kind not in get_args(CalloutKind):
            accepted = ", ".join(repr(kind) for kind in get_args(CalloutKind))
            raise InputError(f"kind must be one of {accepted}, got {self.kind!r}")


Part: TypeAlias = Text | Quantity | Quantities | Table | Figure | Gallery | Callout


@dataclass(frozen=True)
class Section:
    """A titled part of a report.

    Args:
        title: Heading, and entry of the navigation.
        parts: What stands under it, in this order.
        anchor: The fragment that links to it; from the title where it is empty.
    """

    title: str
    parts: Sequence[Part] = ()
    anchor: str = ""
