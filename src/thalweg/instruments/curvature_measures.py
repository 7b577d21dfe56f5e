"""Flatness read from curvature at the point: trace, λ_max, Fisher-Rao, relative."""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError
from thalweg.instruments.eigenpairs import top_eigenpairs
from thalweg.instruments.neighborhood import Neighborhood
from thalweg.instruments.traces import trace
from thalweg.landscapes import Block, Landscape, LinearOperator, inner
from thalweg.seeding import rademacher

EXACT = 2000  # products up to which a figure is made exactly
_COLUMNS = 64  # products in one call


class Measured(NamedTuple):
    """A value, its standard error, a note, and its parts by layer where it has some."""

    value: float
    stderr: float
    note: str = ""
    per_layer: dict[str, float] | None = None


def hessian_trace(area: Neighborhood, seed: int) -> Measured:
    """Return tr H: from `dim` products up to 2000 dimensions, else by `ti.trace`."""
    zero = area.origin
    assert zero is not None
    with area.curvature(zero) as H:
        if area.dim <= EXACT:
            return Measured(float(H.dense().double().trace()), 0.0, "exact")
        found = trace(H, seed=seed)
    return Measured(found.value, found.stderr, found.note)


def largest_eigenvalue(area: Neighborhood, seed: int) -> Measured:
    """Return the largest algebraic eigenvalue, negative where all are.

    Exact up to 2000 dimensions; else by `ti.top_eigenpairs`, with the residual as its
    error.
    """
    zero = area.origin
    assert zero is not None
    with area.curvature(zero) as H:
        if area.dim <= EXACT:
            values = torch.linalg.eigvalsh(H.dense().double())
            return Measured(float(values[-1]), 0.0, "exact")
        found = top_eigenpairs(H, 1, which="LA", seed=seed)
    note = "" if bool(found.converged[0]) else "not converged"
    return Measured(float(found.values[0]), float(found.residuals[0]), note)


def fisher_rao(land: Landscape, point: Float[Tensor, " dim"], kind: str) -> Measured:
    """Return <θ, F θ> from one product with the Fisher matrix.

    For a bias-free network that is homogeneous of degree K in its weights, the
    empirical Fisher gives K² E[<∂l/∂f, f>²].

    Raises:
        InputError: The landscape has no Fisher matrix.

    Source: Liang, Poggio, Rakhlin, Stokes, "Fisher-Rao metric, geometry, and
    complexity of neural networks", 2019.
    """
    fisher = getattr(land, "fisher", None)
    if fisher is None:
        raise InputError(
            f"kind='fisher_rao' needs a landscape with a Fisher matrix; a "
            f"{type(land).__name__} has none"
        )
    with fisher(point, kind=kind) as F:
        value = float(point.double() @ (F @ point).to(point).double())
    return Measured(value, 0.0, f"{kind} Fisher")


def relative_flatness(
    land: Landscape,
    area: Neighborhood,
    layers: str | Iterable[str],
    samples: int,
    seed: int,
    exact: int = EXACT,
) -> Measured:
    """Return Σ_{s,s'} <w_s, w_s'> tr(H_{s,s'}) of each layer, and their sum.

    w_s are the rows of a layer's weight matrix W (its output axis first, the rest
    flattened), H_{s,s'} the Hessian blocks of rows s and s'. With W Wᵀ = RᵀR this is
    Σ vᵀHv over the v = Rᵀ e_k ⊗ e_j: exact up to `exact` products in all, else the mean
    over Rademacher combinations of them, which serve all layers at once.

    Raises:
        InputError: No tensor of two or more axes is selected.

    Source: Petzka, Kamp, Adilova, Sminchisescu, Boley, "Relative flatness and
    generalization", 2021.
    """
    blocks = [b for b in land.layout.select(layers) if len(b.shape) >= 2]
    if not blocks:
        raise InputError(
            f"kind='relative' needs weight matrices, none matches {layers!r}; the "
            f"first names are {land.layout.names[:8]}"
        )
    zero = area.origin
    assert zero is not None
    factors = [_Factor(block, area.base) for block in blocks]
    with area.curvature(zero) as H:
        if sum(factor.products for factor in factors) <= exact:
            values = {f.block.name: _exact(f, H) for f in factors}
            return Measured(sum(values.values()), 0.0, "exact", values)
        drawn = []
        for i in range(samples):
            v = torch.zeros_like(area.base)
            for factor in factors:
                v[factor.block.slice] = factor.random(seed, i)
            Hv = (H @ v).to(v)
            parts = [factor.block.slice for factor in factors]
            drawn.append([inner(v[part], Hv[part]) for part in parts])
    table = torch.tensor(drawn, dtype=torch.float64)
    sums = table.sum(1)
    error = float(sums.std()) / math.sqrt(samples) if samples > 1 else math.nan
    means = table.mean(0).tolist()
    values = {f.block.name: mean for f, mean in zip(factors, means, strict=True)}
    return Measured(float(sums.mean()), error, "Hutchinson", values)


class _Factor:
    """R with W Wᵀ = RᵀR for one layer, and the vectors built from it."""

    def __init__(self, block: Block, point: Tensor) -> None:
        self.block = block
        axis = block.filter_axis or 0
        weight = point[block.slice].reshape(block.shape).movedim(axis, 0)
        self.tail = weight.shape[1:]
        self.axis = axis
        self.root = torch.linalg.qr(weight.flatten(1).T, mode="r").R
        self.width = weight[0].numel()

    @property
    def products(self) -> int:
        return self.root.shape[0] * self.width

    def vector(self, Z: Tensor) -> Tensor:
        """Return Rᵀ Z in the order of the point."""
        rows = self.root.T @ Z
        return rows.unflatten(1, self.tail).movedim(0, self.axis).reshape(-1)

    def random(self, seed: int, i: int) -> Tensor:
        shape = (self.root.shape[0], self.width)
        name = self.block.name
        return self.vector(rademacher(shape, seed, "relative", name, i, like=self.root))

    def all(self) -> Iterator[Tensor]:
        for k in range(self.root.shape[0]):
            for j in range(self.width):
                Z = self.root.new_zeros(self.root.shape[0], self.width)
                Z[k, j] = 1
                yield self.vector(Z)


def _exact(factor: _Factor, H: LinearOperator) -> float:
    total = 0.0
    pending = torch.stack(list(factor.all()), dim=1)
    for part in pending.split(_COLUMNS, dim=1):
        V = part.new_zeros(H.dim, part.shape[1])
        V[factor.block.slice] = part
        total += float((V.double() * (H @ V).to(V).double()).sum())
    return total
