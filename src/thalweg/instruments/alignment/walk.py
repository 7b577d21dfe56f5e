"""A walk through a traced network that gives every axis of every tensor its units.

What the rules for each kind of operation share; they are in `layers.py` and
`operations.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from thalweg.errors import StructureError
from thalweg.instruments.alignment.units import Labels, Units
from thalweg.models import Graph, Node, Value


@final
@dataclass(frozen=True)
class Inner:
    """An axis within heads: its units are those of `whole`, head by head."""

    whole: Labels
    count: int


@final
@dataclass(frozen=True, eq=False)
class Choice:
    """An axis along which tensors lie side by side: queries, keys, values in one."""

    options: "list[list[Labels | Inner]]"  # of each tensor, its axes behind this one


@final
@dataclass(frozen=True, eq=False)
class Chosen:
    """An axis behind a choice, whose units depend on what is chosen."""

    choice: Choice
    place: int


Entry = Labels | Inner | Choice | Chosen
Tensors = list[Entry]  # the units of a tensor, axis by axis
BY_HAND = "write the permutations by hand, `spec=PermutationSpec.named(...)`"


class Walk:
    """One pass over the nodes; the rules for each kind of operation."""

    def __init__(self, graph: Graph) -> None:
        self.units = Units()
        self.nodes = {node.name: node for node in graph.nodes}
        self.axes: dict[str, Tensors] = {}
        self.parts: dict[str, list[Tensors]] = {}  # of results that are tuples
        model = graph.module.get_submodule("model")
        state = model.state_dict(keep_vars=True)
        first = {id(tensor): name for name, tensor in reversed(state.items())}
        self.state: dict[str, Tensor] = state
        self.first = {name: first[id(tensor)] for name, tensor in state.items()}
        self.parameters: dict[str, list[Labels]] = {}

    def visit(self, node: Node) -> None:
        """Give the axes of a node's result their units.

        Raises:
            StructureError: What the node does to units is not known.
        """
        rule: Callable[[Node], Tensors | None] | None
        rule = getattr(self, f"_{node.kind}", None)
        if rule is None:
            raise StructureError(
                f"how {node} acts on permuted units is not known: {BY_HAND}"
            )
        result = rule(node)
        if result is None:
            return
        found = [self.length(axis) for axis in result]
        if node.shape is not None and found != list(node.shape):
            raise StructureError(
                f"{node} gives {node.shape}, understood as {found}: {BY_HAND}"
            )
        self.axes[node.name] = result

    def parameter(self, name: str, node: Node | None = None) -> list[Labels]:
        """Return the axes of a tensor of the state dict."""
        if name not in self.state:
            raise StructureError(
                f"{node or name} reads {name!r}, which is not in the state dict (a "
                f"parametrization?): bake it in, or {BY_HAND}"
            )
        name = self.first[name]
        if name not in self.parameters:
            shape = self.state[name].shape
            self.parameters[name] = [self.units.new(size) for size in shape]
        return self.parameters[name]

    def operand(self, node: Node, position: int, name: str) -> list[Labels] | None:
        """Return the axes of a weight, that of a module or an argument."""
        if node.module is not None:
            if getattr(node.module, name, None) is None:
                return None
            return self.parameter(f"{node.path}.{name}".lstrip("."), node)
        given = argument(node, position, name)
        if not isinstance(given, Value):
            return None
        return [self.plain(axis) for axis in self.axes[given.name]]

    def source(self, node: Node) -> Tensors:
        """Return the axes of the first tensor that a node reads."""
        name = node.inputs[0]
        if name not in self.axes:
            raise StructureError(
                f"{node} reads the result of {self.nodes[name]}, which is no tensor: "
                f"{BY_HAND}"
            )
        return list(self.axes[name])

    def length(self, axis: Entry) -> int:
        """Return the number of entries of an axis."""
        if isinstance(axis, Choice):
            return len(axis.options)
        if isinstance(axis, Chosen):
            return self.length(axis.choice.options[0][axis.place])
        if isinstance(axis, Inner):
            return self.units.size(self.units.now(axis.whole)) // axis.count
        return self.units.size(self.units.now(axis))

    def plain(self, axis: Entry) -> Labels:
        """Return an axis as one that has its order alone.

        Inside heads, and along and behind a choice, it is fixed.
        """
        if isinstance(axis, tuple):
            return axis
        width = self.length(axis)
        if isinstance(axis, Choice):
            for option in axis.options:
                self.fix(option)
            return self.units.new(width, fixed=True)
        if isinstance(axis, Chosen):
            self.fix([option[axis.place] for option in axis.choice.options])
            return self.units.new(width, fixed=True)
        self.units.block(axis.whole, width)
        return self.units.new(width, fixed=True)

    def fix(self, axes: Sequence[Entry]) -> None:
        """Hold axes in place."""
        for axis in axes:
            self.units.fix(self.plain(axis))

    def fixed(self, shape: Sequence[int] | None) -> Tensors:
        """Return axes of fixed units."""
        return [self.units.new(size, fixed=True) for size in shape or ()]

    def tie(self, first: Entry, second: Entry) -> None:
        """Give two axes of one size one order."""
        if isinstance(first, Inner) and isinstance(second, Inner):
            self.units.tie(first.whole, second.whole)
        else:
            self.units.tie(self.plain(first), self.plain(second))

    def choose(self, axes: Tensors, k: int, index: int) -> Tensors:
        """Return the axes without axis k, at an index of it that is given."""
        chosen = axes[k]
        if not isinstance(chosen, Choice):
            self.fix([chosen])
        return [
            axis.choice.options[index][axis.place]
            if isinstance(axis, Chosen) and axis.choice is chosen
            else axis
            for j, axis in enumerate(axes)
            if j != k
        ]

    def together(self, operands: Sequence[tuple[Tensors, Sequence[int]]]) -> Tensors:
        """Tie the axes of tensors that are broadcast against each other."""
        count = max(len(axes) for axes, _ in operands)
        result: Tensors = []
        for k in range(-count, 0):
            wide = [
                axes[k]
                for axes, shape in operands
                if len(shape) >= -k and shape[k] != 1
            ]
            for other in wide[1:]:
                self.tie(wide[0], other)
            result.append(wide[0] if wide else self.units.new(1))
        return result

    def operands(self, given: Any) -> list[tuple[Tensors, Sequence[int]]]:
        """Return axes and shapes of the tensors among arguments."""
        if isinstance(given, Value):
            if given.name not in self.axes:
                return []
            return [(self.axes[given.name], self.nodes[given.name].shape or ())]
        if isinstance(given, Mapping):
            given = list(given.values())
        if not isinstance(given, tuple | list):
            return []
        return [found for one in given for found in self.operands(one)]


def argument(node: Node, position: int, name: str) -> Any:
    """Return an argument given by position or by name, None where it is not.

    torch takes `axis` for `dim`.
    """
    if len(node.arguments) > position:
        return node.arguments[position]
    if name == "dim" and "axis" in node.keywords:
        return node.keywords["axis"]
    return node.keywords.get(name)


def option(node: Node, position: int, name: str, default: Any) -> Any:
    """Return a setting, that of a module or an argument."""
    if node.module is not None:
        return getattr(node.module, name, default)
    given = argument(node, position, name)
    return default if given is None else given
