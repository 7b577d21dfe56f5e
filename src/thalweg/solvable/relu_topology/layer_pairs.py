"""Where two layers follow each other with only a homogeneous function between."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from thalweg.errors import StructureError
from thalweg.models import Graph, Node, operation_of, trace_graph
from thalweg.solvable.relu_topology.layer_weights import weight_parameter

LAYERS = ("linear", "conv")
_MODULES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Degree of homogeneity of what may lie between. Dropout is a random one of degree 1.
_DEGREES = {
    "relu": 1.0,
    "leaky_relu": 1.0,
    "prelu": 1.0,
    "rrelu": 1.0,
    "abs": 1.0,
    "square": 2.0,
    "identity": 1.0,
    "dropout": 1.0,
    "dropout1d": 1.0,
    "dropout2d": 1.0,
    "dropout3d": 1.0,
    "contiguous": 1.0,
    "clone": 1.0,
    "to": 1.0,
    "float": 1.0,
    "double": 1.0,
    "neg": 1.0,
    "mean": 1.0,
    "sum": 1.0,
    "amax": 1.0,
}


@dataclass(frozen=True)
class LayerPair:
    """Two layers, and what lies between.

    Attributes:
        first: Dotted name of the layer into the hidden neurons.
        second: That of the layer out of them.
        between: Operations between, in order.
        kappa: Degree of homogeneity of these together.
        objection: Why nothing is conserved; "" where it is.
        activation: Whether the objection is the activation's alone.
    """

    first: str
    second: str
    between: tuple[str, ...]
    kappa: float = 1.0
    objection: str = ""
    activation: bool = False


@dataclass(frozen=True)
class _Step:
    """An operation of a chain: how often its result is read, and how it is laid out.

    Shape and axes (those reduced over) are known from a trace alone.
    """

    kind: str
    operation: str
    path: str
    readers: int = 1
    shape: tuple[int, ...] | None = None
    axes: tuple[int, ...] = ()


def find_pairs(model: nn.Module, example: Tensor | None) -> list[LayerPair]:
    """Return each layer with the one that follows it, with objections where any.

    Without an example only the chains of `nn.Sequential` are seen.

    Raises:
        StructureError: There is neither a chain nor an example, or no trace.
    """
    if example is not None:
        chains = _traced(trace_graph(model, example))
    else:
        chains = _sequences(model)
    paths = Counter(chain[0].path for chain in chains)
    return [pair for chain in chains if (pair := _pair(model, chain, paths))]


def _sequences(model: nn.Module) -> list[list[_Step]]:
    """Return the steps from each layer of a Sequential to the next one."""
    steps: list[list[_Step]] = []
    inside: set[str] = set()
    for name, module in model.named_modules():
        if _is_chain(module) and name not in inside:
            run = list(_flattened(module, name, inside))
            steps += [run[i:] for i, step in enumerate(run) if step.kind in LAYERS]
    if not steps:
        raise StructureError(
            "the model has no nn.Sequential with linear layers: give example_input to "
            "trace it, or the names of the layers, pairs=[(first, second), ...]"
        )
    return steps


def _is_chain(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Sequential)
        and type(module).forward is nn.Sequential.forward
    )


def _flattened(chain: nn.Module, name: str, inside: set[str]) -> Iterator[_Step]:
    for key, module in chain._modules.items():
        if module is None:
            continue
        path = f"{name}.{key}" if name else key
        if _is_chain(module):
            inside.add(path)
            yield from _flattened(module, path, inside)
        else:
            kind, operation = operation_of(module)
            if isinstance(module, nn.Flatten) and (
                module.start_dim,
                module.end_dim,
            ) != (1, -1):
                kind, operation = "other", "a flattening of other axes"
            yield _Step(kind, operation, path)


def _traced(graph: Graph) -> list[list[_Step]]:
    """Return the steps from each layer on, along what reads its result."""
    readers: dict[str, list[Node]] = {node.name: [] for node in graph.nodes}
    for node in graph.nodes:
        if node.kind != "size":
            for name in node.inputs:
                readers[name].append(node)

    def follow(node: Node) -> Iterator[_Step]:
        while True:
            following = readers[node.name]
            yield _Step(
                node.kind,
                node.operation,
                node.path,
                len(following),
                node.shape,
                _axes(node),
            )
            if not following:
                return
            node = following[0]

    return [list(follow(node)) for node in graph.nodes if node.kind in LAYERS]


def _axes(node: Node) -> tuple[int, ...]:
    """Return the axes that a reduction sums over; all of them where none is named."""
    if node.kind != "reduce":
        return ()
    named = node.keywords.get("dim", (*node.arguments[1:], None)[0])
    if named is None:
        return (0,)
    return tuple(named) if isinstance(named, tuple | list) else (int(named),)


def _pair(
    model: nn.Module, chain: Sequence[_Step], paths: Counter[str]
) -> LayerPair | None:
    """Return the pair that a chain starts with; None where it ends in the output."""
    first, *others = chain
    between: list[str] = []
    kappa, read, before = 1.0, first.readers, first
    for step in others:
        if step.kind == "output":
            return None
        last = step.kind in LAYERS
        if read > 1:
            objection = "its output is read more than once, as by a skip connection"
        elif last:
            objection = _layer_objection(model, first.path, step.path, paths)
            objection = objection or _layout_objection(first, before, step, between)
        else:
            objection = _objection(first, before, step)
        if last or objection:
            second = next((s.path for s in others if s.kind in LAYERS), "")
            wrong = step.kind == "activation" and read == 1
            named = between if last else [*between, step.operation]
            return LayerPair(first.path, second, tuple(named), kappa, objection, wrong)
        between.append(step.operation)
        kappa *= _DEGREES.get(step.operation, 1.0)
        read, before = step.readers, step
    return None


def _objection(first: _Step, before: _Step, step: _Step) -> str:
    """Say why a step between two layers breaks the law; "" where it does not."""
    if step.kind == "activation" and step.operation not in _DEGREES:
        return f"{step.operation} is not positively homogeneous"
    if step.kind == "pool":
        kept = first.kind == "conv"
    elif step.kind == "reshape":
        kept = _flattens(first, step)
    elif step.kind == "reduce":
        kept = step.operation in _DEGREES and _spares_channels(first, before, step)
    else:
        kept = step.operation in _DEGREES
    return "" if kept else f"{step.operation} lies between"


def _flattens(first: _Step, step: _Step) -> bool:
    """Say whether rows stay rows, with each channel's values next to each other."""
    if step.shape is None or first.shape is None:
        return step.operation == "flatten"
    rows = len(step.shape) == 2 and step.shape[0] == first.shape[0]
    return rows and (first.kind == "conv" or len(first.shape) == 2)


