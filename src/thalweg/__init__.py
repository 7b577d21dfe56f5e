"""Thalweg: instruments for the loss landscape of neural networks."""

from thalweg.landscapes import InputLandscape, Landscape, NetworkLandscape, Quadratic

__all__ = ["InputLandscape", "Landscape", "NetworkLandscape", "Quadratic"]
