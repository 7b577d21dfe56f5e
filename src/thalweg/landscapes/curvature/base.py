"""What all operators of a network share: a point, graphs a batch, parts by name."""

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Generic, Self

from jaxtyping import Float
from torch import Tensor

from thalweg.landscapes._batches import Batch
from thalweg.landscapes.curvature.graphs import BatchGraphs, Cache, G
from thalweg.landscapes.linear_maps import LinearMap
from thalweg.landscapes.operators import LinearOperator

if TYPE_CHECKING:
    from thalweg.landscapes.network import NetworkLandscape


class NetworkOperator(LinearOperator, Generic[G]):
    """An operator on a network's parameters at one point, or on some blocks of them.

    Args:
        land: The landscape.
        point: Where.
        cache: What may be kept of the graphs: "auto" is a quarter of the free memory,
            else a number of bytes, True for all or False for nothing.
        check: Verify the symmetry at the first product.
        reduction: How batches add up; the landscape's by default.
    """

    def __init__(
        self,
        land: "NetworkLandscape",
        point: Tensor,
        *,
        cache: Cache = "auto",
        check: bool = False,
        reduction: str | None = None,
    ) -> None:
        super().__init__(
            land.dim,
            dtype=point.dtype,
            device=point.device,
            layout=land.layout,
            check=check,
        )
        self._land = land
        self._point = land._shared(point).clone()
        self._indices: Tensor | None = None  # of a part, in the whole point
        self._whole: Self | None = None
        self.graphs: BatchGraphs[G] = BatchGraphs(land, self._point, cache, reduction)

    @abstractmethod
    def _graph(self, leaf: Tensor, batch: Batch, row: int) -> G:
        """Return the graph of a batch whose first row is `row`."""

    def _mean(self, apply: Callable[[G], Tensor]) -> Tensor:
        return self.graphs.mean(self._graph, apply).to(self.dtype)

    def _parameters(self, leaf: Tensor) -> dict[str, Tensor]:
        """Return the parameters as functions of `leaf`; constants outside a part."""
        if self._indices is None:
            return self._land._parameters(leaf)
        assert self.layout is not None
        own = self._land._parameter_map.split(leaf, self.layout)
        return self._land._parameters(self._point) | own

    def submatrix(self, names: str | Iterable[str]) -> LinearOperator:
        """Return the diagonal block of the parameters whose names match.

        It is differentiated in these parameters alone: a product costs what lies
        between them and the loss, once more forward than backward. Its products count
        here too.
        """
        assert self.layout is not None
        layout = self.layout.part(names)
        part = copy.copy(self)
        part._whole, part.products = self, 0
        part.layout, part.dim = layout, layout.dim
        part.shape = (layout.dim, layout.dim)
        indices = self._land.layout.indices(layout.names)
        part._indices = indices.to(self.device)
        part.graphs = self.graphs.at(self._point[part._indices])
        return part

    def __matmul__(self, x: Float[Tensor, "dim *k"]) -> Float[Tensor, "dim *k"]:
        before = self.products
        if x.ndim in (1, 2) and x.shape[0] == self.dim:  # else it is refused there
            x = self._land._shared(x.to(dtype=self.dtype, device=self.device))
        y = super().__matmul__(x)
        self._count_in_whole(before)
        return y

    def project(
        self, U: LinearMap, rhs: Float[Tensor, " dim"] | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return UᵀAU, or (UᵀAU, UᵀA rhs), from one product a column."""
        return super().project(self._shared_basis(U), rhs)

    def _shared_basis(self, U: LinearMap) -> LinearMap:
        """Return rank 0's matrix; another map is trusted to be one on all ranks."""
        return self._land._shared(U) if isinstance(U, Tensor) else U

    def _count_in_whole(self, before: int) -> None:
        made, whole = self.products - before, self._whole
        while whole is not None:
            whole.products += made
            whole = whole._whole

    def close(self) -> None:
        """Free the graphs; parts by name hold their own."""
        self.graphs.close()
