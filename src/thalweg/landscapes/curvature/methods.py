"""The methods of a network's landscape that give its curvature operators."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError
from thalweg.landscapes.base import Landscape
from thalweg.landscapes.curvature.examples import (
    EmpiricalFisherOperator,
    GradientCovariance,
)
from thalweg.landscapes.curvature.gauss_newton import (
    FisherOperator,
    GaussNewtonOperator,
)
from thalweg.landscapes.curvature.graphs import Cache
from thalweg.landscapes.curvature.hessian import HessianMethod, NetworkHessian
from thalweg.landscapes.curvature.noise import NoiseMethod, NoiseScale, noise_scale

if TYPE_CHECKING:
    from thalweg.landscapes.network import NetworkLandscape

FISHERS = ("true", "mc", "empirical")


class CurvatureMethods(Landscape):
    """Hessian, GGN, Fishers, gradient covariance and noise scale of a network.

    A part of `NetworkLandscape`, which alone derives from it.
    """

    def hessian(
        self,
        point: Float[Tensor, " dim"],
        *,
        method: HessianMethod = "auto",
        cache: Cache = "auto",
        check: bool = False,
    ) -> NetworkHessian:
        """Return the Hessian at a point, weight decay included.

        Args:
            point: Where.
            method: "retained" keeps the gradient's graph of every batch, "rebuilt"
                builds it for each product, "fd" takes differences of gradients; "auto"
                keeps what `cache` allows.
            cache: Bytes of graphs that "auto" may keep; "auto" is a quarter of the
                free memory, True all, False nothing.
            check: Verify the symmetry at the first product.
        """
        return NetworkHessian(
            self._network(),
            self._checked(point),
            method=method,
            cache=cache,
            check=check,
        )

    def ggn(
        self,
        point: Float[Tensor, " dim"],
        *,
        cache: Cache = "auto",
        check: bool = False,
    ) -> GaussNewtonOperator:
        """Return the generalized Gauss-Newton matrix at a point, without weight decay.

        Raises:
            LossError: At the first product, where the loss has no output of its own.
        """
        return GaussNewtonOperator(
            self._network(), self._checked(point), cache=cache, check=check
        )

    def fisher(
        self,
        point: Float[Tensor, " dim"],
        *,
        kind: Literal["true", "mc", "empirical"] = "true",
        samples: int = 1,
        seed: int = 0,
        cache: Cache = "auto",
        check: bool = False,
    ) -> FisherOperator | EmpiricalFisherOperator:
        """Return the Fisher information at a point, without weight decay.

        Args:
            point: Where.
            kind: "true" is the expectation over the model's targets, "mc" the mean over
                `samples` of them, "empirical" takes the data's labels and is not the
                Fisher.
            samples: Targets drawn for each example under "mc".
            seed: Seed of these.
            cache: What may be kept of the graphs, as in `hessian`.
            check: Verify the symmetry at the first product.
        """
        if kind not in FISHERS:
            raise InputError(f"kind must be one of {FISHERS}, got {kind!r}")
        land, point = self._network(), self._checked(point)
        if kind == "empirical":
            return EmpiricalFisherOperator(land, point, cache=cache, check=check)
        return FisherOperator(
            land,
            point,
            samples=samples if kind == "mc" else None,
            seed=seed,
            cache=cache,
            check=check,
        )

    def gradient_covariance(
        self,
        point: Float[Tensor, " dim"],
        *,
        cache: Cache = "auto",
        check: bool = False,
    ) -> GradientCovariance:
        """Return the covariance of one example's gradient, without weight decay."""
        return GradientCovariance(
            self._network(), self._checked(point), cache=cache, check=check
        )

    def noise_scale(
        self,
        point: Float[Tensor, " dim"],
        *,
        method: NoiseMethod = "examples",
    ) -> NoiseScale:
        """Return the simple noise scale tr C / |g|² at a point, in examples.

        Args:
            point: Where.
            method: "examples" from every example's gradient, "batches" from those of
                the landscape's batches alone (the two-batch-size form).
        """
        return noise_scale(self._network(), self._checked(point), method)

    def _network(self) -> "NetworkLandscape":
        """Return this landscape, a model in half precision in its points' dtype."""
        land = cast("NetworkLandscape", self)
        if not land._parameter_map.half:
            return land
        wide = copy.copy(land)
        wide._parameter_map = land._parameter_map.in_dtype(land.dtype)
        wide._data = land._data.in_dtype(land.dtype)
        wide._calibration = land._calibration.in_dtype(land.dtype)
        wide._held = _cast(land._held, land.dtype)
        wide._constants = _cast(land._constants, land.dtype)
        wide._workspace, wide._prepared = None, False
        return wide


def _cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
