"""Symmetric linear operators that are known by their products with vectors.

An operator says how it multiplies one vector (`_product`); checks, counting, sums,
projections and conversions are here, once.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import AsymmetryError, InputError, StructureError
from thalweg.landscapes.inner_products import inner, norm
from thalweg.landscapes.layout import Layout
from thalweg.landscapes.linear_maps import (
    LinearMap,
    check_basis,
    column,
    pull_back,
)

if TYPE_CHECKING:
    import scipy.sparse.linalg

DENSE_LIMIT = 20_000


class LinearOperator(ABC):
    """A real symmetric operator of shape (dim, dim).

    `A @ v` takes (dim,), `A @ V` takes (dim, columns); every column counts as one
    product in `A.products`.

    Args:
        dim: Number of rows and of columns.
        dtype: dtype of vectors and products.
        device: Device of vectors and products.
        layout: How a vector is read, needed by `submatrix`.
        check: Verify the symmetry at the first product: with u = Av/|Av|, raise unless
            ||Av| - v.Au| <= tol |Av|, tol 1e-9 in float64 and 1e-4 below. Costs one
            more product, which is counted.
    """

    symmetric = True

    def __init__(
        self,
        dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        layout: Layout | None = None,
        check: bool = False,
    ) -> None:
        self.dim = dim
        self.shape = (dim, dim)
        self.dtype = dtype
        self.device = device
        self.layout = layout
        self.products = 0
        self._unchecked = check

    @abstractmethod
    def _product(self, v: Float[Tensor, " dim"]) -> Float[Tensor, " dim"]:
        """Return A v."""

    def _products(self, V: Float[Tensor, "dim k"]) -> Float[Tensor, "dim k"]:
        """Return A V; overridden where many columns at once are cheaper."""
        return torch.stack([self._product(v) for v in columns(V)], dim=1)

    def __matmul__(self, x: Float[Tensor, "dim *k"]) -> Float[Tensor, "dim *k"]:
        if x.ndim not in (1, 2) or x.shape[0] != self.dim:
            raise StructureError(
                f"operator of shape {self.shape} cannot multiply a tensor of shape "
                f"{tuple(x.shape)}"
            )
        if x.dtype != self.dtype or x.device != self.device:
            x = x.to(dtype=self.dtype, device=self.device)
        if x.ndim == 1:
            self.products += 1
            x = x.contiguous()
            y = self._product(x)
            self._check(x, y)
            return y
        self.products += x.shape[1]
        if x.shape[1] == 0:
            return torch.empty_like(x)
        Y = self._products(x)
        self._check(x[:, 0], Y[:, 0])
        return Y

    def _check(self, v: Tensor, y: Tensor) -> None:
        if not self._unchecked:
            return
        self._unchecked = False
        length = norm(y)
        if not length > 0:
            return
        self.products += 1
        gap = abs(length - inner(v, self._product(y / length)))
        tolerance = 1e-9 if self.dtype == torch.float64 else 1e-4
        if gap > tolerance * length:
            raise AsymmetryError(
                f"v.Au and u.Av differ by {gap / length:.1e} relative, more than "
                f"{tolerance:.0e}: the operator is not symmetric. Most often two "
                "passes over the data differ (dropout, a shuffling loader, "
                "nondeterministic kernels)"
            )

    # Algebra ------------------------------------------------------------------------

    def __add__(self, other: "LinearOperator") -> "LinearOperator":
        return SumOperator(self, other)

    def __mul__(self, scale: float) -> "LinearOperator":
        return ScaledOperator(self, float(scale))

    __rmul__ = __mul__

    def __sub__(self, other: "LinearOperator") -> "LinearOperator":
        return self + other * -1.0

    def shift(self, c: float) -> "LinearOperator":
        """Return A + c I (damping, weight decay)."""
        identity = IdentityOperator(self.dim, dtype=self.dtype, device=self.device)
        return self + identity * c

    def submatrix(self, names: str | Iterable[str]) -> "LinearOperator":
        """Return the diagonal block of the parameters whose names match."""
        if self.layout is None:
            raise InputError("submatrix needs an operator with a layout")
        return Submatrix(self, self.layout.indices(names).to(self.device))

    # Conversions --------------------------------------------------------------------

    def dense(self) -> Float[Tensor, "dim dim"]:
        """Return the matrix, from `dim` products; refused above 20,000 rows."""
        if self.dim > DENSE_LIMIT:
            raise InputError(
                f"a dense matrix of {self.dim} rows is refused (limit {DENSE_LIMIT}); "
                "use products, `project` or `submatrix`"
            )
        matrix = self @ torch.eye(self.dim, dtype=self.dtype, device=self.device)
        return (matrix + matrix.T) / 2

    def to_scipy(self) -> "scipy.sparse.linalg.LinearOperator":
        """Return a scipy LinearOperator on NumPy arrays, counting products here."""
        from scipy.sparse.linalg import LinearOperator as ScipyOperator

        def multiply(x):  # type: ignore[no-untyped-def]  # scipy's own signature
            v = torch.from_numpy(x.copy()).to(dtype=self.dtype, device=self.device)
            return (self @ v).cpu().numpy()

        numpy_dtype = torch.empty(0, dtype=self.dtype).numpy().dtype
        return ScipyOperator(
            self.shape,
            matvec=lambda x: multiply(x.reshape(-1)),
            rmatvec=lambda x: multiply(x.reshape(-1)),
            matmat=multiply,
            dtype=numpy_dtype,
        )

    def project(
        self, U: "LinearMap", rhs: Float[Tensor, " dim"] | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return UᵀAU, or (UᵀAU, UᵀA rhs), without forming A U.

        Args:
            U: Tensor (dim, k), or any linear map with `.shape`, `U @ c`, `U.T @ v`.
            rhs: A further vector.

        Costs k products here (one more with `rhs`); operators that know a square root
        override it.
        """
        check_basis(U, self.dim)
        k = U.shape[1]
        rows = [pull_back(U, self @ column(U, j, self)) for j in range(k)]
        matrix = (
            torch.stack(rows)
            if rows
            else torch.empty(0, 0, dtype=self.dtype, device=self.device)
        )
        matrix = (matrix + matrix.T) / 2
        if rhs is None:
            return matrix
        return matrix, pull_back(U, self @ rhs)

    # Resources ----------------------------------------------------------------------

    def close(self) -> None:  # noqa: B027  # most operators hold nothing
        """Free retained graphs and caches; the operator can still be used after."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def columns(V: Float[Tensor, "dim k"]) -> list[Tensor]:
    """Return the columns, each contiguous: kernels round by layout and alignment."""
    return [v.contiguous() for v in V.unbind(1)]


class FunctionOperator(LinearOperator):
    """The operator of a function v -> A v."""

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        dim: int,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        layout: Layout | None = None,
        check: bool = False,
    ) -> None:
        super().__init__(
            dim, dtype=dtype, device=torch.device(device), layout=layout, check=check
        )
        self._function = function

    def _product(self, v: Tensor) -> Tensor:
        return self._function(v)


class MatrixOperator(LinearOperator):
    """The operator of a dense symmetric matrix."""

    def __init__(
        self, matrix: Float[Tensor, "dim dim"], layout: Layout | None = None
    ) -> None:
        super().__init__(
            matrix.shape[0], dtype=matrix.dtype, device=matrix.device, layout=layout
        )
        self.matrix = matrix

    def _product(self, v: Tensor) -> Tensor:
        return self.matrix @ v

    def _products(self, V: Tensor) -> Tensor:
        return self.matrix @ V

    def dense(self) -> Tensor:
        """Return the matrix itself, without a product."""
        return self.matrix


class IdentityOperator(LinearOperator):
    """The identity."""

    def _product(self, v: Tensor) -> Tensor:
        return v

    def _products(self, V: Tensor) -> Tensor:
        return V


class SumOperator(LinearOperator):
    """A + B."""

    def __init__(self, first: LinearOperator, second: LinearOperator) -> None:
        if first.shape != second.shape:
            raise StructureError(
                f"operators of shapes {first.shape} and {second.shape} do not add"
            )
        layout = first.layout if first.layout == second.layout else None
        super().__init__(
            first.dim, dtype=first.dtype, device=first.device, layout=layout
        )
        self.terms = (first, second)

    def _product(self, v: Tensor) -> Tensor:
        first, second = self.terms
        return first @ v + second @ v

    def _products(self, V: Tensor) -> Tensor:
        return self._product(V)

    def project(
        self, U: "LinearMap", rhs: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Project each term by its own cheapest route."""
        self.products += U.shape[1] + (rhs is not None)
        first, second = (term.project(U, rhs) for term in self.terms)
        if isinstance(first, tuple) and isinstance(second, tuple):
            return first[0] + second[0], first[1] + second[1]
        assert isinstance(first, Tensor) and isinstance(second, Tensor)
        return first + second

    def close(self) -> None:
        """Close both terms."""
        for term in self.terms:
            term.close()


