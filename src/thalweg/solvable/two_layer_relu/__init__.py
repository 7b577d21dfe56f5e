"""Exact landscape of two-layer ReLU teacher-student networks under Gaussian inputs."""

from thalweg.solvable.two_layer_relu.classification import Classification
from thalweg.solvable.two_layer_relu.descent import KIND, STATUS, Descents
from thalweg.solvable.two_layer_relu.dynamics import OverlapFlow, OverlapTrajectory
from thalweg.solvable.two_layer_relu.families import Family, wilson
from thalweg.solvable.two_layer_relu.growth import Growth
from thalweg.solvable.two_layer_relu.jacobian import FlowJacobian
from thalweg.solvable.two_layer_relu.kernel import (
    relu_kernel,
    relu_loss,
    student_loss,
)
from thalweg.solvable.two_layer_relu.landscape import ReLUHessian, ReLUTeacherStudent
from thalweg.solvable.two_layer_relu.moments import orthant_moments
from thalweg.solvable.two_layer_relu.orbits import same_function, same_orbit
from thalweg.solvable.two_layer_relu.reduction import Reduction, Spectrum
from thalweg.solvable.two_layer_relu.splitting import split_neuron
from thalweg.solvable.two_layer_relu.symmetry import (
    SymmetricPoint,
    block_embed,
    block_loss,
    continue_blocks,
    detect_blocks,
    solve_blocks,
)
from thalweg.solvable.two_layer_relu.zero_loss import count_cells

__all__ = [
    # the landscape
    "ReLUHessian",
    "ReLUTeacherStudent",
    # closed forms
    "relu_kernel",
    "relu_loss",
    "student_loss",
    # descents to minima, families, classification
    "KIND",
    "STATUS",
    "Classification",
    "Descents",
    "Family",
    "same_function",
    "same_orbit",
    "wilson",
    # symmetry-restricted students
    "SymmetricPoint",
    "block_embed",
    "block_loss",
    "continue_blocks",
    "detect_blocks",
    "solve_blocks",
    # overparametrized students
    "Growth",
    "count_cells",
    "split_neuron",
    # one-pass SGD in high dimension
    "FlowJacobian",
    "OverlapFlow",
    "OverlapTrajectory",
    "orthant_moments",
    # dimension reduction
    "Reduction",
    "Spectrum",
]
