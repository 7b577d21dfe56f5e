"""How a landscape is measured: one set of instruments for every landscape."""

from thalweg.instruments.directions import Directions
from thalweg.instruments.eigenpairs import Eigenpairs, top_eigenpairs
from thalweg.instruments.estimates import Estimate

__all__ = [
    # directions
    "Directions",
    # spectra
    "Eigenpairs",
    "Estimate",
    "top_eigenpairs",
]
