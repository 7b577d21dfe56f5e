"""Landscapes known in closed form: models of theory, oracles of the instruments."""

from thalweg.solvable.two_layer_relu import ReLUTeacherStudent

__all__ = [
    # two-layer ReLU teacher-student
    "ReLUTeacherStudent",
]
