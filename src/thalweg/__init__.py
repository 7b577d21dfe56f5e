"""Thalweg: instruments for the loss landscape of neural networks."""

from thalweg.landscapes import Landscape, NetworkLandscape, Quadratic

__all__ = ["Landscape", "NetworkLandscape", "Quadratic"]