def _spares_channels(first: _Step, before: _Step, step: _Step) -> bool:
    rank = len(before.shape or ())
    channel = 1 if first.kind == "conv" else rank - 1
    return not {axis % max(rank, 1) for axis in step.axes} & {0, channel}


def _layout_objection(
    first: _Step, before: _Step, second: _Step, between: Sequence[str]
) -> str:
    """Say whether the second layer reads something else than the channels."""
    if first.kind == second.kind:
        return ""
    if second.kind == "linear":
        flat = len(before.shape) == 2 if before.shape else "flatten" in between
        if flat:
            return ""
    return f"{second.path!r} reads another axis than the channels of {first.path!r}"


def _layer_objection(
    model: nn.Module, first: str, second: str, paths: Counter[str]
) -> str:
    for path in (first, second):
        if paths[path] > 1:
            return f"{path!r} is used {paths[path]} times"
        if not path or not isinstance(model.get_submodule(path), _MODULES):
            return f"{path or 'a function'!r} is no Linear or Conv module"
    return weights_objection(model, first, second)


def weights_objection(model: nn.Module, first: str, second: str) -> str:
    """Say why the weights of two layers do not follow the flow together."""
    own: list[Tensor] = [*model.get_submodule(first).parameters(recurse=False)]
    own.append(weight_parameter(model.get_submodule(second)))
    if len({p.requires_grad for p in own}) > 1:
        return "part of the weights is frozen"
    used = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    if any(used[id(p)] > 1 for p in own):
        return "weights are shared with another layer"
    return ""
