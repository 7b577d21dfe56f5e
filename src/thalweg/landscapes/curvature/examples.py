"""Operators of the examples' gradients: empirical Fisher and gradient covariance."""

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from thalweg.errors import DataError
from thalweg.landscapes._batches import Batch
from thalweg.landscapes._examples import batch_rows
from thalweg.landscapes.curvature.gauss_newton import JacobianOperator
from thalweg.landscapes.curvature.graphs import Cache, JacobianGraph
from thalweg.landscapes.curvature.output import DiagonalCurvature, OutputCurvature
from thalweg.landscapes.inner_products import inner
from thalweg.landscapes.operators import LinearOperator

PIECE = 1 << 20

if TYPE_CHECKING:
    from thalweg.landscapes.network import NetworkLandscape


class EmpiricalFisherOperator(JacobianOperator):
    """Σ w_i g_i g_iᵀ / Σ w_i, g_i the gradient of example i with its given label.

    Not the Fisher: the labels are the data's, not the model's, and at a good fit it
    vanishes while the curvature does not (Kunstner, Balles, Hennig, "Limitations of
    the empirical Fisher approximation", 2019). The examples' losses are the output
    here and w the curvature: a product forms no gradient of an example.
    """

    def _linearize(
        self, parameters: dict[str, Tensor], batch: Batch, row: int
    ) -> tuple[Tensor, Tensor | float, OutputCurvature]:
        (losses, weights), _ = batch_rows(self._land, parameters, batch)
        weights = weights.to(losses)
        if self.graphs.reduction == "sum":
            return losses, 1.0, DiagonalCurvature(torch.ones_like(weights))
        total = weights.sum()
        return losses, float(total), DiagonalCurvature(weights / total)

    def _image(self, graph: JacobianGraph, v: Tensor) -> Tensor:
        assert isinstance(graph.curvature, DiagonalCurvature)
        # A row that does not count may have no loss: NaN where its label is ignored.
        return torch.where(graph.curvature.diagonal == 0, 0.0, graph.jvp(v))


class GradientCovariance(EmpiricalFisherOperator):
    """C = N/(N-1) Σ w_i (g_i - g)(g_i - g)ᵀ / Σ w_i, g the mean gradient.

    The covariance of the gradient of one example, whatever the reduction of the loss;
    without weight decay, which is the same for all.

    Raises:
        DataError: At the first product, where there is only one example.
    """

    def __init__(
        self,
        land: "NetworkLandscape",
        point: Tensor,
        *,
        cache: Cache = "auto",
        check: bool = False,
    ) -> None:
        super().__init__(land, point, cache=cache, check=check, reduction="mean")

    @cached_property
    def gradient(self) -> Tensor:
        """The mean gradient g, from one pass."""
        self.examples = 0

        def weighted(graph: JacobianGraph) -> Tensor:
            assert isinstance(graph.curvature, DiagonalCurvature)
            self.examples += len(graph.curvature.diagonal)
            return graph.vjp(graph.curvature.diagonal)

        gradient = super()._mean(weighted)
        if self._land.shards is not None:
            self.examples = sum(self._land.shards.gather(self.examples))
        if self.examples < 2:
            raise DataError("the covariance of gradients needs at least two examples")
        return gradient

    def _image(self, graph: JacobianGraph, v: Tensor) -> Tensor:
        # Centered here, so that nothing cancels; sum_i w_i (image) is then zero.
        return super()._image(graph, v) - inner(self.gradient, v)

    def _mean(self, apply: Callable[[JacobianGraph], Tensor]) -> Tensor:
        _ = self.gradient  # before the pass that needs it begins
        return super()._mean(apply) * (self.examples / (self.examples - 1))

    def submatrix(self, names: str | Iterable[str]) -> LinearOperator:
        """Return the covariance of the parameters whose names match."""
        part = super().submatrix(names)
        part.__dict__.pop("gradient", None)
        return part

    def trace(self) -> float:
        """Return tr C, from the gradient of every example, a chunk at a time."""
        weights, distances, _ = self.statistics()
        return float(weights @ distances) * self.examples / (self.examples - 1)

    def statistics(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return w_i / Σ w, |g_i - g|² and g_i.g for each example, in float64."""
        weights, pairs, g = [], [], self.gradient
        for gradients, weight in self._land._example_gradients(self._point):
            if self._indices is not None:
                gradients = gradients[:, self._indices]
            weights.append(weight.double())
            pairs += [_distance_and_alignment(row, g) for row in gradients]
        w = torch.cat(weights)
        distances, alignments = torch.stack(pairs, dim=1)
        if self._land.shards is not None:
            table = torch.stack([w, distances, alignments], dim=1)
            w, distances, alignments = self._land.shards.concatenate(table).unbind(1)
        return w / w.sum(), distances, alignments


def _distance_and_alignment(row: Tensor, g: Tensor) -> Tensor:
    """Return |row - g|² and row.g in float64, a piece of a long vector at a time."""
    total = torch.zeros(2, dtype=torch.float64, device=row.device)
    for a, b in zip(row.split(PIECE), g.split(PIECE), strict=True):
        a, b = a.double(), b.double()
        total += torch.stack([(a - b).square().sum(), a @ b])
    return total
