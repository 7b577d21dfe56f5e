"""What follows from a spectral density: tr f(A) with its error, without products."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from thalweg.errors import InputError
from thalweg.instruments.densities import zero_level
from thalweg.instruments.estimates import Estimate

if TYPE_CHECKING:
    import xarray as xr


def spectral_sum(
    spectrum: "xr.Dataset", function: Callable[[np.ndarray], np.ndarray]
) -> Estimate:
    """Estimate tr f(A) as dim · mean over probes of Σ w_i f(θ_i).

    Args:
        spectrum: A result of `spectral_density`.
        function: f, on arrays.

    Returns:
        The estimate; its standard error is that of the spread over the probes, NaN with
        one probe. The error of the quadrature itself is not in it: it is 0 for
        polynomials of degree 2 steps - 1.
    """
    nodes, weights = spectrum["nodes"].values, spectrum["weights"].values
    terms = np.where(weights > 0, weights * function(nodes), 0.0)
    samples = int(spectrum.attrs["dim"]) * terms.sum(1)
    count = len(samples)
    stderr = samples.std(ddof=1) / np.sqrt(count) if count > 1 else np.nan
    spent = count * int(spectrum.attrs["steps"])
    return Estimate(float(samples.mean()), float(stderr), spent, "slq")


def spectral_moment(spectrum: "xr.Dataset", order: int) -> Estimate:
    """Estimate the mean of λ^order over the eigenvalues, tr(A^order) / dim.

    Raises:
        InputError: `order` is negative.
    """
    if order < 0:
        raise InputError(f"order must be at least 0, got {order}")
    dim = int(spectrum.attrs["dim"])
    return spectral_sum(spectrum, lambda theta: theta**order / dim)


def log_determinant(spectrum: "xr.Dataset", c: float = 0.0) -> Estimate:
    """Estimate log det(A + c I).

    Raises:
        InputError: A + c I is not positive definite: c is not above minus the smallest
            Ritz value.
    """
    _check_shift(spectrum, c)
    return spectral_sum(spectrum, lambda theta: np.log(theta + c))


def effective_dimension(spectrum: "xr.Dataset", c: float) -> Estimate:
    """Estimate tr A (A + c I)⁻¹, the number of eigenvalues well above c.

    Raises:
        InputError: A + c I is not positive definite.

    Source: MacKay, "Bayesian interpolation", 1992.
    """
    _check_shift(spectrum, c)
    return spectral_sum(spectrum, lambda theta: theta / (theta + c))


def mass_below_zero(spectrum: "xr.Dataset") -> Estimate:
    """Estimate the fraction of eigenvalues below zero (beyond working precision)."""
    dim, zero = int(spectrum.attrs["dim"]), zero_level(spectrum)
    return spectral_sum(spectrum, lambda theta: (theta < -zero) / dim)


def _check_shift(spectrum: "xr.Dataset", c: float) -> None:
    smallest = float(spectrum["nodes"].values[spectrum["weights"].values > 0].min())
    if not smallest + c > zero_level(spectrum):
        raise InputError(
            f"A + c I must be positive definite: the smallest Ritz value of A is "
            f"{smallest:.6g}, so c must be above {-smallest:.6g}, got {c}"
        )
