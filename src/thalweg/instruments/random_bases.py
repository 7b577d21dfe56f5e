"""Random subspaces: bases of k columns of length 1, dense, sparse or structured."""

from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thalweg.errors import InputError, StructureError
from thalweg.landscapes import LinearMap
from thalweg.seeding import generator

BasisKind = Literal["dense", "sparse", "fastfood"]


def random_basis(
    dim: int,
    k: int,
    kind: BasisKind = "dense",
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float64,
) -> Tensor | LinearMap:
    """Draw k random directions of length 1 in `dim` dimensions, as one linear map.

    - "dense": a tensor of normal entries; dim k numbers, dim k operations a product.
    - "sparse": ceil(sqrt(dim)) entries of ±1/sqrt(that) in each column, at random
      rows; k sqrt(dim) numbers and operations.
    - "fastfood": blocks H G Π H B, of Hadamard matrices H, normal diagonals G,
      permutations Π and signs B; about 3 dim numbers and dim log k operations,
      whatever k.

    Columns are exactly of length 1 and nearly orthogonal where k is far below dim. In
    the first two, column j depends on (seed, j) alone: a larger k adds to the space.

    Args:
        dim: Dimension of the space.
        k: Number of directions, at most dim.
        kind: See above.
        seed: Seed of everything drawn.
        dtype: dtype of a dense basis; the others work in that of what they multiply.

    Raises:
        InputError: The kind is unknown, or k does not lie in 1 ... dim.

    Source: "Measuring the Intrinsic Dimension of Objective Landscapes", C. Li,
    H. Farkhoor, R. Liu, J. Yosinski, 2018; "Fastfood - Approximating Kernel Expansions
    in Loglinear Time", Q. Le, T. Sarlós, A. Smola, 2013; "Very Sparse Random
    Projections", P. Li, T. Hastie, K. Church, 2006.

    Examples:
        >>> basis = random_basis(1000, 20, "fastfood")
        >>> basis.shape, (basis @ torch.ones(20).double()).shape
        ((1000, 20), torch.Size([1000]))
    """
    if kind not in get_args(BasisKind):
        raise InputError(f"kind must be one of {get_args(BasisKind)}, got {kind!r}")
    if not 1 <= k <= dim:
        raise InputError(f"k must lie in 1 ... dim = {dim}, got {k}")
    if kind == "sparse":
        return SparseBasis(dim, k, seed)
    if kind == "fastfood":
        return FastfoodBasis(dim, k, seed)
    columns = torch.empty(k, dim, dtype=dtype)
    for j, row in enumerate(columns):
        row.normal_(generator=generator(seed, "dense", j))
        row /= row.norm(dtype=torch.float64)
    return columns.T


class RandomBasis(ABC):
    """A linear map (dim, k) that is no matrix in memory."""

    def __init__(self, dim: int, k: int) -> None:
        self.shape = (dim, k)

    def __matmul__(self, c: Float[Tensor, " k"]) -> Float[Tensor, " dim"]:
        """Return the combination of the columns."""
        return self._combine(_checked(c, self.shape[1], self.shape))

    @property
    def T(self) -> "Transposed":
        """The transposed map."""
        return Transposed(self)

    @abstractmethod
    def _combine(self, c: Tensor) -> Tensor: ...

    @abstractmethod
    def _pull_back(self, v: Tensor) -> Tensor: ...


class Transposed:
    """The transpose of a random basis."""

    def __init__(self, basis: RandomBasis) -> None:
        self.T = basis
        self.shape = basis.shape[::-1]

    def __matmul__(self, v: Float[Tensor, " dim"]) -> Float[Tensor, " k"]:
        """Return the inner products of the columns with v."""
        return self.T._pull_back(_checked(v, self.shape[1], self.shape))


def _checked(v: Tensor, size: int, shape: tuple[int, ...]) -> Tensor:
    if v.shape != (size,):
        raise StructureError(
            f"a map of shape {shape} multiplies a vector ({size},), got "
            f"{tuple(v.shape)}"
        )
    return v


