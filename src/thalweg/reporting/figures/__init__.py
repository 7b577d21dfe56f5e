"""Plotly figures of datasets and plain tables."""
