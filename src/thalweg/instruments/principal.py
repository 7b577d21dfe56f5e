"""Principal directions of a trajectory, without holding it in memory."""

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from thalweg.errors import InputError, StructureError
from thalweg.instruments.directions import Directions
from thalweg.landscapes import Layout
from thalweg.provenance import fingerprint

BLOCK = 1 << 20  # entries of one state held at a time


@runtime_checkable
class States(Protocol):
    """A sequence of recorded points, read by blocks of coordinates."""

    layout: Layout | None

    @property
    def shape(self) -> tuple[int, int]:
        """(states, dim)."""

    def columns(self, start: int, stop: int) -> Tensor:
        """Return coordinates start to stop of every state, (states, stop - start)."""


def pca_directions(
    trajectory: States | Tensor | Sequence[Tensor],
    k: int,
    center: Literal["final", "mean", "first"] = "final",
) -> Directions:
    """Return the k principal directions of a trajectory, of length 1.

    With X the states minus the center, (m, dim): the Gram matrix K = X Xᵀ in float64,
    K = Σ λ_j u_j u_jᵀ, and v_j = Xᵀ u_j / sqrt(λ_j), the entry of largest magnitude
    made positive. `.values` holds λ_j / Σ λ over all components. Streamed over blocks
    of coordinates: m² dim operations, memory m times the block.

    Args:
        trajectory: A `ti.Trajectory`, a tensor (m, dim), or a sequence of points.
        k: Number of directions.
        center: The point subtracted, which becomes the plane's origin.

    Raises:
        InputError: `center` is unknown, k exceeds the rank, or a state is not finite.
    """
    if center not in ("final", "mean", "first"):
        raise InputError(f"center must be 'final', 'mean' or 'first', got {center!r}")
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    states = trajectory if isinstance(trajectory, States) else _Rows(trajectory)
    m, dim = states.shape
    gram = torch.zeros(m, m, dtype=torch.float64)
    origins, dtype, device = [], torch.float32, torch.device("cpu")
    for block in _blocks(states):
        middle = _center(block, center)
        origins.append(middle.to(block.dtype))
        rows = (block.double() - middle).cpu()
        gram += rows @ rows.T
        dtype, device = block.dtype, block.device
    if not bool(torch.isfinite(gram).all()):
        raise InputError("the trajectory has states that are NaN or infinite")
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    tolerance = 10 * m * torch.finfo(torch.float64).eps * values[0]
    rank = int((values > tolerance).sum())
    if k > rank:
        raise InputError(
            f"k={k} principal directions were asked of a trajectory of rank {rank} "
            f"({m} states around the {center})"
        )
    shares = (values / values.sum())[:k]
    loadings = vectors[:, :k] / values[:k].sqrt()
    basis = torch.empty(dim, k, dtype=torch.float64, device=device)
    start = 0
    for block in _blocks(states):
        rows = block.double() - _center(block, center)
        basis[start : start + block.shape[1]] = rows.T @ loadings.to(device)
        start += block.shape[1]
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    basis *= largest.sign()
    origin = torch.cat(origins)
    return Directions(
        basis.to(dtype),
        origin=origin,
        layout=states.layout,
        kind="pca",
        normalize="unit",
        labels=tuple(
            f"PC{j + 1} ({100 * float(share):.1f} % variance)"
            for j, share in enumerate(shares)
        ),
        values=shares,
        reference=fingerprint(origin),
    )


class _Rows:
    """States that are in memory already."""

    layout: Layout | None = None

    def __init__(self, points: Tensor | Sequence[Tensor]) -> None:
        if not isinstance(points, Tensor):
            if not points or any(p.shape != points[0].shape for p in points):
                raise StructureError("a trajectory is a sequence of points of one size")
            points = torch.stack(list(points))
        if points.ndim != 2 or len(points) == 0:
            raise StructureError(
                f"a trajectory has shape (states, dim), got {tuple(points.shape)}"
            )
        self.points = points

    @property
    def shape(self) -> tuple[int, int]:
        m, dim = self.points.shape
        return m, dim

    def columns(self, start: int, stop: int) -> Tensor:
        return self.points[:, start:stop]


def _blocks(states: States) -> Iterator[Tensor]:
    m, dim = states.shape
    width = max(1, BLOCK // m)
    for start in range(0, dim, width):
        yield states.columns(start, min(start + width, dim))


def _center(block: Tensor, center: str) -> Tensor:
    if center == "mean":
        return block.double().mean(0)
    return block[-1 if center == "final" else 0].double()
