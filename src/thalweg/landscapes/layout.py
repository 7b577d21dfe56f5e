"""How a flat point is read: ordered named blocks, each with its shape and offset."""

import fnmatch
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError, StructureError


@dataclass(frozen=True)
class Block:
    """One named tensor inside a flat point.

    Args:
        name: Dotted name, as in a state dict.
        shape: Shape of the real tensor; a complex parameter counts as its
            `view_as_real`, with a last axis of length 2.
        offset: Index of its first entry in the point.
        filter_axis: Axis along which its filters (one an output unit) are stacked,
            or None where it has none.
        groups: Number of groups of a grouped transposed convolution, else 1.
        owner: Name of the owning module's class, or "".
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    filter_axis: int | None = None
    groups: int = 1
    owner: str = ""

    @property
    def size(self) -> int:
        """Number of real scalars."""
        return math.prod(self.shape)

    @property
    def slice(self) -> slice:
        """Where the block lies in a flat point."""
        return slice(self.offset, self.offset + self.size)


@dataclass(frozen=True)
class Layout:
    """Ordered blocks that fill a flat point without gaps."""

    blocks: tuple[Block, ...]

    @classmethod
    def single(cls, dim: int, name: str = "x") -> "Layout":
        """Return the layout of one unnamed block, the default of a landscape."""
        return cls((Block(name, (dim,), 0),))

    @cached_property
    def dim(self) -> int:
        """Length of a point."""
        return sum(block.size for block in self.blocks)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the blocks, in order."""
        return tuple(block.name for block in self.blocks)

    def __getitem__(self, name: str) -> Block:
        for block in self.blocks:
            if block.name == name:
                return block
        raise InputError(f"no block named {name!r}; the first are {self.names[:8]}")

    def split(self, point: Float[Tensor, "*batch dim"]) -> dict[str, Tensor]:
        """Return views of `point` by name, each of shape (*batch, *block.shape)."""
        if point.shape[-1] != self.dim:
            raise StructureError(
                f"a point of this layout has {self.dim} entries, got {point.shape[-1]}"
            )
        # One split: its backward is one concatenation, where slices each fill a point.
        pieces = torch.split(point, [block.size for block in self.blocks], dim=-1)
        return {
            block.name: piece.unflatten(-1, block.shape)
            if block.shape
            else piece.squeeze(-1)
            for block, piece in zip(self.blocks, pieces, strict=True)
        }

    def join(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, " dim"]:
        """Return the flat point whose blocks are `tensors`; inverse of `split`.

        Raises:
            StructureError: The names or a shape differ; the first one is named.
        """
        for block in self.blocks:
            if block.name not in tensors:
                raise StructureError(f"{block.name!r} is missing")
            shape = tuple(tensors[block.name].shape)
            if shape != block.shape:
                raise StructureError(
                    f"{block.name!r} has shape {shape}, expected {block.shape}"
                )
        extra = sorted(set(tensors) - set(self.names))
        if extra:
            raise StructureError(f"unexpected names: {extra[:8]}")
        return torch.cat([tensors[name].reshape(-1) for name in self.names])

    def select(self, patterns: str | Iterable[str]) -> tuple[Block, ...]:
        """Return the blocks whose names match any of the shell patterns.

        Raises:
            InputError: No name matches; the first names available are listed.
        """
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        chosen = tuple(
            block
            for block in self.blocks
            if any(fnmatch.fnmatchcase(block.name, pattern) for pattern in patterns)
        )
        if not chosen:
            raise InputError(
                f"no name matches {patterns}; the first names are {self.names[:8]}"
            )
        return chosen

    def part(self, patterns: str | Iterable[str]) -> "Layout":
        """Return the layout of the blocks that match alone, without gaps."""
        blocks, offset = [], 0
        for block in self.select(patterns):
            blocks.append(replace(block, offset=offset))
            offset += block.size
        return Layout(tuple(blocks))

    def indices(self, patterns: str | Iterable[str]) -> Tensor:
        """Return the positions in a point of all blocks that match, in order."""
        return torch.cat(
            [
                torch.arange(block.offset, block.offset + block.size)
                for block in self.select(patterns)
            ]
        )
