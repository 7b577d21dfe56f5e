"""Frames: the Hessian at several points, each in directions that decouple it.

All eigenpairs where the dimension is small, what a Krylov space of the gradient tells
where it is not. What step to take in a frame is decided by the callers.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.instruments.lanczos import Lanczos
from thalweg.landscapes import Landscape, norm
from thalweg.seeding import normal

DENSE = 500  # dimension up to which Hessians are diagonalized
KRYLOV = 60  # products that a frame takes above it,
KRYLOV_EACH = 20  # and for every eigenvector that is wanted besides


class Frames(NamedTuple):
    """A frame at each of n points.

    Args:
        values: Curvatures.
        slopes: The gradient's coordinates, in float64 as the values are.
        vectors: Orthonormal columns; a step is a combination of them.
    """

    values: Float[Tensor, "points size"]
    slopes: Float[Tensor, "points size"]
    vectors: Float[Tensor, "points dim size"]

    def combine(self, s: Float[Tensor, "points size"]) -> Float[Tensor, "points dim"]:
        """Return Σ s_i v_i at each point."""
        return (self.vectors @ s[..., None].to(self.vectors))[..., 0]

    def pull_back(self, g: Float[Tensor, "points dim"]) -> Float[Tensor, "points size"]:
        """Return the coordinates of g at each point."""
        return (self.vectors.mT @ g[..., None].to(self.vectors))[..., 0].double()

    def rows(self, keep: Tensor) -> "Frames":
        """Return the frames at some of the points."""
        return Frames(*(part[keep] for part in self))

    def updated(self, rows: Tensor, fresh: "Frames") -> "Frames":
        """Return the frames with those of the rows given replaced."""
        if len(rows) == len(self.values):
            return fresh
        return Frames(
            *(
                old.index_copy(0, rows, new)
                for old, new in zip(self, fresh, strict=True)
            )
        )


def eigenframes(
    land: Landscape,
    points: Float[Tensor, "points dim"],
    gradients: Float[Tensor, "points dim"],
    lowest: int = 0,
    known: Float[Tensor, "1 dim size"] | None = None,
) -> Frames:
    """Return eigenpairs of the Hessians in ascending order.

    Above dimension `DENSE` Ritz pairs of the space that the gradient, `lowest` random
    or known vectors, and the Hessian span; one point only.
    """
    if land.dim <= DENSE:
        return _dense(land, points, gradients)
    starts = [gradients[0]]
    if known is not None:
        starts += known[0, :, :lowest].unbind(1)
    else:
        starts += [
            normal((land.dim,), 0, "frame", i, like=points) for i in range(lowest)
        ]
    process, g = _krylov(land, points, starts)
    values, S, _ = process.ritz()
    return _one(process, values, g * S[0], S)


def singular_frames(
    land: Landscape,
    points: Float[Tensor, "points dim"],
    gradients: Float[Tensor, "points dim"],
) -> Frames:
    """Return frames in which |H s + g| is least, v_i and u_i with H v_i = σ_i u_i.

    The slopes are g·u_i. Up to dimension `DENSE` these are the eigenpairs; above it the
    singular vectors of H on a Krylov space of the gradient (as MINRES has it), of one
    point only.
    """
    if land.dim <= DENSE:
        return _dense(land, points, gradients)
    process, g = _krylov(land, points, [gradients[0]])
    U, sizes, Vt = np.linalg.svd(process.rectangle(), full_matrices=False)
    return _one(process, sizes, g * U[0], Vt.T)


def dense_hessians(
    land: Landscape, points: Float[Tensor, "points dim"]
) -> Float[Tensor, "points dim dim"]:
    """Return the Hessians in float64, all at once where autograd makes them."""
    if type(land).hessian is not Landscape.hessian:
        every = []
        for point in points:
            with land.hessian(point) as H:
                every.append(H.dense().double())
        return torch.stack(every)
    with torch.enable_grad():
        at = points.clone().requires_grad_()
        g = torch.autograd.grad(
            land.loss(at).sum(), at, create_graph=True, materialize_grads=True
        )[0]
        if not g.requires_grad:  # linear
            return points.new_zeros(*points.shape, land.dim).double()
        columns = [
            torch.autograd.grad(
                g[:, j].sum(), at, retain_graph=True, materialize_grads=True
            )[0]
            for j in range(land.dim)
        ]
    stacked = torch.stack(columns, dim=-1).double()
    return (stacked + stacked.mT) / 2


def _dense(land: Landscape, points: Tensor, gradients: Tensor) -> Frames:
    values, vectors = torch.linalg.eigh(dense_hessians(land, points))
    slopes = (vectors.mT @ gradients.double()[..., None])[..., 0]
    return Frames(values, slopes, vectors)


def _krylov(
    land: Landscape, points: Tensor, starts: list[Tensor]
) -> tuple[Lanczos, float]:
    """Return a Krylov space whose first vector is the gradient's, and its norm."""
    rows = KRYLOV + KRYLOV_EACH * (len(starts) - 1)
    with land.hessian(points[0]) as H:
        process = Lanczos(H, torch.stack(starts, dim=1), rows=rows + len(starts))
        while process.processed < min(rows, land.dim):
            process.step()
    return process, norm(starts[0])


def _one(
    process: Lanczos, values: np.ndarray, slopes: np.ndarray, S: np.ndarray
) -> Frames:
    vectors = process.vectors(S)
    return Frames(_row(values, vectors), _row(slopes, vectors), vectors[None])


def _row(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(values.copy())[None].to(like.device)
