"""Curvature of a network's loss over its data, as operators."""

from thalweg.landscapes.curvature.examples import (
    EmpiricalFisherOperator,
    GradientCovariance,
)
from thalweg.landscapes.curvature.gauss_newton import (
    FisherOperator,
    GaussNewtonOperator,
    JacobianOperator,
)
from thalweg.landscapes.curvature.graphs import Cache, free_memory
from thalweg.landscapes.curvature.hessian import HessianMethod, NetworkHessian
from thalweg.landscapes.curvature.methods import CurvatureMethods
from thalweg.landscapes.curvature.noise import NoiseMethod, NoiseScale, noise_scale

__all__ = [
    "Cache",
    "CurvatureMethods",
    "EmpiricalFisherOperator",
    "FisherOperator",
    "GaussNewtonOperator",
    "GradientCovariance",
    "HessianMethod",
    "JacobianOperator",
    "NetworkHessian",
    "NoiseMethod",
    "NoiseScale",
    "free_memory",
    "noise_scale",
]
