"""The one idea: a landscape is a scalar function on a real vector space.

A closed-form landscape overrides everything it knows; any other needs `loss` alone,
differentiable by torch, and the rest follows here.
"""

import copy
from abc import ABC, abstractmethod
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError, LossError, StructureError
from thalweg.landscapes.layout import Layout
from thalweg.landscapes.linear_maps import (
    LinearMap,
    check_basis,
    combine,
    pull_back,
)
from thalweg.landscapes.operators import LinearOperator, RestrictedOperator


class Landscape(ABC):
    """A scalar loss over a real vector space; a point's last axis has length `dim`.

    Args:
        dim: Dimension of the space.
        origin: The point it stands at, or None where none is natural.
        layout: How a point is read; one block by default.
        dtype: dtype of its points; the origin's where there is one.
        device: Device of its points; the origin's where there is one.
    """

    def __init__(
        self,
        dim: int,
        *,
        origin: Float[Tensor, " dim"] | None = None,
        layout: Layout | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dim = dim
        self.layout = Layout.single(dim) if layout is None else layout
        self.dtype = dtype if origin is None else origin.dtype
        self.device = torch.device(device) if origin is None else origin.device
        self.origin = None if origin is None else self._checked(origin)

    @abstractmethod
    def loss(self, points: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        """Return the loss at each point; rows are independent of each other."""

    def gradient(
        self, points: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch dim"]:
        """Return the gradient at each point."""
        return self.value_and_gradient(points)[1]

    def value_and_gradient(
        self, points: Float[Tensor, "*batch dim"]
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch dim"]]:
        """Return loss and gradient at each point from one pass."""

        def total(p: Tensor) -> tuple[Tensor, Tensor]:
            values = self.loss(p)
            return values.sum(), values

        gradients, values = torch.func.grad(total, has_aux=True)(points)
        return values, gradients

    def hessian(self, point: Float[Tensor, " dim"]) -> LinearOperator:
        """Return the Hessian at one point as a symmetric operator."""
        return AutogradHessian(self, self._checked(point))

    def restrict(
        self, origin: Float[Tensor, " dim"], basis: LinearMap
    ) -> "RestrictedLandscape":
        """Return the landscape c -> loss(origin + basis @ c), standing at c = 0.

        Args:
            origin: A point of this landscape.
            basis: Tensor (dim, k), or a linear map with `.shape`, `@` and `.T @`.
        """
        return RestrictedLandscape(self, origin, basis)

    def at(self, point: Float[Tensor, " dim"]) -> Self:
        """Return the same landscape standing at another point."""
        other = copy.copy(self)
        other.origin = self._checked(point)
        return other

    def point(self, at: Float[Tensor, " dim"] | None = None) -> Float[Tensor, " dim"]:
        """Return `at`, or the origin where `at` is None.

        Raises:
            InputError: Neither is given.
        """
        if at is not None:
            return self._checked(at)
        if self.origin is None:
            raise InputError(
                f"this {type(self).__name__} stands nowhere: give `at=`, or use "
                "`landscape.at(point)`"
            )
        return self.origin

    def describe(self) -> dict[str, object]:
        """Return what identifies this landscape in a result: class, dimension, data."""
        return {"landscape": type(self).__name__, "dim": self.dim}

    def _checked(self, point: Tensor) -> Tensor:
        if point.ndim != 1 or point.shape[0] != self.dim:
            raise StructureError(
                f"a point of this landscape has shape ({self.dim},), got "
                f"{tuple(point.shape)}"
            )
        return point.detach()

    def _checked_points(self, points: Tensor) -> Tensor:
        """Refuse a batch of points that closed forms would cast without a word."""
        if not points.is_floating_point():
            raise InputError(
                f"points must have a real floating dtype, got {points.dtype}"
            )
        if points.ndim < 1 or points.shape[-1] != self.dim:
            raise StructureError(
                f"points of this landscape have shape (..., {self.dim}), got "
                f"{tuple(points.shape)}"
            )
        return points

    def __add__(self, other: "Landscape") -> "Landscape":
        return SumLandscape(self, other)

    def __mul__(self, scale: float) -> "Landscape":
        return ScaledLandscape(self, float(scale))

    __rmul__ = __mul__

    def __sub__(self, other: "Landscape") -> "Landscape":
        return self + other * -1.0


class RestrictedLandscape(Landscape):
    """A landscape on an affine subspace: c -> loss(origin + basis @ c)."""

    def __init__(self, full: Landscape, origin: Tensor, basis: LinearMap) -> None:
        check_basis(basis, full.dim)
        base = full.point(origin)
        if isinstance(basis, Tensor):
            basis = basis.to(dtype=base.dtype, device=base.device)
        super().__init__(basis.shape[1], origin=base.new_zeros(basis.shape[1]))
        self.full, self.base, self.basis = full, base, basis

    def embed(self, points: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch dim"]:
        """Return the points of the full landscape."""
        return self.base + combine(self.basis, points)

    def loss(self, points: Tensor) -> Tensor:
        """Return the full landscape's loss at the embedded points."""
        return self.full.loss(self.embed(points))

    def value_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and basisᵀ gradient."""
        values, gradients = self.full.value_and_gradient(self.embed(points))
        return values, pull_back(self.basis, gradients)

    def hessian(self, point: Tensor) -> LinearOperator:
        """Return basisᵀ H basis as an operator of dimension k."""
        return RestrictedOperator(
            self.full.hessian(self.embed(self._checked(point))),
            self.basis,
            self.layout,
        )

    def describe(self) -> dict[str, object]:
        """Return the full landscape's description and the dimension."""
        return super().describe() | {"full": self.full.describe()}


class SumLandscape(Landscape):
    """The sum of two landscapes of one dimension; loss, gradient and Hessian add up."""

    def __init__(self, first: Landscape, second: Landscape) -> None:
        if first.dim != second.dim:
            raise StructureError(
                f"landscapes of dimensions {first.dim} and {second.dim} do not add"
            )
        origins = first.origin, second.origin
        agree = all(o is not None for o in origins) and torch.equal(*origins)  # type: ignore[arg-type]  # neither is None
        super().__init__(
            first.dim,
            origin=first.origin if agree else None,
            layout=first.layout if first.layout == second.layout else None,
            dtype=first.dtype,
            device=first.device,
        )
        self.terms = (first, second)

    def loss(self, points: Tensor) -> Tensor:
        """Return the sum of the losses."""
        first, second = self.terms
        return first.loss(points) + second.loss(points)

    def value_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums of losses and of gradients."""
        (value_a, gradient_a), (value_b, gradient_b) = (
            term.value_and_gradient(points) for term in self.terms
        )
        return value_a + value_b, gradient_a + gradient_b

    def hessian(self, point: Tensor) -> LinearOperator:
        """Return the sum of the Hessians."""
        first, second = self.terms
        return first.hessian(point) + second.hessian(point)

    def describe(self) -> dict[str, object]:
        """Return the descriptions of both terms."""
        return super().describe() | {"terms": [t.describe() for t in self.terms]}


class ScaledLandscape(Landscape):
    """A landscape times a number."""

    def __init__(self, landscape: Landscape, scale: float) -> None:
        super().__init__(
            landscape.dim,
            origin=landscape.origin,
            layout=landscape.layout,
            dtype=landscape.dtype,
            device=landscape.device,
        )
        self.landscape, self.scale = landscape, scale

    def loss(self, points: Tensor) -> Tensor:
        """Return the scaled loss."""
        return self.scale * self.landscape.loss(points)

    def value_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scaled loss and gradient."""
        values, gradients = self.landscape.value_and_gradient(points)
        return self.scale * values, self.scale * gradients

    def hessian(self, point: Tensor) -> LinearOperator:
        """Return the scaled Hessian."""
        return self.scale * self.landscape.hessian(point)

    def describe(self) -> dict[str, object]:
        """Return the description and the factor."""
        inner = self.landscape.describe()
        return super().describe() | {"scale": self.scale, "of": inner}


class AutogradHessian(LinearOperator):
    """Hessian of any differentiable landscape at one point.

    The gradient's graph is built at the first product and kept: each further product
    is one backward pass through it.
    """

    def __init__(self, landscape: Landscape, point: Tensor) -> None:
        super().__init__(
            landscape.dim,
            dtype=point.dtype,
            device=point.device,
            layout=landscape.layout,
        )
        self._landscape, self._at = landscape, point
        self._graph: tuple[Tensor, Tensor] | None = None

    def _gradient_graph(self) -> tuple[Tensor, Tensor]:
        if self._graph is None:
            with torch.enable_grad():
                point = self._at.clone().requires_grad_()
                value = self._landscape.loss(point)
                if not value.requires_grad:
                    raise LossError(
                        f"the loss of this {type(self._landscape).__name__} has no "
                        "graph: it must be differentiable by torch"
                    )
                (gradient,) = torch.autograd.grad(
                    value, point, create_graph=True, materialize_grads=True
                )
            self._graph = point, gradient
        return self._graph

    def _product(self, v: Tensor) -> Tensor:
        point, gradient = self._gradient_graph()
        if not gradient.requires_grad:  # a linear loss
            return torch.zeros_like(v)
        (product,) = torch.autograd.grad(
            gradient, point, v, retain_graph=True, materialize_grads=True
        )
        return product

    def close(self) -> None:
        """Free the graph."""
        self._graph = None
