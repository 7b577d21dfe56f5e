"""Thalweg: instruments for the loss landscape of neural networks."""

from typing import TYPE_CHECKING

from thalweg.landscapes import InputLandscape, Landscape, NetworkLandscape, Quadratic

if TYPE_CHECKING:
    from thalweg.surveying import survey

__all__ = ["InputLandscape", "Landscape", "NetworkLandscape", "Quadratic", "survey"]


def __getattr__(name: str) -> object:
    # The survey brings every instrument and the report with it; most imports need none.
    if name == "survey":
        from thalweg.surveying import survey

        return survey
    raise AttributeError(f"module 'thalweg' has no attribute {name!r}")
