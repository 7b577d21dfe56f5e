"""Which axes of which parameters a permutation of units acts on, and how.

A spec says it; `inference.py` infers one from a network, `matching.py` searches in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from thalweg.errors import InputError, StructureError
from thalweg.seeding import generator

Permutation = Int[Tensor, " _units"]


@dataclass(frozen=True)
class Segment:
    """A stretch of an axis: units in a row, each of `repeat` neighboring entries.

    Args:
        id: The permutation that moves the units; None where they stay.
        units: How many there are.
        repeat: Entries a unit: 1, or height x width behind a flatten.
    """

    id: str | None
    units: int
    repeat: int = 1

    @property
    def size(self) -> int:
        """Entries of the stretch."""
        return self.units * self.repeat


Axis = tuple[Segment, ...]


@dataclass(frozen=True)
class Heads:
    """Permutations that move whole heads together, and units within each head.

    Args:
        ids: Permutations with one order of heads and inner orders of their own.
        count: Number of heads.
    """

    ids: tuple[str, ...]
    count: int


@dataclass(frozen=True)
class PermutationSpec:
    """The axes of all tensors of a state dict that permutations of units act on.

    Args:
        axes: Name in the state dict -> one tuple of segments an axis. Tensors that
            are not named stay as they are.
        sizes: Permutation -> number of units.
        heads: Permutations that are tied head by head.
    """

    axes: Mapping[str, tuple[Axis, ...]]
    sizes: Mapping[str, int]
    heads: tuple[Heads, ...] = field(default=())

    @classmethod
    def named(
        cls,
        state: Mapping[str, Tensor],
        names: Mapping[str, Sequence[str | tuple[str, int] | None]],
    ) -> "PermutationSpec":
        """Write a spec by hand: one name, (name, repeat) or None an axis.

        Args:
            state: State dict whose shapes give the sizes.
            names: `{"0.weight": ("h", None), "0.bias": ("h",), "2.weight":
                (None, "h")}`; `("h", 16)` where each unit has 16 entries in a row.

        Raises:
            StructureError: A name is not in the state dict, axes are too few or too
                many, or a permutation has two sizes.
        """
        axes: dict[str, tuple[Axis, ...]] = {}
        sizes: dict[str, int] = {}
        for key, entries in names.items():
            if key not in state:
                raise StructureError(f"spec names {key!r}, which is not in the model")
            shape = tuple(state[key].shape)
            if len(entries) != len(shape):
                raise StructureError(
                    f"spec gives {len(entries)} axes for {key!r} of shape {shape}"
                )
            found: list[Axis] = []
            for entry, size in zip(entries, shape, strict=True):
                id, repeat = entry if isinstance(entry, tuple) else (entry, 1)
                units = size // repeat
                if units * repeat != size:
                    raise StructureError(
                        f"spec repeats {repeat} entries a unit on an axis of {size} "
                        f"of {key!r}"
                    )
                if id is not None and sizes.setdefault(id, units) != units:
                    raise StructureError(
                        f"permutation {id!r} has {sizes[id]} units, but {units} in "
                        f"{key!r}"
                    )
                found.append((Segment(id, units, repeat),))
            axes[key] = tuple(found)
        return cls(axes, sizes)

    def identity(self) -> dict[str, Permutation]:
        """Return the permutations that leave everything in place."""
        return {id: torch.arange(size) for id, size in self.sizes.items()}

    def random(self, seed: int, *key: int | str) -> dict[str, Permutation]:
        """Draw permutations uniformly from those that the spec allows."""
        drawn = {
            id: torch.randperm(size, generator=generator(seed, "permutation", id, *key))
            for id, size in self.sizes.items()
        }
        for group in self.heads:
            count = group.count
            draw = generator(seed, "heads", *group.ids, *key)
            outer = torch.randperm(count, generator=draw)
            for id in group.ids:
                width = self.sizes[id] // count
                inner = [torch.randperm(width, generator=draw) for _ in range(count)]
                drawn[id] = torch.cat(
                    [int(h) * width + inner[i] for i, h in enumerate(outer)]
                )
        return drawn

    def apply(
        self, state: Mapping[str, Tensor], permutations: Mapping[str, Permutation]
    ) -> dict[str, Tensor]:
        """Return the state dict with unit i of each permutation p taken from p[i].

        Raises:
            InputError: A permutation is missing or is none of its units.
        """
        for id, size in self.sizes.items():
            p = permutations.get(id)
            if p is None or not torch.equal(p.sort().values, torch.arange(size)):
                raise InputError(
                    f"permutations[{id!r}] must order 0 to {size - 1}, got {p}"
                )
        return {
            name: permuted(tensor, self.axes[name], permutations).clone()
            if name in self.axes
            else tensor.detach().clone()
            for name, tensor in state.items()
        }


def permuted(
    tensor: Tensor,
    axes: tuple[Axis, ...],
    permutations: Mapping[str, Permutation],
    skip: int | None = None,
) -> Tensor:
    """Return the tensor with its axes permuted, but for the axis `skip`."""
    result = tensor.detach()
    for k, axis in enumerate(axes):
        if k != skip and any(segment.id is not None for segment in axis):
            index = entries(axis, permutations).to(tensor.device)
            result = result.index_select(k, index)
    return result


def entries(axis: Axis, permutations: Mapping[str, Permutation]) -> Tensor:
    """Return the index of an axis's entries under the permutations of its units."""
    parts, offset = [], 0
    for segment in axis:
        if segment.id is None:
            order = torch.arange(segment.units)
        else:
            order = permutations[segment.id]
        index = order[:, None] * segment.repeat + torch.arange(segment.repeat)
        parts.append(offset + index.reshape(-1))
        offset += segment.size
    return torch.cat(parts)
