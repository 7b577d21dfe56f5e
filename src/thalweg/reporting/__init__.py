"""Figures of datasets and the HTML report, made of sections that a room hands over."""

from thalweg.reporting._numbers import format_cost, format_number, format_value
from thalweg.reporting.animation import animate
from thalweg.reporting.exporting import check_suffix, export
from thalweg.reporting.figures import (
    basins_figure,
    eigenvalue_figure,
    layers_figure,
    line_figure,
    merge_tree_figure,
    persistence_figure,
    spectra_figure,
    spectrum_figure,
    surface_caption,
    surface_figure,
    tracking_figure,
)
from thalweg.reporting.html import write_report
from thalweg.reporting.sections import (
    Callout,
    Drawable,
    Figure,
    Gallery,
    Part,
    Quantities,
    Quantity,
    Section,
    Table,
    Text,
)
from thalweg.reporting.static import save_figure

__all__ = [
    # what a report is made of
    "Callout",
    "Drawable",
    "Figure",
    "Gallery",
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
    # interactive figures of datasets and tables
    "basins_figure",
    "eigenvalue_figure",
    "layers_figure",
    "line_figure",
    "merge_tree_figure",
    "persistence_figure",
    "spectra_figure",
    "spectrum_figure",
    "surface_caption",
    "surface_figure",
    "tracking_figure",
    # files: static figures, and what other programs open
    "animate",
    "check_suffix",
    "export",
    "save_figure",
    # the report
    "write_report",
]
