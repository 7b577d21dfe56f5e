"""Plotly figures of datasets and plain tables."""

from thalweg.reporting.figures.basins import basins_figure
from thalweg.reporting.figures.lines import (
    eigenvalue_figure,
    layers_figure,
    line_figure,
)
from thalweg.reporting.figures.spectra import spectra_figure, spectrum_figure
from thalweg.reporting.figures.surfaces import surface_caption, surface_figure
from thalweg.reporting.figures.topology import merge_tree_figure, persistence_figure
from thalweg.reporting.figures.tracking import tracking_figure

__all__ = [
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
]
