"""The permutations of units that leave a traced network's function as it is."""

from collections.abc import Mapping
from dataclasses import dataclass

from thalweg.instruments.alignment.operations import Operations
from thalweg.instruments.alignment.permutations import (
    Axis,
    Heads,
    PermutationSpec,
    Segment,
)
from thalweg.instruments.alignment.units import Labels, Units
from thalweg.instruments.alignment.walk import Walk
from thalweg.models import Graph

# Operations whose results show what their units do, for matching by activations.
SHOWING = ("linear", "conv", "conv_transpose", "norm", "embedding", "activation", "add")


@dataclass(frozen=True)
class Place:
    """An axis of a node's tensor whose entries are the units of a permutation."""

    node: str
    axis: int
    id: str


def infer_spec(graph: Graph) -> tuple[PermutationSpec, tuple[Place, ...]]:
    """Infer how the units of a network may be permuted, and where they are seen.

    Permutations are named after the first parameter that they act on.

    Raises:
        StructureError: An operation is of no known kind (it is named).
    """
    walk = Operations(graph)
    for node in graph.nodes:
        walk.visit(node)
    names = _names(walk)
    sizes = {name: walk.units.units(index) for index, name in names.items()}
    axes = {
        name: tuple(_axis(walk.units, labels, names) for labels in walk.parameters[key])
        for name, key in walk.first.items()
        if key in walk.parameters
    }
    spec = PermutationSpec(axes, sizes, _heads(walk.units, names))
    return spec, tuple(_places(walk, names))


def _names(walk: Walk) -> dict[int, str]:
    """Name the sets of units that may move."""
    found = [
        (key, index)
        for key in sorted(walk.state, key=lambda key: "weight" not in key)
        for labels in walk.parameters.get(key, ())
        for index, _ in walk.units.now(labels)
    ]
    for _, index in found:
        walk.units.heads_of(index)  # fixes units in heads that may not move
    names: dict[int, str] = {}
    for key, index in found:
        if index not in names and not walk.units.is_fixed(((index, 1),)):
            name = key.removesuffix(".weight")
            same = sum(n == name or n.startswith(f"{name}#") for n in names.values())
            names[index] = f"{name}#{same + 1}" if same else name
    return names


def _axis(units: Units, labels: Labels, names: Mapping[int, str]) -> Axis:
    return tuple(
        Segment(names.get(index), units.units(index), repeat)
        for index, repeat in units.now(labels)
    )


def _heads(units: Units, names: Mapping[int, str]) -> tuple[Heads, ...]:
    groups: dict[tuple[int, int], list[str]] = {}
    for index, name in names.items():
        group = units.heads_of(index)
        if group is not None:
            groups.setdefault(group, []).append(name)
    for (index, _), ids in groups.items():
        if index in names:
            ids.append(names[index])
    return tuple(Heads(tuple(ids), count) for (_, count), ids in groups.items())


def _places(walk: Walk, names: Mapping[int, str]) -> list[Place]:
    found = []
    for node, axes in walk.axes.items():
        if walk.nodes[node].kind not in SHOWING:
            continue
        for k, axis in enumerate(axes):
            now = walk.units.now(axis) if isinstance(axis, tuple) else ()
            if len(now) == 1 and now[0][1] == 1 and now[0][0] in names:
                found.append(Place(node, k, names[now[0][0]]))
    return found
