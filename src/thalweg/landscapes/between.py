"""The landscape over the affine span of checkpoints, their buffers moving too."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thalweg.errors import InputError
from thalweg.landscapes.base import Landscape
from thalweg.landscapes.batch_norm import interpolate_buffers, variance_names
from thalweg.landscapes.layout import Layout
from thalweg.landscapes.linear_maps import pull_back
from thalweg.landscapes.operators import LinearOperator, RestrictedOperator
from thalweg.provenance import fingerprint

if TYPE_CHECKING:
    from thalweg.landscapes.network import NetworkLandscape


class BetweenLandscape(Landscape):
    """c -> loss(s_0 + sum_j c_j (s_j - s_0)), standing at c = 0.

    Floating buffers move like the weights (see `interpolate_buffers`); derivatives hold
    the buffers found at c constant. `held` counts the variances that were held at the
    checkpoints' smallest in the last evaluation outside the simplex.

    Args:
        full: The landscape of the model.
        states: s_0, ..., s_k: modules, state dicts or points.
    """

    def __init__(
        self,
        full: "NetworkLandscape",
        states: Sequence[nn.Module | Mapping[str, Tensor] | Tensor],
    ) -> None:
        if len(states) < 2:
            raise InputError(
                f"between needs two checkpoints or more, got {len(states)}"
            )
        dicts = [s.state_dict() if isinstance(s, nn.Module) else s for s in states]
        points = [
            full._checked(s).to(dtype=full.dtype, device=full.device)
            if isinstance(s, Tensor)
            else full.flatten(s)
            for s in dicts
        ]
        self.basis = torch.stack([p - points[0] for p in points[1:]], dim=1)
        k = self.basis.shape[1]
        super().__init__(k, origin=points[0].new_zeros(k), layout=Layout.single(k, "c"))
        self.full, self.start = full, points[0]
        self.checkpoints = tuple(points)
        self._variances = variance_names(full.model)
        self._buffers = self._read_buffers(dicts)
        self.held = 0

    def embed(self, coordinates: Float[Tensor, "*batch k"]) -> Float[Tensor, "*b dim"]:
        """Return s_0 + basis @ c."""
        return self.start + coordinates.to(self.basis) @ self.basis.T

    def placed(self, coordinates: Float[Tensor, " k"]) -> "NetworkLandscape":
        """Return the full landscape with the buffers that belong to c."""
        if self._buffers is None:
            return self.full
        buffers, held = interpolate_buffers(
            self._buffers, coordinates.detach(), self._variances
        )
        self.held += held
        return self.full.with_buffers(buffers)

    def over(self, full: "NetworkLandscape") -> "BetweenLandscape":
        """Return the same span on other data, such as one of `full.batches(size)`."""
        other = copy.copy(self)
        other.full = full
        return other

    def loss(self, points: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """Return the full landscape's loss at the embedded points."""
        values = [land.loss(self.embed(c)) for land, c in self._placed(points)]
        if not values:
            return torch.empty(points.shape[:-1], dtype=self.full.accumulate)
        return torch.stack(values).reshape(points.shape[:-1])

    def value_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and basisᵀ gradient, the buffers at each point constant."""
        pairs = [
            land.value_and_gradient(self.embed(c)) for land, c in self._placed(points)
        ]
        values = torch.stack([value for value, _ in pairs])
        slopes = torch.stack([pull_back(self.basis, g) for _, g in pairs])
        return values.reshape(points.shape[:-1]), slopes.reshape(points.shape)

    def evaluate(self, point: Float[Tensor, " k"] | None = None) -> dict[str, float]:
        """Return loss and metrics from one forward pass.

        Where buffers move, "variances_held" counts the variances held at c.
        """
        c, before = self.point(point), self.held
        found = self.placed(c).evaluate(self.embed(c))
        if self._buffers is None:
            return found
        return found | {"variances_held": float(self.held - before)}

    def evaluate_each(
        self, points: Iterable[Float[Tensor, " k"]]
    ) -> list[dict[str, float]]:
        """Return loss and metrics at each point."""
        if self._buffers is None:
            return self.full.evaluate_each(self.embed(c) for c in points)
        return [self.evaluate(c) for c in points]

    def metrics(self, point: Float[Tensor, " k"] | None = None) -> dict[str, float]:
        """Return the metrics at a point."""
        c = self.point(point)
        return self.placed(c).metrics(self.embed(c))

    def hessian(self, point: Tensor) -> LinearOperator:
        """Return basisᵀ H basis, the buffers constant."""
        c = self._checked(point)
        full = self.placed(c).hessian(self.embed(c))
        return RestrictedOperator(full, self.basis, self.layout)

    def describe(self) -> dict[str, object]:
        """Return the full landscape's description; checkpoints with their buffers."""
        moving = self._buffers or [{} for _ in self.checkpoints]
        return super().describe() | {
            "full": self.full.describe(),
            "checkpoints": [
                fingerprint(point, buffers)
                for point, buffers in zip(self.checkpoints, moving, strict=True)
            ],
        }

    def _placed(self, points: Tensor) -> Iterator[tuple["NetworkLandscape", Tensor]]:
        self.held = 0
        for c in points.reshape(-1, self.dim).unbind(0):
            yield self.placed(c), c

    def _read_buffers(
        self, states: Sequence[Mapping[str, Tensor] | Tensor]
    ) -> list[dict[str, Tensor]] | None:
        names = self.full.buffer_names
        if self.full.buffers == "recalibrate" or not names:
            return None
        if any(isinstance(state, Tensor) for state in states):
            if self.full.buffers == "interpolate":
                raise InputError(
                    'buffers="interpolate" needs the buffers of each checkpoint: give '
                    "state dicts or modules, not bare points"
                )
            return None
        return [
            {name: s[name] for name in names if name in s}
            for s in states
            if isinstance(s, Mapping)
        ]
