"""Thalweg: instruments for the loss landscape of neural networks."""

from thalweg.landscapes import Landscape, Quadratic

__all__ = ["Landscape", "Quadratic"]
