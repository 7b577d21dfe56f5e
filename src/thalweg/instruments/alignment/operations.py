"""How operations without weights act on permuted units."""

from collections.abc import Sequence
from math import prod

from thalweg.errors import StructureError
from thalweg.instruments.alignment.layers import QKV, Layers
from thalweg.instruments.alignment.units import Labels
from thalweg.instruments.alignment.walk import (
    BY_HAND,
    Choice,
    Chosen,
    Entry,
    Inner,
    Tensors,
    argument,
    option,
)
from thalweg.models import Node

# Up to so many parts of an axis that a reshape cuts in three or more are taken for
# tensors of their own: the queries, keys and values of one projection.
SIDE_BY_SIDE = 3


class Operations(Layers):
    """The rules for what goes in and out, and for operations without weights."""

    def _input(self, node: Node) -> Tensors:
        return self.fixed(node.shape)

    def _parameter(self, node: Node) -> Tensors:
        if node.path not in self.state:
            return self.fixed(node.shape)
        return list(self.parameter(node.path))

    def _size(self, node: Node) -> None:
        return None

    def _output(self, node: Node) -> None:
        for name in node.inputs:
            for axes in self.parts.get(name, [self.axes.get(name, [])]):
                self.fix(axes)

    def _other(self, node: Node) -> Tensors | None:
        given = [axis for name in node.inputs for axis in self.axes.get(name, [None])]
        if any(
            not isinstance(axis, tuple) or not self.units.is_fixed(axis)
            for axis in given
        ):
            raise StructureError(
                f"how {node} acts on permuted units is not known: {BY_HAND}"
            )
        if node.shape is None:
            self.parts[node.name] = []
            return None
        return self.fixed(node.shape)

    def _activation(self, node: Node) -> Tensors:
        return self.source(node)

    _softmax = _activation

    def _elementwise(self, node: Node) -> Tensors:
        if node.operation in ("to", "type_as", "float", "double"):
            return self.source(node)
        return self.together(self.operands([node.arguments, node.keywords]))

    def _add(self, node: Node) -> Tensors:
        return self.together(self.operands([node.arguments, node.keywords]))

    _multiply = _add

    def _matmul(self, node: Node) -> Tensors:
        (left, a), (right, b) = self.operands([node.arguments, node.keywords])
        if min(len(a), len(b)) < 2:
            self.fix(left)
            self.fix(right)
            return self.fixed(node.shape)
        batch = []
        if len(a) > 2 or len(b) > 2:
            batch = self.together([(left[:-2], a[:-2]), (right[:-2], b[:-2])])
        self.tie(left[-1], right[-2])
        return [*batch, left[-2], right[-1]]

    def _attention_product(self, node: Node) -> Tensors:
        given = [argument(node, i, name) for i, name in enumerate((*QKV, "attn_mask"))]
        operands = self.operands(given)
        (query, shape), (key, _), (value, _) = operands[:3]
        if any(tuple(other[:-2]) != tuple(shape[:-2]) for _, other in operands[1:3]):
            for axes, _ in operands:
                self.fix(axes)
            return self.fixed(node.shape)
        batch: Tensors = []
        if len(shape) > 2:
            batch = self.together([(axes[:-2], s[:-2]) for axes, s in operands])
        self.tie(query[-1], key[-1])
        self.fix([query[-2], key[-2], value[-2]])
        for mask, _ in operands[3:]:
            self.fix(mask[-2:])
        return [*batch, query[-2], value[-1]]

    def _pool(self, node: Node) -> Tensors | None:
        axes, shape = self.source(node), node.shape
        if shape is None:  # return_indices
            return self._other(node)
        if node.operation == "interpolate":
            spatial = len(axes) - 2
        else:
            spatial = int(node.operation[-2])
        self.fix(axes[-spatial:])
        return [*axes[:-spatial], *self.fixed(shape[-spatial:])]

    def _pad(self, node: Node) -> Tensors:
        axes, shape = self.source(node), node.shape
        pads = option(node, 1, "pad", ())
        padded = len(getattr(node.module, "padding", pads)) // 2
        assert shape is not None
        self.fix(axes[-padded:])
        return [*axes[:-padded], *self.fixed(shape[-padded:])]

    def _reduce(self, node: Node) -> Tensors:
        axes = self.source(node)
        dims = option(node, 1, "dim", range(len(axes)))
        gone = {d % len(axes) for d in ([dims] if isinstance(dims, int) else dims)}
        left = [axis for k, axis in enumerate(axes) if k not in gone]
        if any(not isinstance(axes[k], Inner) for k in gone):
            left = [self.plain(axis) for axis in left]
        if len(left) == len(node.shape or ()):
            return left
        kept = iter(left)
        return [
            self.units.new(1) if k in gone else next(kept) for k in range(len(axes))
        ]

    def _permute(self, node: Node) -> Tensors:
        axes = self.source(node)
        given = [a for a in node.arguments[1:] if not isinstance(a, str)]
        given += node.keywords.values()
        if node.operation == "permute":
            order = given[0] if isinstance(given[0], tuple | list) else given
            return [axes[d] for d in order]
        i, j = given if len(given) == 2 else (-2, -1)
        axes[i], axes[j] = axes[j], axes[i]
        return axes

    def _expand(self, node: Node) -> Tensors:
        axes, before = self.source(node), self.nodes[node.inputs[0]].shape or ()
        after = node.shape or ()
        new = len(after) - len(before)
        result = self.fixed(after[:new])
        for axis, old, size in zip(axes, before, after[new:], strict=True):
            result.append(axis if old == size else self.units.new(size, fixed=True))
        return result

    def _stack(self, node: Node) -> Tensors:
        operands = self.operands([node.arguments, node.keywords])
        result = self.together(operands)
        dim = option(node, 1, "dim", 0) % (len(result) + 1)
        new = self.units.new(len(operands), fixed=True)
        return [*result[:dim], new, *result[dim:]]

    def _concat(self, node: Node) -> Tensors:
        operands = self.operands([node.arguments, node.keywords])
        count = len(operands[0][0])
        dim = option(node, 1, "dim", 0) % count
        along: Labels = ()
        for axes, _ in operands:
            along += self.plain(axes[dim])
        result = list(operands[0][0])
        for axes, _ in operands[1:]:
            for k in range(count):
                if k != dim:
                    self.tie(result[k], axes[k])
        result[dim] = along
        return result

    def _split(self, node: Node) -> None:
        axes, shape = self.source(node), self.nodes[node.inputs[0]].shape or ()
        dim = option(node, 1 if node.operation == "unbind" else 2, "dim", 0)
        dim %= len(axes)
        if node.operation == "unbind":
            count = shape[dim]
            self.parts[node.name] = [self.choose(axes, dim, i) for i in range(count)]
            return
        names = ("chunks", "split_size", "split_size_or_sections")
        found = (argument(node, 1, name) for name in names)
        given = next(one for one in found if one is not None)
        size = shape[dim]
        if isinstance(given, int):
            width = -(-size // given) if node.operation == "chunk" else given
            given = [min(width, size - start) for start in range(0, size, width)]
        labels, start, parts = self.plain(axes[dim]), 0, []
        for width in given:
            part = self.units.part(labels, start, start + width)
            parts.append([*axes[:dim], part, *axes[dim + 1 :]])
            start += width
        self.parts[node.name] = parts

    def _index(self, node: Node) -> Tensors | None:
        if node.inputs[0] in self.parts:
            parts, which = self.parts[node.inputs[0]], node.arguments[1]
            if isinstance(which, slice):
                self.parts[node.name] = parts[which]
                return None
            whole = isinstance(which, int) and -len(parts) <= which < len(parts)
            return list(parts[which]) if whole else self.fixed(node.shape)
        axes, index = self.source(node), node.arguments[1]
        steps = list(index) if isinstance(index, tuple) else [index]
        known = (int, slice, type(None), type(Ellipsis))
        if any(not isinstance(s, known) or isinstance(s, bool) for s in steps):
            self.fix(axes)
            return self.fixed(node.shape)
        used = sum(isinstance(s, int | slice) for s in steps)
        at = steps.index(Ellipsis) if Ellipsis in steps else len(steps)
        steps[at : at + 1] = [slice(None)] * (len(axes) - used)
        reading = [step for step in steps if step is not None]
        for k in reversed(range(len(axes))):
            if isinstance(reading[k], int):
                axes = self.choose(axes, k, reading[k])
        left = iter(axes)
        return [
            self.units.new(1) if step is None else self._sliced(next(left), step)
            for step in steps
            if not isinstance(step, int)
        ]

    def _sliced(self, axis: Entry, step: slice) -> Entry:
        size = self.length(axis)
        start, stop, stride = step.indices(size)
        if (start, stop, stride) == (0, size, 1):
            return axis
        labels = self.plain(axis)
        if stride == 1:
            return self.units.part(labels, start, stop)
        self.units.fix(labels)
        return self.units.new(len(range(start, stop, stride)), fixed=True)

    def _reshape(self, node: Node) -> Tensors:
        axes, before = self.source(node), self.nodes[node.inputs[0]].shape or ()
        after = node.shape or ()
        wide = [axis for axis, size in zip(axes, before, strict=True) if size != 1]
        left = [size for size in before if size != 1]
        right = [size for size in after if size != 1]
        made: Tensors = []
        for run, into in regroup(left, right):
            axis = wide[run[-1]]
            size = left[run[-1]]
            for k in reversed(run[:-1]):
                axis = self._joined(wide[k], left[k], axis, size)
                size *= left[k]
            sizes = [right[k] for k in into]
            if len(sizes) > 2 and sizes[0] <= SIDE_BY_SIDE and isinstance(axis, tuple):
                made += self._beside(axis, sizes)
            else:
                made += self._spread(axis, sizes)
        found = iter(made)
        return [next(found) if size != 1 else self.units.new(1) for size in after]

    def _beside(self, axis: Labels, sizes: list[int]) -> Tensors:
        """Return the axes of tensors side by side, their number the first size."""
        width = prod(sizes[1:])
        parts = [
            self.units.part(axis, start, start + width)
            for start in range(0, sizes[0] * width, width)
        ]
        choice = Choice([self._spread(part, sizes[1:]) for part in parts])
        behind = [Chosen(choice, place) for place in range(len(sizes) - 1)]
        return [choice, *behind]

    def _spread(self, axis: Entry, sizes: list[int]) -> list[Labels | Inner]:
        """Return the axes of these sizes that a reshape makes of one."""
        made: list[Labels | Inner] = []
        for k, count in enumerate(sizes[:-1]):
            first, axis = self._parted(axis, count, prod(sizes[k + 1 :]))
            made.append(first)
        assert isinstance(axis, tuple | Inner)
        return [*made, axis]

    def _joined(self, first: Entry, count: int, second: Entry, size: int) -> Labels:
        """Return the axis that a reshape makes of two."""
        first = self.plain(first)
        if isinstance(second, Inner):
            whole = self.units.now(second.whole)
            heads = self.units.heads_of(whole[0][0]) if len(whole) == 1 else None
            if heads is not None and ((heads[0], 1),) == self.units.now(first):
                return whole
        second = self.plain(second)
        if self.units.is_fixed(first) and not self.units.is_fixed(second):
            return second * count
        self.units.fix(second)
        return tuple((index, repeat * size) for index, repeat in self.units.now(first))

    def _parted(self, axis: Entry, count: int, size: int) -> tuple[Labels, Entry]:
        """Return the two axes that a reshape makes of one."""
        labels = self.units.now(self.plain(axis))
        repeated = labels[: len(labels) // count] * count
        if len(labels) > 1 and labels == repeated:
            return self.units.new(count, fixed=True), labels[: len(labels) // count]
        movable = not self.units.is_fixed(labels)
        if movable and len(labels) == 1 and labels[0][1] == 1:
            return self.units.heads(labels, count), Inner(labels, count)
        labels = self.units.block(labels, size)
        inner = self.units.new(size, fixed=True)
        if any(repeat % size for _, repeat in labels):
            self.units.fix(labels)
            return self.units.new(count, fixed=True), inner
        return tuple((i, r // size) for i, r in labels), inner


def regroup(
    before: Sequence[int], after: Sequence[int]
) -> list[tuple[list[int], list[int]]]:
    """Return the runs of axes that a reshape turns into one another.

    The shortest runs of equal products, of sizes above 1: (8, 16, 4, 4) -> (8, 256)
    gives axis 0 -> 0 and axes 1, 2, 3 -> 1.
    """
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before):
        left, right = [i], [j]
        while (have := prod(before[k] for k in left)) != (
            want := prod(after[k] for k in right)
        ):
            if have < want:
                left.append(left[-1] + 1)
            else:
                right.append(right[-1] + 1)
        runs.append((left, right))
        i, j = left[-1] + 1, right[-1] + 1
    return runs
