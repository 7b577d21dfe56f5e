"""Directions in a landscape: a frozen basis with its provenance.

How directions are made stands beside: `local_directions` (random, gradient, Hessian),
`planes` (through checkpoints), `principal` (of a trajectory), `normalization`.
"""

import warnings
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import DirectionWarning, InputError, StructureError
from thalweg.landscapes import (
    Landscape,
    Layout,
    LinearMap,
    LinearOperator,
    column,
    combine,
    pull_back,
)
from thalweg.provenance import fingerprint

# Schemes that read the point they scale by.
POINT_SCHEMES = ("filter", "layer", "model", "weight")


class Projection(NamedTuple):
    """Coordinates of points in a plane, and how much of each lies outside of it."""

    coordinates: Float[Tensor, "*batch k"]
    residual: Float[Tensor, "*batch"]


@dataclass(frozen=True)
class Directions:
    """k directions (the columns of `basis`) and where they come from.

    Args:
        basis: Tensor (dim, k), or a linear map.
        origin: The point the plane is tied to, or None (random, Hessian and gradient
            directions serve every point).
        layout: How a column is read.
        kind: How they were made: "random", "hessian", "pca", "plane", ...
        seed: Seed of random directions.
        normalize: Scheme of their normalization, or "none".
        labels: One text a column: eigenvalue, explained variance, ...
        values: The number in each label, in float64, where there is one.
        anchors: Named points in the plane -> their coordinates (k,).
        buffers: Floating buffers of the checkpoints that span the plane, in the order
            of the anchors, the origin's first; None where there are none.
        reference: Fingerprint of the point they were scaled or computed at.
    """

    basis: Tensor | LinearMap
    origin: Float[Tensor, " dim"] | None = None
    layout: Layout | None = None
    kind: str = "given"
    seed: int | None = None
    normalize: str = "none"
    labels: tuple[str, ...] = ()
    values: Float[Tensor, " k"] | None = None
    anchors: dict[str, Tensor] = field(default_factory=dict)
    buffers: tuple[dict[str, Tensor], ...] | None = None
    reference: str | None = None

    @property
    def dim(self) -> int:
        """Dimension of the space."""
        return self.basis.shape[0]

    @property
    def k(self) -> int:
        """Number of directions."""
        return self.basis.shape[1]

    @cached_property
    def gram(self) -> Float[Tensor, "k k"]:
        """Inner products of the directions, in float64."""
        if isinstance(self.basis, Tensor):
            dense = self.basis.double()
            return dense.T @ dense
        like = torch.empty(0, dtype=torch.float64)
        rows = [
            pull_back(self.basis, column(self.basis, j, like)) for j in range(self.k)
        ]
        return torch.stack(rows)

    def project(
        self,
        points: Float[Tensor, "*batch dim"],
        origin: Float[Tensor, " dim"] | None = None,
    ) -> Projection:
        """Return the coordinates of `points` in the plane and what they leave out.

        Solves G c = Dᵀ(θ - θ₀) with the Gram matrix G; the residual is
        |θ - θ₀ - D c| / |θ - θ₀|, 0 for a point in the plane, 1 for one orthogonal
        to it. All in float64.

        Args:
            points: Points of the landscape.
            origin: θ₀; the plane's own origin by default.

        Raises:
            InputError: There is no origin, or the directions are dependent.
            StructureError: The points have another dimension.
        """
        origin = self.origin if origin is None else origin
        if origin is None:
            raise InputError(
                f"{self.kind} directions are tied to no point: give `origin=`"
            )
        if points.shape[-1] != self.dim:
            raise StructureError(
                f"points of dimension {points.shape[-1]} do not fit directions of "
                f"dimension {self.dim}"
            )
        basis = self.basis
        basis = basis.double() if isinstance(basis, Tensor) else basis
        displacement = points.double() - origin.double()
        gram = self.gram
        scale = gram.diagonal().clamp(min=torch.finfo(gram.dtype).tiny).sqrt()
        scaled = gram / (scale[:, None] * scale)
        if self.k and float(torch.linalg.eigvalsh(scaled)[0]) < 1e-12:
            raise InputError("the directions are linearly dependent, or one is zero")
        inner = pull_back(basis, displacement) / scale
        flat = torch.linalg.solve(scaled, inner.reshape(-1, self.k).T).T
        coordinates = flat.reshape(inner.shape) / scale
        left = (displacement - combine(basis, coordinates)).norm(dim=-1)
        length = displacement.norm(dim=-1)
        residual = torch.where(length > 0, left / length, torch.zeros_like(left))
        return Projection(coordinates, residual)

    def affine(
        self, coordinates: Float[Tensor, "*batch k"]
    ) -> Float[Tensor, "*batch k+1"]:
        """Return the affine coordinates over the checkpoints that span the plane.

        Weight w_0 belongs to the origin's checkpoint, w_j to the j-th further anchor;
        they add up to 1. Buffers move by these weights.

        Raises:
            InputError: The plane is not spanned by k + 1 checkpoints.
        """
        if len(self.anchors) != self.k + 1:
            raise InputError(
                f"{self.kind} directions are not spanned by {self.k + 1} checkpoints"
            )
        first, *others = (a.double() for a in self.anchors.values())
        corners = torch.stack([corner - first for corner in others], dim=1)
        flat = (coordinates.double() - first).reshape(-1, self.k)
        weights = torch.linalg.solve(corners, flat.T).T
        weights = torch.cat([1 - weights.sum(1, keepdim=True), weights], dim=1)
        return weights.reshape(*coordinates.shape[:-1], self.k + 1)

    def describe(self) -> dict[str, object]:
        """Return the provenance that a result keeps."""
        return {
            "kind": self.kind,
            "k": self.k,
            "seed": self.seed,
            "normalize": self.normalize,
            "labels": self.labels,
            "values": self.values,
            "anchors": self.anchors,
            "reference": self.reference,
            "fingerprint": self.fingerprint,
        }

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the columns, and of the origin where there is one."""
        if isinstance(self.basis, Tensor):
            return fingerprint(self.basis, self.origin)
        return fingerprint(self.gram, self.origin)


def as_directions(
    directions: Directions | LinearMap, land: Landscape | None = None
) -> Directions:
    """Return `directions` as Directions; a tensor or linear map (dim, k) is wrapped.

    Raises:
        StructureError: They do not belong to a space of the landscape's dimension.
        InputError: An entry is not finite.
    """
    if not isinstance(directions, Directions):
        shape = tuple(directions.shape)
        if isinstance(directions, Tensor) and len(shape) == 1:
            directions = directions[:, None]
        elif len(shape) != 2:
            raise StructureError(f"directions must have shape (dim, k), got {shape}")
        directions = Directions(directions, layout=land.layout if land else None)
    if land is not None and directions.dim != land.dim:
        raise StructureError(
            f"directions of dimension {directions.dim} do not fit a landscape of "
            f"dimension {land.dim}"
        )
    basis = directions.basis
    if isinstance(basis, Tensor) and not bool(torch.isfinite(basis).all()):
        raise InputError("directions must be finite, an entry is NaN or infinite")
    return directions


def resolve_point(
    land: Landscape,
    directions: Directions | LinearMap,
    at: Float[Tensor, " dim"] | None = None,
) -> Float[Tensor, " dim"]:
    """Return the point an instrument works at: `at`, the plane's origin, the land's.

    Directions that were scaled by the weights of another point give one warning.

    Raises:
        InputError: None of the three is there.
    """
    directions = as_directions(directions, land)
    if at is None and directions.origin is not None:
        at = directions.origin
    point = land.point(at)
    scaled = directions.normalize in POINT_SCHEMES
    if scaled and directions.reference not in (None, fingerprint(point)):
        warnings.warn(
            f"these directions were {directions.normalize}-normalized at another "
            "point: their lengths do not belong to this one; normalize again with "
            "`ti.normalize(directions, landscape, at=point)` to compare widths",
            DirectionWarning,
            stacklevel=3,
        )
    return point


def orthogonalize(
    directions: Directions, metric: Tensor | LinearOperator | None = None
) -> Directions:
    """Return orthogonal directions of the same lengths, spanning the same plane.

    Modified Gram-Schmidt, twice, in float64: column j loses its parts along the
    columns before it and gets its own length back. Filter norms do not survive it,
    and rescaling afterwards breaks orthogonality: normalize first.

    Args:
        directions: Directions with a dense basis.
        metric: M of the inner product <u, Mv>: a positive diagonal (dim,) or an
            operator; Euclidean by default.

    Raises:
        InputError: A direction depends on those before it, the metric is not
            positive, or the basis is not a tensor.
    """
    if not isinstance(directions.basis, Tensor):
        raise InputError("orthogonalize needs a dense basis, a tensor (dim, k)")
    if isinstance(metric, Tensor) and not bool((metric > 0).all()):
        raise InputError("metric must be positive in every entry")
    basis = directions.basis.double()
    unit: list[tuple[Tensor, Tensor]] = []
    columns = []
    for j in range(directions.k):
        v = basis[:, j]
        length = v.dot(_apply(metric, v)).sqrt()
        for _ in range(2):
            for u, weighted in unit:
                v = v - u * weighted.dot(v)
        rest = v.dot(_apply(metric, v)).sqrt()
        if not rest > 1e-8 * length:
            raise InputError(f"direction {j} depends on the directions before it")
        u = v / rest
        unit.append((u, _apply(metric, u)))
        columns.append(u * length)
    result = torch.stack(columns, dim=1) if columns else basis
    return replace(
        directions,
        basis=result.to(directions.basis.dtype),
        normalize="unit"
        if directions.normalize == "unit" and metric is None
        else "none",
        anchors={},
        buffers=None,
        labels=(),
        values=None,
    )


def _apply(metric: Tensor | LinearOperator | None, v: Tensor) -> Tensor:
    if metric is None:
        return v
    if isinstance(metric, Tensor):
        return metric.to(v) * v
    return (metric @ v).to(v)
