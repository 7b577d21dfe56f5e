"""Permutations of units: inferred from a network, searched, applied."""

from thalweg.instruments.alignment.aligning import (
    Alignment,
    align,
    infer_permutations,
)
from thalweg.instruments.alignment.permutations import Heads, PermutationSpec, Segment
from thalweg.instruments.alignment.rescaling import Repaired, repair

__all__ = [
    "Alignment",
    "Heads",
    "PermutationSpec",
    "Repaired",
    "Segment",
    "align",
    "infer_permutations",
    "repair",
]
