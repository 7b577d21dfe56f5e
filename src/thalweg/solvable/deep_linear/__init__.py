"""Deep linear networks on a linear teacher, solved exactly.

Modes decouple exactly under gradient flow from aligned weights. Under SGD they do only
for the noise projected on the diagonal of the mode matrix: true minibatch noise also
pushes the weights off the aligned manifold.
"""

from thalweg.solvable.deep_linear.critical_points import (
    critical_point,
    is_strict,
    minimum_curvature,
    negative_eigenvalues,
    saddle_index,
)
from thalweg.solvable.deep_linear.diffusion import (
    NoisePeak,
    PeakTimes,
    gradient_variance,
    mode_diffusion,
    mode_drift,
    noise_peak,
    peak_times,
)
from thalweg.solvable.deep_linear.landscape import (
    DeepLinear,
    DeepLinearHessian,
    Modes,
    mse_learning_rate,
)
from thalweg.solvable.deep_linear.matrix_flow import two_layer_flow
from thalweg.solvable.deep_linear.matrix_simulation import SGDEnsemble
from thalweg.solvable.deep_linear.mode_flow import (
    escape_time,
    learning_time,
    mode_strength,
)
from thalweg.solvable.deep_linear.mode_simulation import (
    ModeEnsemble,
    simulate_modes,
)
from thalweg.solvable.deep_linear.noise import (
    ExampleGradientCovariance,
    GaussianGradientCovariance,
)
from thalweg.solvable.deep_linear.observables import Observables, observe
from thalweg.solvable.deep_linear.plateaus import (
    Plateau,
    find_plateaus,
    initial_strengths,
)
from thalweg.solvable.deep_linear.stationary import (
    PointMass,
    StationaryDensity,
    StationaryMoments,
    approach_rate,
    collapse_rate,
    effective_temperature,
    retention_probability,
    stationary_density,
    stationary_moments,
)

__all__ = [
    # the landscape
    "DeepLinear",
    "DeepLinearHessian",
    "Modes",
    "mse_learning_rate",
    # gradient flow
    "escape_time",
    "learning_time",
    "mode_strength",
    "two_layer_flow",
    # minibatch noise
    "ExampleGradientCovariance",
    "GaussianGradientCovariance",
    "NoisePeak",
    "PeakTimes",
    "gradient_variance",
    "mode_diffusion",
    "mode_drift",
    "noise_peak",
    "peak_times",
    # the stationary law
    "PointMass",
    "StationaryDensity",
    "StationaryMoments",
    "approach_rate",
    "collapse_rate",
    "effective_temperature",
    "retention_probability",
    "stationary_density",
    "stationary_moments",
    # simulation
    "ModeEnsemble",
    "SGDEnsemble",
    "simulate_modes",
    # what is seen along a run
    "Observables",
    "Plateau",
    "find_plateaus",
    "initial_strengths",
    "observe",
    # critical points
    "critical_point",
    "is_strict",
    "minimum_curvature",
    "negative_eigenvalues",
    "saddle_index",
]
