"""Landscapes known in closed form: models of theory, oracles of the instruments."""

from thalweg.solvable import relu_topology
from thalweg.solvable.deep_linear import DeepLinear
from thalweg.solvable.two_layer_relu import ReLUTeacherStudent

__all__ = [
    # deep linear networks
    "DeepLinear",
    # two-layer ReLU teacher-student
    "ReLUTeacherStudent",
    # what two-layer homogeneous networks conserve
    "relu_topology",
]
