"""What is measured: scalar functions on a real vector space and their curvature."""

from thalweg.landscapes._batches import Batch, Batches
from thalweg.landscapes.base import Landscape, RestrictedLandscape
from thalweg.landscapes.batch_norm import (
    has_batch_norm,
    interpolate_buffers,
    recalibrate,
)
from thalweg.landscapes.between import BetweenLandscape
from thalweg.landscapes.checkpoints import read_checkpoint
from thalweg.landscapes.curvature import (
    EmpiricalFisherOperator,
    FisherOperator,
    GaussNewtonOperator,
    GradientCovariance,
    NetworkHessian,
    NoiseScale,
    free_memory,
)
from thalweg.landscapes.curves import Curve, CurveLandscape, NetworkCurve
from thalweg.landscapes.inner_products import coefficients, gram, inner, norm
from thalweg.landscapes.inputs import InputLandscape
from thalweg.landscapes.layout import Block, Layout
from thalweg.landscapes.linear_maps import LinearMap, column, combine, pull_back
from thalweg.landscapes.network import NetworkLandscape
from thalweg.landscapes.operators import (
    FunctionOperator,
    IdentityOperator,
    LinearOperator,
    MatrixOperator,
)
from thalweg.landscapes.parameters import Parameters
from thalweg.landscapes.quadratic import Quadratic
from thalweg.landscapes.secant import secant_curvature
from thalweg.landscapes.targets import Recipe, Target, load_target

__all__ = [
    # landscapes
    "BetweenLandscape",
    "InputLandscape",
    "Landscape",
    "NetworkLandscape",
    "Quadratic",
    "RestrictedLandscape",
    # curves
    "Curve",
    "CurveLandscape",
    "NetworkCurve",
    # buffers
    "has_batch_norm",
    "interpolate_buffers",
    "recalibrate",
    # data as the same batches in every pass
    "Batch",
    "Batches",
    # TARGET and checkpoints
    "Recipe",
    "Target",
    "load_target",
    "read_checkpoint",
    # how a point is read
    "Block",
    "Layout",
    "Parameters",
    # symmetric operators
    "FunctionOperator",
    "IdentityOperator",
    "LinearOperator",
    "MatrixOperator",
    # curvature of a network
    "EmpiricalFisherOperator",
    "FisherOperator",
    "GaussNewtonOperator",
    "GradientCovariance",
    "NetworkHessian",
    "NoiseScale",
    "free_memory",
    "secant_curvature",
    # bases
    "LinearMap",
    "column",
    "combine",
    "pull_back",
    # sums over long vectors
    "coefficients",
    "gram",
    "inner",
    "norm",
]
