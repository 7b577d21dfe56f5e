"""Figures of datasets and the HTML report, made of sections that a room hands over."""

from thalweg.reporting._numbers import format_cost, format_number, format_value
from thalweg.reporting.html import write_report
from thalweg.reporting.sections import (
    Callout,
    Drawable,
    Figure,
    Part,
    Quantities,
    Quantity,
    Section,
    Table,
    Text,
)

__all__ = [
    # what a report is made of
    "Callout",
    "Drawable",
    "Figure",
    "Part",
    "Quantities",
    "Quantity",
    "Section",
    "Table",
    "Text",
    # numbers as a reader wants them
    "format_cost",
    "format_number",
    "format_value",
    # the report
    "write_report",
]
