"""Operators Jᵀ B J: generalized Gauss-Newton, the Fishers, gradient covariance.

They differ in what is called the output and in its curvature B; products and
projections are here, once.
"""

from abc import abstractmethod
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError, LossError
from thalweg.landscapes._batches import Batch
from thalweg.landscapes.curvature.base import NetworkOperator
from thalweg.landscapes.curvature.graphs import Cache, JacobianGraph
from thalweg.landscapes.curvature.output import (
    LossCurvature,
    ModelCurvature,
    OutputCurvature,
    SampledCurvature,
    model_curvature,
)
from thalweg.landscapes.linear_maps import LinearMap, check_basis, column
from thalweg.landscapes.operators import columns
from thalweg.seeding import numpy_generator

if TYPE_CHECKING:
    from thalweg.landscapes.network import NetworkLandscape


class JacobianOperator(NetworkOperator[JacobianGraph]):
    """Σ_b w_b J_bᵀ B_b J_b / Σ_b w_b over batches b, at one point.

    Cost: a product is one pass forward and one backward through a kept graph, less
    than a gradient; `project` is k passes forward and none backward.
    """

    @abstractmethod
    def _linearize(
        self, parameters: dict[str, Tensor], batch: Batch, row: int
    ) -> tuple[Tensor, Tensor | float, OutputCurvature]:
        """Return output, weight and B of a batch whose first row is `row`."""

    def _graph(self, leaf: Tensor, batch: Batch, row: int) -> JacobianGraph:
        return JacobianGraph(leaf, *self._linearize(self._parameters(leaf), batch, row))

    def _image(self, graph: JacobianGraph, v: Tensor) -> Tensor:
        return graph.jvp(v)

    def _apply(self, graph: JacobianGraph, v: Tensor) -> Tensor:
        return graph.vjp(graph.curvature.apply(self._image(graph, v)))

    def _product(self, v: Tensor) -> Tensor:
        return self._mean(lambda graph: self._apply(graph, v))

    def _products(self, V: Tensor) -> Tensor:
        return self._mean(
            lambda graph: torch.stack(
                [self._apply(graph, v) for v in columns(V)], dim=1
            )
        )

    def project(
        self, U: LinearMap, rhs: Float[Tensor, " dim"] | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return UᵀAU, or (UᵀAU, UᵀA rhs), from the images J U alone.

        Positive semi-definite by construction where B has a square root in closed
        form. Costs one pass forward a column; nothing of length `dim` is kept, but
        the k images of one batch are (rows x outputs x k).
        """
        check_basis(U, self.dim)
        U = self._shared_basis(U)
        k = U.shape[1]
        before = self.products
        self.products += k + (rhs is not None)
        self._count_in_whole(before)

        def gram(graph: JacobianGraph) -> Tensor:
            if k == 0:
                return torch.zeros(0, 0 if rhs is None else 1, dtype=torch.float64)
            images = torch.stack(
                [self._image(graph, column(U, j, self)) for j in range(k)]
            )
            matrix = graph.curvature.gram(images)
            if rhs is None:
                return matrix
            right = graph.curvature.apply(self._image(graph, v))
            products = images.flatten(1).double() @ right.flatten().double()
            return torch.cat([matrix, products[:, None]], dim=1)

        if rhs is None:
            return self._mean(gram)
        v = self._land._shared(rhs.to(dtype=self.dtype, device=self.device))
        both = self._mean(gram)
        return both[:, :k], both[:, k]


class GaussNewtonOperator(JacobianOperator):
    """G = Σ w_i J_iᵀ B_i J_i / Σ w_i, J_i = ∂output_i/∂θ, B_i = ∂²loss_i/∂output_i².

    Without weight decay. B is in closed form for softmax cross-entropy, squared error
    and BCE with logits, by a double backward on the loss alone for any other. G
    depends on where the model ends and the loss begins: with a log-softmax inside the
    model, the negative log-likelihood is linear and G is zero.
    """

    def _linearize(
        self, parameters: dict[str, Tensor], batch: Batch, row: int
    ) -> tuple[Tensor, Tensor | float, OutputCurvature]:
        objective = self._land.objective
        output = self._land._batch_output(parameters, batch)
        needed = self._whole is None  # a part may not reach the output
        if not isinstance(output, Tensor) or (needed and not output.requires_grad):
            raise LossError(
                "GGN needs a model whose output is one tensor with a graph, got "
                f"{type(output).__name__}: pick it by `forward=`"
            )
        leaf = output.detach().requires_grad_()
        value, weight = self._land._output_loss(leaf, batch)
        assert callable(objective.loss)
        target = objective.target(batch.data)
        known = model_curvature(objective.loss, leaf.detach(), target)
        return output, weight, known or LossCurvature(leaf, value)


class FisherOperator(GaussNewtonOperator):
    """The Fisher information of the model's own distribution of targets.

    `kind="true"` is the expectation, which for a loss with canonical link is the GGN;
    `"mc"` the mean of r rᵀ over targets that are drawn from the model, row i of
    sample j from (seed, j, i), so that neither more samples nor another cut into
    batches change what was drawn.

    Raises:
        InputError: At the first product, where the loss is none whose distribution is
            known: softmax cross-entropy, squared error, BCE with logits.
    """

    def __init__(
        self,
        land: "NetworkLandscape",
        point: Tensor,
        *,
        samples: int | None = None,
        seed: int = 0,
        cache: Cache = "auto",
        check: bool = False,
    ) -> None:
        if samples is not None and samples < 1:
            raise InputError(f"samples must be at least 1, got {samples}")
        super().__init__(land, point, cache=cache, check=check)
        self.samples, self.seed = samples, seed

    def _linearize(
        self, parameters: dict[str, Tensor], batch: Batch, row: int
    ) -> tuple[Tensor, Tensor | float, OutputCurvature]:
        output, weight, curvature = super()._linearize(parameters, batch, row)
        if not isinstance(curvature, ModelCurvature):
            raise InputError(
                "the distribution of the targets is known for cross_entropy, mse_loss "
                "and binary_cross_entropy_with_logits only; use `ggn`, or "
                "kind='empirical', which is not the Fisher"
            )
        if self.samples is None:
            return output, weight, curvature
        per_row = curvature.draws // batch.size
        scores = []
        for sample in range(self.samples):
            stream = numpy_generator(self.seed, "fisher", sample)
            bits = cast(np.random.PCG64, stream.bit_generator)
            bits.advance(row * per_row)
            uniforms = torch.from_numpy(stream.random(curvature.draws))
            scores.append(curvature.score(uniforms.to(output.device)))
        return output, weight, SampledCurvature(torch.stack(scores))
