"""The search for the permutations under which one network is nearest another."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.instruments.alignment.inference import Place
from thalweg.instruments.alignment.permutations import (
    Permutation,
    PermutationSpec,
    permuted,
)
from thalweg.models import Graph
from thalweg.seeding import numpy_generator

Scores = Float[Tensor, "_units _units"]
Permutations = dict[str, Permutation]


@dataclass(frozen=True)
class Match:
    """Permutations, <a, permuted b> over the weights, sweeps until nothing was gained.

    `converged` is False where the sweeps ran out before.
    """

    permutations: Permutations
    objective: float
    sweeps: int
    converged: bool


class WeightMatching:
    """Coordinate ascent on sum <W_a, P W_b> over the permutations of a spec.

    Given the others, the objective is linear in one permutation: the best is that of a
    linear assignment with scores <unit i of a, unit j of b>. Where a permutation acts
    on two axes of one tensor it is not, and a step is taken only if it gains.

    Args:
        spec: What may be permuted.
        a: Weights by name.
        b: Weights of the network to permute.
    """

    def __init__(
        self, spec: PermutationSpec, a: Mapping[str, Tensor], b: Mapping[str, Tensor]
    ) -> None:
        self.spec = spec
        self.a = {name: tensor.detach().double().cpu() for name, tensor in a.items()}
        self.b = {name: tensor.detach().double().cpu() for name, tensor in b.items()}
        self.steps = [_Step(spec, self.a, *step) for step in steps_of(spec)]

    def objective(
        self, permutations: Permutations, names: Sequence[str] | None = None
    ) -> float:
        """Return sum <W_a, P W_b> over all tensors, or those named."""
        return sum(
            float(
                (self.a[n] * permuted(self.b[n], self.spec.axes[n], permutations)).sum()
            )
            for n in (self.a if names is None else names)
        )

    def climb(
        self,
        start: Permutations,
        *,
        sweeps: int,
        tol: float,
        seed: int,
        key: int,
        only: Sequence[str] | None = None,
    ) -> Match:
        """Improve one permutation after the other, in random order, until none gains.

        A permutation is looked at again where one that shares a tensor has changed.

        Args:
            start: Where to begin.
            sweeps: Limit of rounds over the permutations.
            tol: Gain of a step, relative to the objective, that counts as none.
            seed: Seed of the orders.
            key: Number of the run.
            only: Permutations to improve; all by default.
        """
        current, rng = dict(start), numpy_generator(seed, "matching", key)
        objective, sweep = self.objective(current), 0
        wanted = [s for s in self.steps if only is None or set(s.ids) <= set(only)]
        stale = set(range(len(wanted)))  # steps whose scores may have changed
        while stale and sweep < sweeps:
            sweep += 1
            for i in rng.permutation(sorted(stale)):
                step = wanted[i]
                stale.discard(int(i))
                found, gain = self._best(current, step)
                if gain > tol * abs(objective):
                    current.update(found)
                    objective += gain
                    stale |= {j for j, s in enumerate(wanted) if step.moves(s)}
        return Match(current, self.objective(current), sweep, not stale)

    def scores(self, id: str, permutations: Permutations) -> Scores:
        """Return <unit i of a, unit j of b>, all other permutations as they are."""
        size = self.spec.sizes[id]
        total = torch.zeros(size, size, dtype=torch.float64)
        for name, tensor in self.a.items():
            axes = self.spec.axes[name]
            for k, axis in enumerate(axes):
                if all(segment.id != id for segment in axis):
                    continue
                moved = permuted(self.b[name], axes, permutations, skip=k)
                first, second = tensor.movedim(k, 0), moved.movedim(k, 0)
                offset = 0
                for segment in axis:
                    if segment.id == id:
                        rows = slice(offset, offset + segment.size)
                        x = first[rows].reshape(size, -1)
                        y = second[rows].reshape(size, -1)
                        total += x @ y.T
                    offset += segment.size
        return total

    def _best(self, current: Permutations, step: "_Step") -> tuple[Permutations, float]:
        """Return the best permutations of a step, and what they gain."""
        scores = {id: self.scores(id, current) for id in step.ids}
        found = assign(scores, step.heads)
        if step.linear:
            gain = sum(
                _total(score, found[id]) - _total(score, current[id])
                for id, score in scores.items()
            )
            return found, gain
        before = self.objective(current, step.tensors)
        return found, self.objective(current | found, step.tensors) - before


def _total(score: Scores, permutation: Permutation) -> float:
    return float(score.gather(1, permutation[:, None]).sum())


class _Step:
    """Permutations that are chosen at once, and the tensors on which they act."""

    def __init__(
        self,
        spec: PermutationSpec,
        tensors: Mapping[str, Tensor],
        ids: tuple[str, ...],
        heads: int | None,
    ) -> None:
        def count(name: str) -> int:
            return sum(any(s.id in ids for s in axis) for axis in spec.axes[name])

        self.ids, self.heads = ids, heads
        self.tensors = [name for name in tensors if count(name)]
        self.linear = all(count(name) == 1 for name in self.tensors)

    def moves(self, other: "_Step") -> bool:
        """Say whether the other's scores depend on this one's permutations."""
        if other is self:
            return not self.linear
        return not set(self.tensors).isdisjoint(other.tensors)


def steps_of(spec: PermutationSpec) -> list[tuple[tuple[str, ...], int | None]]:
    """Return the permutations that are chosen at once, with the number of heads."""
    headed = {id for group in spec.heads for id in group.ids}
    alone = [((id,), None) for id in spec.sizes if id not in headed]
    return [*alone, *((group.ids, group.count) for group in spec.heads)]


def assign(scores: Mapping[str, Scores], count: int | None) -> Permutations:
    """Return the permutations of the largest total score.

    With heads: the best order within each pair of heads, then the best pairs. The
    assignments take O(units³).
    """
    from scipy.optimize import linear_sum_assignment

    def best(matrix: Tensor) -> tuple[Tensor, float]:
        rows, columns = linear_sum_assignment(matrix.numpy(), maximize=True)
        return torch.from_numpy(columns), float(matrix[rows, columns].sum())

    if count is None:
        return {id: best(matrix)[0] for id, matrix in scores.items()}
    total = torch.zeros(count, count, dtype=torch.float64)
    inner: dict[tuple[str, int, int], Tensor] = {}
    for id, matrix in scores.items():
        width = len(matrix) // count
        blocks = matrix.reshape(count, width, count, width).transpose(1, 2)
        for i in range(count):
            for j in range(count):
                inner[id, i, j], value = best(blocks[i, j])
                total[i, j] += value
    outer = best(total)[0].tolist()
    return {
        id: torch.cat(
            [j * (len(matrix) // count) + inner[id, i, j] for i, j in enumerate(outer)]
        )
        for id, matrix in scores.items()
    }


def match_activations(
    spec: PermutationSpec,
    places: Sequence[Place],
    graph: Graph,
    states: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    batches: Iterable[Tensor],
) -> Permutations:
    """Match units by the correlation of what they do on data.

    The scores are Pearson correlations over examples and positions, summed over all
    places at which the units are seen; a constant unit counts as uncorrelated. Costs
    one pass of each network over the data.

    Returns:
        The permutations of the units that are seen somewhere.
    """
    moments = {place: _Moments() for place in places}
    for inputs in batches:
        first, second = (graph.values(inputs, state) for state in states)
        for place, moment in moments.items():
            moment.add(
                *(_rows(v[place.node], place.axis) for v in (first, second)),
            )
    scores: dict[str, Tensor] = {}
    for place, moment in moments.items():
        scores[place.id] = scores.get(place.id, 0) + moment.correlation()
    found: Permutations = {}
    for ids, count in steps_of(spec):
        if all(id in scores for id in ids):
            found |= assign({id: scores[id] for id in ids}, count)
    return found


def _rows(values: Tensor, axis: int) -> Float[Tensor, "rows units"]:
    return values.detach().movedim(axis, -1).flatten(0, -2).double().cpu()


class _Moments:
    """Sums over rows of two sets of units, for their correlations."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def add(self, x: Float[Tensor, "n u"], y: Float[Tensor, "n u"]) -> None:
        count = torch.tensor(float(len(x)), dtype=torch.float64)
        new = [count, x.sum(0), y.sum(0), (x**2).sum(0), (y**2).sum(0), x.T @ y]
        old = self.parts or [torch.zeros_like(part) for part in new]
        self.parts = [a + b for a, b in zip(old, new, strict=True)]

    def correlation(self) -> Float[Tensor, "u u"]:
        n, x, y, xx, yy, xy = self.parts
        spread = [(s / n - (m / n) ** 2).clamp(min=0) for m, s in ((x, xx), (y, yy))]
        eps = torch.finfo(torch.float64).eps
        still = [v <= 100 * eps * s / n for v, s in zip(spread, (xx, yy), strict=True)]
        scale = [
            torch.where(dead, 0.0, v.clamp(min=1e-300).rsqrt())
            for v, dead in zip(spread, still, strict=True)
        ]
        centered = xy / n - torch.outer(x, y) / n**2
        return scale[0][:, None] * centered * scale[1]