class ScaledOperator(LinearOperator):
    """c A."""

    def __init__(self, operator: LinearOperator, scale: float) -> None:
        super().__init__(
            operator.dim,
            dtype=operator.dtype,
            device=operator.device,
            layout=operator.layout,
        )
        self.operator, self.scale = operator, scale

    def _product(self, v: Tensor) -> Tensor:
        return self.scale * (self.operator @ v)

    def _products(self, V: Tensor) -> Tensor:
        return self._product(V)

    def project(
        self, U: "LinearMap", rhs: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Scale the projection of A."""
        self.products += U.shape[1] + (rhs is not None)
        result = self.operator.project(U, rhs)
        if isinstance(result, tuple):
            return self.scale * result[0], self.scale * result[1]
        return self.scale * result

    def close(self) -> None:
        """Close A."""
        self.operator.close()


class Submatrix(LinearOperator):
    """The rows and columns of A at `indices`."""

    def __init__(self, operator: LinearOperator, indices: Tensor) -> None:
        super().__init__(len(indices), dtype=operator.dtype, device=operator.device)
        self.operator, self.indices = operator, indices

    def _product(self, v: Tensor) -> Tensor:
        return self._products(v[:, None])[:, 0]

    def _products(self, V: Tensor) -> Tensor:
        full = V.new_zeros(self.operator.dim, V.shape[1])
        full[self.indices] = V
        return (self.operator @ full)[self.indices]

    def close(self) -> None:
        """Close A."""
        self.operator.close()


class RestrictedOperator(LinearOperator):
    """BᵀAB for a basis B of shape (dim, k)."""

    def __init__(
        self,
        operator: LinearOperator,
        basis: "LinearMap",
        layout: Layout | None = None,
    ) -> None:
        super().__init__(
            basis.shape[1],
            dtype=operator.dtype,
            device=operator.device,
            layout=layout,
        )
        self.operator, self.basis = operator, basis

    def _product(self, v: Tensor) -> Tensor:
        return pull_back(self.basis, self.operator @ (self.basis @ v))

    def dense(self) -> Tensor:
        """Return BᵀAB by the cheapest route of A."""
        matrix = self.operator.project(self.basis)
        assert isinstance(matrix, Tensor)
        return matrix

    def close(self) -> None:
        """Close A."""
        self.operator.close()
