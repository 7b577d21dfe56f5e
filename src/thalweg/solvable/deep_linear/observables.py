"""What is seen along a run: modes, rank, balance, drift against noise.

Applies to points of any origin: `DeepLinear.gradient_flow`, the points that
`DeepLinear.simulate_sgd` keeps, or a user's own training.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thalweg.errors import InputError
from thalweg.solvable.deep_linear.blocks import misalignment, strengths, warn_of_blocks
from thalweg.solvable.deep_linear.landscape import DeepLinear, Modes


@dataclass(frozen=True)
class Observables:
    """Observables of points of a deep linear network, each with the points' axes.

    Those of modes are None where Sigma does not let them decouple. Where the teacher
    repeats a strength, its modes are taken as one block.

    Attributes:
        loss: Excess loss.
        strengths: Mean diagonal of the mode matrix in every block (..., blocks).
        misalignment: Frobenius norm of the mode matrix off its diagonal blocks.
        cosines: |u_aᵀ u_a(W)|, the alignment of the teacher's left singular vectors
            with those of the product in the order of its singular values; of a block,
            the root mean square cosine of the angles between the spaces.
        singular_values: Of the product, descending.
        stable_rank: |W|_F² / |W|_2²; NaN where W = 0.
        rank: Singular values above `threshold` times the teacher's largest.
        imbalance: |W_{l+1}ᵀ W_{l+1} - W_l W_lᵀ|_F (..., L-1).
        drift: Norm of the gradient of the loss.
        noise: Trace of the covariance of the gradient of a batch.
    """

    loss: Float[Tensor, "*batch"]
    strengths: Float[Tensor, "*batch blocks"] | None
    misalignment: Float[Tensor, "*batch"] | None
    cosines: Float[Tensor, "*batch blocks"] | None
    singular_values: Float[Tensor, "*batch values"]
    stable_rank: Float[Tensor, "*batch"]
    rank: Int[Tensor, "*batch"]
    imbalance: Float[Tensor, "*batch gaps"]
    drift: Float[Tensor, "*batch"]
    noise: Float[Tensor, "*batch"]

    @property
    def ratio(self) -> Float[Tensor, "*batch"]:
        """drift² / noise: below one the noise of a single step outweighs its drift."""
        return self.drift.square() / self.noise


def observe(
    land: DeepLinear,
    points: Float[Tensor, "*batch dim"],
    *,
    B: int = 1,
    threshold: float = 0.05,
) -> Observables:
    """Observe points; costs a gradient and a singular value decomposition of each.

    Args:
        land: A deep linear network.
        points: Flat points.
        B: Batch size of the noise.
        threshold: Fraction of the teacher's largest strength from which on a singular
            value counts in the rank.

    Raises:
        InputError: B < 1 or a threshold outside (0, 1).

    Warns:
        DegeneracyWarning: Equal strengths: their modes are not unique.
    """
    largest = rank_level(land, threshold)
    W = land.product(points).double()
    U, values, _ = torch.linalg.svd(W, full_matrices=False)
    loss, gradient = land.value_and_gradient(points)
    gaps = [torch.linalg.matrix_norm(gap) for gap in land.balance(points)]
    return Observables(
        loss,
        *_of_modes(land, points, U),
        values,
        values.square().sum(-1) / values[..., 0].square(),
        (values > largest).sum(-1),
        torch.stack(gaps, dim=-1) if gaps else points.new_empty(*loss.shape, 0),
        gradient.norm(dim=-1),
        land.noise_trace(points, B),
    )


def rank_level(land: DeepLinear, threshold: float) -> float:
    """Return the singular value from which on one counts in the rank.

    Raises:
        InputError: A threshold outside (0, 1).
    """
    if not 0 < threshold < 1:
        raise InputError(f"threshold must lie in (0, 1), got {threshold}")
    return threshold * float(torch.linalg.matrix_norm(land.teacher, 2))


def _of_modes(
    land: DeepLinear, points: Tensor, U: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return strengths, misalignment and cosines."""
    if not land.decoupled:
        return None, None, None
    modes = land.modes
    warn_of_blocks(modes, 4)
    C = land.mode_matrix(points).double()
    return strengths(C, modes), misalignment(C, modes), _cosines(U, modes)


def _cosines(U: Tensor, modes: Modes) -> Tensor:
    """Return |U_bᵀ U_b(W)|_F / √|b| for every block b."""
    r = min(len(modes.S), U.shape[-1])
    overlaps = modes.U[:, :r].mT @ U[..., :r]
    blocks = [b for b in modes.blocks if b.start < r]
    values = [
        torch.linalg.matrix_norm(overlaps[..., b, b]) / (b.stop - b.start) ** 0.5
        for b in blocks
    ]
    return torch.stack(values, dim=-1) if values else U.new_empty(*U.shape[:-2], 0)
