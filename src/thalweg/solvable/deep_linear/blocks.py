"""Strengths of modes, and of blocks of modes where the teacher repeats a strength.

Inside a block of equal strengths the singular basis is not unique; a block's trace and
norms are.
"""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import DegeneracyWarning
from thalweg.solvable.deep_linear.landscape import Modes


def strengths(
    C: Float[Tensor, "*batch r r"], modes: Modes
) -> Float[Tensor, "*batch blocks"]:
    """Return the mean diagonal of every block of the mode matrix; s_a of a lone one."""
    diagonal = C.diagonal(dim1=-2, dim2=-1)
    if not modes.blocks:
        return diagonal  # of no mode
    return torch.stack([diagonal[..., b].mean(-1) for b in modes.blocks], dim=-1)


def misalignment(
    C: Float[Tensor, "*batch r r"], modes: Modes
) -> Float[Tensor, "*batch"]:
    """Return the Frobenius norm of the mode matrix off its diagonal blocks."""
    inside = torch.zeros(C.shape[-2:], dtype=torch.bool, device=C.device)
    for b in modes.blocks:
        inside[b, b] = True
    return torch.linalg.matrix_norm(C.masked_fill(inside, 0.0))


def warn_of_blocks(modes: Modes, stacklevel: int) -> None:
    """Warn the caller `stacklevel` frames up where quantities are those of blocks."""
    if modes.repeated:
        groups = [list(range(b.start, b.stop)) for b in modes.blocks]
        warnings.warn(
            "the teacher repeats singular values, and the modes of equal ones are not "
            f"unique: quantities are those of the blocks {groups}",
            DegeneracyWarning,
            stacklevel=stacklevel,
        )
