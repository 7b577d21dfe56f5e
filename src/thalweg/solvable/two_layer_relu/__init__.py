"""Exact landscape of two-layer ReLU teacher-student networks under Gaussian inputs."""

from thalweg.solvable.two_layer_relu.descent import KIND, STATUS, Descents
from thalweg.solvable.two_layer_relu.kernel import (
    relu_kernel,
    relu_loss,
    student_loss,
)
from thalweg.solvable.two_layer_relu.landscape import ReLUHessian, ReLUTeacherStudent
from thalweg.solvable.two_layer_relu.reduction import Reduction, Spectrum

__all__ = [
    # the landscape
    "ReLUHessian",
    "ReLUTeacherStudent",
    # closed forms
    "relu_kernel",
    "relu_loss",
    "student_loss",
    # descents to minima
    "KIND",
    "STATUS",
    "Descents",
    # dimension reduction
    "Reduction",
    "Spectrum",
]
