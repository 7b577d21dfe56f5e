"""The Hessian of a network's loss over its data at one point."""

import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from thalweg.errors import InputError, LossError, PrecisionWarning
from thalweg.landscapes._batches import Batch
from thalweg.landscapes.curvature.base import NetworkOperator
from thalweg.landscapes.curvature.graphs import (
    Cache,
    GradientGraph,
    NoSecondDerivative,
)
from thalweg.landscapes.operators import columns

if TYPE_CHECKING:
    from thalweg.landscapes.network import NetworkLandscape

HessianMethod = Literal["auto", "retained", "rebuilt", "fd"]
_METHODS = ("auto", "retained", "rebuilt", "fd")
_NOT_IMPLEMENTED = re.compile(r"derivative for .* is not implemented", re.I)


class NetworkHessian(NetworkOperator[GradientGraph]):
    """H = ∇²L, with weight decay, by a double backward on the gradient's graph.

    In real coordinates and in the dtype of the points (float32 for a model in half
    precision). Kinks carry no curvature here: the second derivative of ReLU is 0, at
    0 too; `secant_curvature` sees them.

    Cost: building the graph costs about a gradient and a half, once a batch; a product
    through a kept graph about 1.3 gradients, through a rebuilt one 2.3, by finite
    differences 2.

    Args:
        land: The landscape.
        point: Where.
        method: "retained" keeps all graphs, "rebuilt" none; "auto" keeps what `cache`
            allows and falls back to finite differences, with a warning, where an
            operation of the model has no second derivative; "fd" are central
            differences of the gradient, (g(x + e v) - g(x - e v)) / 2e with
            e = eps^(1/3) max(1, |x|) / |v|.
        cache: Under "auto", what may be kept: "auto" is a quarter of the free memory,
            else a number of bytes, True for all or False for nothing.
        check: Verify the symmetry at the first product.

    Raises:
        InputError: `method` is none of these.
    """

    def __init__(
        self,
        land: "NetworkLandscape",
        point: Tensor,
        *,
        method: HessianMethod = "auto",
        cache: Cache = "auto",
        check: bool = False,
    ) -> None:
        if method not in _METHODS:
            raise InputError(f"method must be one of {_METHODS}, got {method!r}")
        if method in ("retained", "rebuilt"):
            cache = method == "retained"
        super().__init__(land, point, cache=cache, check=check)
        self._method = method

    @property
    def method(self) -> str:
        """How products are made: as asked, or what "auto" came to after the first."""
        if self._method != "auto" or not self.graphs.batches:
            return self._method
        kept, batches = self.graphs.kept, self.graphs.batches
        if kept == batches:
            return "retained"
        return f"retained {kept} of {batches}" if kept else "rebuilt"

    def _graph(self, leaf: Tensor, batch: Batch, row: int) -> GradientGraph:
        value, weight = self._land._batch_loss(self._parameters(leaf), batch)
        if not value.requires_grad and self._whole is None:
            raise LossError("the loss has no graph: it does not depend on the model")
        return GradientGraph(leaf, value, weight)

    def _product(self, v: Tensor) -> Tensor:
        v = (
            v.contiguous()
        )  # a column of V is strided, and kernels then round differently
        return self._total(lambda graph: graph.product(v), v)

    def _products(self, V: Tensor) -> Tensor:
        return self._total(
            lambda graph: torch.stack([graph.product(v) for v in columns(V)], dim=1), V
        )

    def _total(self, apply: Callable[[GradientGraph], Tensor], V: Tensor) -> Tensor:
        if self._method == "fd":
            return self._difference(V)
        try:
            product = self._mean(apply)
        except (RuntimeError, NoSecondDerivative) as error:
            missing = isinstance(error, NoSecondDerivative | NotImplementedError)
            missing = missing or _NOT_IMPLEMENTED.search(str(error)) is not None
            if self._method != "auto" or not missing:
                raise
            warnings.warn(
                f"the model has no second derivative ({_first_line(error)}); "
                "products are finite differences of the gradient",
                PrecisionWarning,
                stacklevel=4,
            )
            self._method = "fd"
            self.close()
            return self._difference(V)
        if self._land.weight_decay:
            product = product + self._land.weight_decay * self._decaying(V)
        return product

    def _decaying(self, V: Tensor) -> Tensor:
        mask = self._land._decay_mask
        if mask is None:
            return V
        if self._indices is not None:
            mask = mask[self._indices]
        return mask * V if V.ndim == 1 else mask[:, None] * V

    def _difference(self, V: Tensor) -> Tensor:
        if V.ndim == 2:
            return torch.stack([self._difference(v) for v in columns(V)], dim=1)
        length = float(V.norm())
        if length == 0:
            return torch.zeros_like(V)
        scale = max(1.0, float(self._point.norm()))
        step = torch.finfo(self.dtype).eps ** (1 / 3) * scale / length
        shift = step * V
        if self._indices is not None:
            shift = torch.zeros_like(self._point).index_copy(0, self._indices, shift)
        ahead = self._land.gradient(self._point + shift)
        behind = self._land.gradient(self._point - shift)
        slope = (ahead - behind) / (2 * step)
        return slope if self._indices is None else slope[self._indices]


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