class SparseBasis(RandomBasis):
    """Columns of a few entries ±1, over the root of their number."""

    def __init__(self, dim: int, k: int, seed: int) -> None:
        super().__init__(dim, k)
        count = int(dim**0.5)
        count += count * count < dim
        self.rows = torch.empty(k, count, dtype=torch.int64)
        self.signs = torch.empty(k, count, dtype=torch.int8)
        for j in range(k):
            draws = generator(seed, "sparse", j)
            self.rows[j] = _distinct(dim, count, draws)
            self.signs[j] = 2 * torch.randint(0, 2, (count,), generator=draws) - 1

    def _entries(self, like: Tensor) -> tuple[Tensor, Tensor]:
        rows, signs = self.rows.to(like.device), self.signs.to(like)
        return rows, signs / self.rows.shape[1] ** 0.5

    def _combine(self, c: Tensor) -> Tensor:
        rows, values = self._entries(c)
        zero = torch.zeros(self.shape[0], dtype=c.dtype, device=c.device)
        return zero.index_add(0, rows.flatten(), (values * c[:, None]).flatten())

    def _pull_back(self, v: Tensor) -> Tensor:
        rows, values = self._entries(v)
        return (v[rows] * values).sum(1)


def _distinct(dim: int, count: int, draws: torch.Generator) -> Int[Tensor, " count"]:
    """Draw `count` of `dim` numbers without repetition, in the order drawn."""
    seen: dict[int, None] = {}
    while len(seen) < count:
        more = torch.randint(dim, (count,), generator=draws)
        seen |= dict.fromkeys(more.tolist())
    return torch.tensor(list(seen)[:count])


class FastfoodBasis(RandomBasis):
    """Blocks of rows, each an own H G Π H B of the padded coordinates.

    The rows are cut into blocks whose sizes are powers of two: as many as fit of n, the
    least power of two not below k, and smaller ones for what remains. A block of s < n
    rows folds the coordinates into n / s parts, each with an own H G Π H B, and adds
    these up. With |G|² = s in each part all columns have the same length in a block,
    sqrt(s / dim) after scaling, so that they have length 1 in all: nothing is cut off.
    """

    def __init__(self, dim: int, k: int, seed: int) -> None:
        super().__init__(dim, k)
        self.padded = 1 << (k - 1).bit_length()
        self.blocks = [
            _Block(size, count, -(-k // size), generator(seed, "fastfood", size))
            for size, count in _sizes(dim, self.padded)
        ]

    def _combine(self, c: Tensor) -> Tensor:
        parts = [block.combine(c).flatten() for block in self.blocks]
        return torch.cat(parts) / self.shape[0] ** 0.5

    def _pull_back(self, v: Tensor) -> Tensor:
        dim, k = self.shape
        total = torch.zeros(k, dtype=v.dtype, device=v.device)
        rows = v.split([block.rows for block in self.blocks])
        for block, part in zip(self.blocks, rows, strict=True):
            total = total + block.pull_back(part)[:k]
        return total / dim**0.5


def _sizes(dim: int, largest: int) -> list[tuple[int, int]]:
    """Return sizes of blocks, powers of two, and how many of each add up to dim."""
    sizes = [(largest, dim // largest)] if dim >= largest else []
    rest = dim % largest
    powers = (1 << i for i in reversed(range(rest.bit_length())))
    return sizes + [(power, 1) for power in powers if rest & power]


class _Block:
    """`count` blocks of `size` rows, over `parts` parts of the coordinates each."""

    def __init__(
        self, size: int, count: int, parts: int, draws: torch.Generator
    ) -> None:
        shape = (count, parts, size)
        self.rows, self.size = size * count, size
        self.signs = (2 * torch.randint(0, 2, shape, generator=draws) - 1).to(
            torch.int8
        )
        scores = torch.rand(shape, generator=draws, dtype=torch.float64)
        self.order = scores.argsort(-1)
        normal = torch.randn(shape, generator=draws, dtype=torch.float64)
        self.scale = normal / normal.norm(dim=-1, keepdim=True)

    def combine(self, c: Tensor) -> Tensor:
        parts = self.signs.shape[1]
        padded = torch.nn.functional.pad(c, (0, parts * self.size - len(c)))
        mixed = hadamard(padded.reshape(parts, self.size) * self.signs.to(c))
        chosen = mixed.gather(-1, self.order.to(c.device)) * self.scale.to(c)
        return hadamard(chosen.sum(1))

    def pull_back(self, v: Tensor) -> Tensor:
        spread = hadamard(v.reshape(-1, 1, self.size)) * self.scale.to(v)
        order = self.order.to(v.device)
        back = torch.zeros_like(spread).scatter(-1, order, spread)
        return (hadamard(back) * self.signs.to(v)).sum(0).flatten()


def hadamard(x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
    """Return H x along the last axis, for H of entries ±1 in Sylvester's order.

    n must be a power of two. n log n operations.
    """
    shape, n, half = x.shape, x.shape[-1], 1
    while half < n:
        pairs = x.reshape(*shape[:-1], n // (2 * half), 2, half)
        low, high = pairs.unbind(-2)
        x = torch.stack([low + high, low - high], dim=-2)
        half *= 2
    return x.reshape(shape)
