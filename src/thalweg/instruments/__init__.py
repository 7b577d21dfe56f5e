"""How a landscape is measured: one set of instruments for every landscape."""

from thalweg.instruments.directions import Directions

__all__ = [
    # directions
    "Directions",
]
