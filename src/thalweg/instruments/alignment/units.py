"""Sets of units that must be permuted together: a union-find that knows of blocks.

An axis is a row of stretches, each the units of one set with some entries a unit. As
operations tie axes, sets become one, or blocks of another, or fall into parts; what an
axis was first called stays valid throughout.
"""

from dataclasses import dataclass
from math import lcm

# A set of units, and how many neighboring entries each of them has here.
Stretch = tuple[int, int]
Labels = tuple[Stretch, ...]


@dataclass
class _Set:
    units: int
    fixed: bool
    becomes: Labels | None = None  # what the axis of these units is called by now
    # A set of heads and their number: the units move head by head, and within.
    heads: tuple[int, int] | None = None


class Units:
    """Sets of units, restricted step by step to what operations allow."""

    def __init__(self) -> None:
        self._sets: list[_Set] = []

    def new(self, size: int, *, fixed: bool = False) -> Labels:
        """Return an axis of `size` units of their own."""
        self._sets.append(_Set(size, fixed or size == 1))
        return ((len(self._sets) - 1, 1),)

    def now(self, labels: Labels) -> Labels:
        """Return what an axis is called by now."""
        result: list[Stretch] = []
        for index, repeat in labels:
            becomes = self._sets[index].becomes
            if becomes is None:
                result.append((index, repeat))
            else:
                result += [(i, r * repeat) for i, r in self.now(becomes)]
        return tuple(result)

    def units(self, index: int) -> int:
        """Return the number of units of a set."""
        return self._sets[index].units

    def size(self, labels: Labels) -> int:
        """Return the number of entries of an axis."""
        return sum(self._sets[i].units * r for i, r in labels)

    def is_fixed(self, labels: Labels) -> bool:
        """Say whether no unit of an axis may move."""
        return all(self._sets[i].fixed for i, _ in self.now(labels))

    def fix(self, labels: Labels) -> None:
        """Hold the units of an axis in place."""
        for index, _ in self.now(labels):
            one = self._sets[index]
            one.fixed = True
            if one.heads is not None:
                heads, one.heads = one.heads[0], None
                self.fix(((heads, 1),))

    def tie(self, first: Labels, second: Labels) -> None:
        """Give two axes of one size one order."""
        first, second = self.now(first), self.now(second)
        while first and second:
            left, right = self.size(first[:1]), self.size(second[:1])
            if left == right:
                self._merge(first[0], second[0])
                first, second = first[1:], second[1:]
            elif not (
                self._cut(first[0], right)
                if left > right
                else self._cut(second[0], left)
            ):
                self.fix(first)
                self.fix(second)
                return
            first, second = self.now(first), self.now(second)

    def part(self, labels: Labels, start: int, stop: int) -> Labels:
        """Return the entries from start to stop of an axis, which falls into parts.

        Where the cut goes through a unit the axis is fixed.
        """
        for place in (start, stop):
            offset = 0
            for stretch in self.now(labels):
                end = offset + self.size((stretch,))
                if offset < place < end and not self._cut(stretch, place - offset):
                    self.fix(labels)
                    return self.new(stop - start, fixed=True)
                offset = end
        offset, inside = 0, []
        for stretch in self.now(labels):
            if start <= offset < stop:
                inside.append(stretch)
            offset += self.size((stretch,))
        return tuple(inside)

    def block(self, labels: Labels, width: int) -> Labels:
        """Let the units of an axis move only in runs of `width` entries, or more."""
        for index, repeat in labels:
            if self.size(((index, repeat),)) % width:
                self.fix(((index, 1),))
        while coarse := [
            (index, lcm(repeat, width) // repeat)
            for index, repeat in self.now(labels)
            if repeat % width and not self._sets[index].fixed
        ]:
            self._coarsen(*coarse[0])
        return self.now(labels)

    def heads(self, labels: Labels, count: int) -> Labels:
        """Let units move in `count` heads, each unit in its own; return the heads.

        Sets whose heads are tied move head by head alike.
        """
        found = self.now(labels)
        if len(found) > 1 or found[0][1] > 1 or self._sets[found[0][0]].fixed:
            self.fix(labels)
            return self.new(count, fixed=True)
        one = self._sets[found[0][0]]
        if one.heads is not None and one.heads[1] != count:
            self.fix(labels)
            return self.new(count, fixed=True)
        if one.heads is None:
            one.heads = (self.new(count)[0][0], count)
        return self.now(((one.heads[0], 1),))

    def heads_of(self, index: int) -> tuple[int, int] | None:
        """Return the set of heads of a set of units and their number.

        A set whose heads are not free to move any more is fixed.
        """
        one = self._sets[index]
        if one.heads is None:
            return None
        found = self.now(((one.heads[0], 1),))
        if len(found) > 1 or found[0][1] > 1 or self.is_fixed(found):
            self.fix(((index, 1),))
            return None
        return found[0][0], one.heads[1]

    def _merge(self, first: Stretch, second: Stretch) -> None:
        (a, ra), (b, rb) = first, second
        if a == b:
            return
        whole = lcm(ra, rb)
        a, b = self._coarsen(a, whole // ra), self._coarsen(b, whole // rb)
        low, high = self._sets[min(a, b)], self._sets[max(a, b)]
        high.becomes = ((min(a, b), 1),)
        heads = [one.heads for one in (low, high) if one.heads is not None]
        low.heads = heads[0] if heads else None
        if low.fixed or high.fixed:
            self.fix(((min(a, b), 1),))
        if len(heads) == 2:
            if heads[0][1] == heads[1][1]:
                self.tie(((heads[0][0], 1),), ((heads[1][0], 1),))
            else:
                self.fix(((min(a, b), 1),))

    def _coarsen(self, index: int, factor: int) -> int:
        if factor == 1:
            return index
        one = self._sets[index]
        ((parent, _),) = self.new(one.units // factor, fixed=one.fixed)
        one.becomes = ((parent, factor),)
        if one.heads is not None:
            heads, count = one.heads
            width = one.units // count
            if factor % width == 0:
                self.tie(((heads, 1),), ((parent, factor // width),))
            elif width % factor == 0:
                self._sets[parent].heads = one.heads
            else:
                self.fix(((heads, 1),))
                self.fix(((parent, 1),))
        return parent

    def _cut(self, stretch: Stretch, entries: int) -> bool:
        """Let a set fall into two at an entry; say whether no unit was there."""
        index, repeat = stretch
        if entries % repeat:
            return False
        one = self._sets[index]
        if one.heads is not None:
            self.fix(((index, 1),))
        first = entries // repeat
        parts = [first, one.units - first]
        one.becomes = tuple(self.new(n, fixed=one.fixed)[0] for n in parts)
        return True
