"""Training in a subspace: θ = θ₀ + A z, with z alone trained."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError, NonFiniteLossError
from thalweg.instruments.minimizing import (
    BatchSize,
    Display,
    MakeOptimizer,
    cut,
    linear_model,
    minimize,
)
from thalweg.landscapes import Landscape, LinearMap, RestrictedLandscape


@dataclass(frozen=True)
class SubspaceRun:
    """Where training in a subspace ended.

    Args:
        point: θ₀ + A z.
        coordinates: z.
        loss: The loss at the point, over all data.
        losses: Loss of the batch of each step, before it.
    """

    point: Float[Tensor, " dim"]
    coordinates: Float[Tensor, " k"]
    loss: float
    losses: Float[np.ndarray, " steps"]


def train_in_subspace(
    land: Landscape,
    basis: LinearMap,
    *,
    at: Float[Tensor, " dim"] | None = None,
    steps: int = 1000,
    rate: float = 1e-2,
    optimizer: MakeOptimizer | None = None,
    batch_size: BatchSize = "auto",
    seed: int = 0,
    progress: Display = None,
) -> SubspaceRun:
    """Train the coordinates z of θ = θ₀ + A z, beginning at z = 0.

    The gradient in z is Aᵀ g: a step costs one gradient of a minibatch and one product
    with A and with Aᵀ.

    Args:
        land: The landscape.
        basis: A, a tensor (dim, k) or a linear map such as `ti.random_basis` gives.
        at: θ₀; the landscape's origin by default.
        steps: Steps of training.
        rate: Adam's rate on z is rate sqrt(dim / k), so that with columns of length 1
            a step changes a parameter by about `rate`, root mean square, whatever k.
        optimizer: Makes another optimizer from [z]; its own rate counts. The rate falls
            along half a cosine to zero.
        batch_size: Rows of a step; "auto" is 128 where the landscape has rows; None
            takes all.
        seed: Seed of the order of batches.
        progress: "auto", "plain", "none" or a display.

    Raises:
        InputError: A number is out of range.
        StructureError: The basis does not fit the landscape.
        NonFiniteLossError: Training meets a loss that is NaN or infinite.

    Source: "Measuring the Intrinsic Dimension of Objective Landscapes", C. Li,
    H. Farkhoor, R. Liu, J. Yosinski, 2018.

    Examples:
        >>> from thalweg.landscapes import Quadratic
        >>> bowl = Quadratic(torch.eye(3).double(), torch.ones(3).double())
        >>> first = torch.eye(3).double()[:, :1]  # the first coordinate alone
        >>> run = train_in_subspace(bowl.at(torch.zeros(3).double()), first)
        >>> round(run.loss, 6)  # the other two remain
        1.0
    """
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}")
    if not rate > 0:
        raise InputError(f"rate must be positive, got {rate}")
    whole = land.restrict(land.point(at), basis)
    dim, k = basis.shape
    z, losses = minimize(
        whole.point(),
        _objective,
        [piece.restrict(whole.base, basis) for piece in cut(land, batch_size)],
        steps=steps,
        rate=rate * (dim / max(k, 1)) ** 0.5,
        optimizer=optimizer,
        seed=seed,
        progress=progress,
    )
    return SubspaceRun(_embedded(whole, z), z, float(whole.loss(z)), losses)


def _objective(z: Tensor, land: Landscape, step: int) -> Tensor:
    value, model = linear_model(land, z)
    if not bool(torch.isfinite(value)):
        raise NonFiniteLossError(
            f"the loss is {float(value)} after {step} steps of training in the "
            "subspace: give a smaller `rate`, or begin elsewhere (`at=`)"
        )
    return model(z)


def _embedded(land: RestrictedLandscape, z: Tensor) -> Tensor:
    with torch.no_grad():
        return land.embed(z)
