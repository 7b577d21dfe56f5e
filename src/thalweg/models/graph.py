"""A network as typed nodes: what each traced operation is, and what it reads.

Shared by everything that walks through a network operation by operation. What a kind
of operation means for permutations, bounds or regions belongs to those who ask.
"""

import operator
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from thalweg.errors import StructureError
from thalweg.models.copying import copy_model
from thalweg.seeding import seeded

Kind = Literal[
    "input",
    "output",
    "parameter",
    "linear",
    "conv",
    "conv_transpose",
    "norm",
    "embedding",
    "attention",
    "attention_product",
    "activation",
    "elementwise",
    "prelu",
    "add",
    "multiply",
    "matmul",
    "softmax",
    "pool",
    "pad",
    "reduce",
    "reshape",
    "permute",
    "expand",
    "index",
    "concat",
    "stack",
    "split",
    "size",
    "other",
]

# Operations of each kind, by the names of torch's functions. Modules and methods are
# called like the function that does the same: LeakyReLU is leaky_relu.
OPERATIONS: dict[str, str] = {
    "linear": "linear",
    "conv": "conv1d conv2d conv3d",
    "conv_transpose": "conv_transpose1d conv_transpose2d conv_transpose3d",
    "norm": "batch_norm instance_norm group_norm layer_norm rms_norm",
    "embedding": "embedding",
    "attention": "multihead_attention",
    "attention_product": "scaled_dot_product_attention",
    "activation": (
        "relu relu6 leaky_relu elu selu celu gelu silu mish tanh sigmoid logsigmoid "
        "softplus softsign hardtanh hardswish hardsigmoid hardshrink softshrink "
        "tanhshrink threshold rrelu"
    ),
    "elementwise": (
        "identity dropout dropout1d dropout2d dropout3d alpha_dropout contiguous "
        "clone detach to float double type_as exp expm1 log log1p abs sqrt rsqrt "
        "square pow reciprocal neg erf sin cos clamp clip round floor sign"
    ),
    "prelu": "prelu",
    "add": "add sub",
    "multiply": "mul div maximum minimum where",
    "matmul": "matmul bmm mm",
    "softmax": "softmax log_softmax",
    "pool": (
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d "
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
        "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d interpolate"
    ),
    "pad": "pad",
    "reduce": "mean sum amax amin logsumexp",
    "reshape": "flatten reshape view unflatten squeeze unsqueeze",
    "permute": "permute transpose",
    "expand": "expand expand_as",
    "index": "getitem",
    "concat": "cat",
    "stack": "stack",
    "split": "chunk split unbind",
}
KINDS: dict[str, Kind] = {
    name: kind  # type: ignore[misc]  # the keys above are kinds, as a test holds
    for kind, names in OPERATIONS.items()
    for name in names.split()
}
# How else they are called, as `_squeezed` writes it: by other functions of torch, by
# Python's operators, and by modules or their bases.
ALIASES: dict[str, str] = {
    other: name
    for name, others in {
        "add": "iadd",
        "sub": "isub subtract",
        "mul": "imul multiply",
        "div": "truediv itruediv divide",
        "cat": "concat concatenate",
        "transpose": "t mt swapaxes",
        "interpolate": "upsample",
        "pad": "constantpadnd reflectionpadnd replicationpadnd circularpadnd",
    }.items()
    for other in others.split()
}
IN_PLACE = ("iadd", "isub", "imul", "itruediv")
# Functions whose own name is that of torch's dispatcher.
DISPATCHED = {
    getattr(F, name): name
    for name in KINDS
    if "pool" in name and getattr(F, name).__name__ != name
}


def _squeezed(name: str) -> str:
    return name.replace("_", "").lower()


# torch's own modules that are looked into like those of the user.
CONTAINERS = (
    nn.Transformer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
)
SPELLINGS = ALIASES | {_squeezed(name): name for name in KINDS}


@dataclass(frozen=True)
class Value:
    """The result of the node of that name, among a node's arguments."""

    name: str


@dataclass(frozen=True)
class Node:
    """One operation of a traced network.

    Args:
        name: Unique in the graph.
        kind: What it is; "other" for whatever has no kind of its own.
        operation: Which of its kind, by the name of torch's function: "leaky_relu" for
            the module, the function and the method. The class or the function where
            the kind is "other".
        inputs: Names of the nodes whose tensors it reads, in order.
        path: Dotted name of its module or parameter; "" for functions, and for a
            model that is one module.
        module: Its module, where it is one.
        shape: Shape of its result on the example; None where that is no tensor.
        arguments: Positional arguments; tensors are `Value`s, all else is concrete.
        keywords: Keyword arguments, likewise.
    """

    name: str
    kind: Kind
    operation: str
    inputs: tuple[str, ...]
    path: str
    module: nn.Module | None
    shape: tuple[int, ...] | None
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.operation} at {self.path or self.name!r}"


@dataclass(frozen=True)
class Graph:
    """A network's nodes in the order in which they run.

    Args:
        nodes: One an operation; the last is the output.
        module: What runs them, in eval mode, on a copy of the weights.
    """

    nodes: tuple[Node, ...]
    module: fx.GraphModule

    def __getitem__(self, name: str) -> Node:
        """Return the node of a name."""
        return next(node for node in self.nodes if node.name == name)

    def values(
        self, inputs: Tensor, state: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return the tensor of every node on a batch, without gradients.

        Args:
            inputs: A batch, of the example's shape but for its length.
            state: State dict to run with; the weights of the trace by default.
        """
        recorder = _Recorder(self.module)
        runner = _Runner(recorder)
        tensors = [*runner.named_parameters(), *runner.named_buffers()]
        names = [name for name, _ in tensors]  # the first of tied ones
        own = {n: state[n.removeprefix("model.")] for n in names} if state else {}
        with torch.no_grad():
            functional_call(runner, own, (inputs,))
        return {k: v for k, v in recorder.seen.items() if isinstance(v, Tensor)}


def trace_graph(model: nn.Module, example: Tensor) -> Graph:
    """Trace a network of one input in eval mode, and type each of its operations.

    Works on a copy: the model stays as it is. torch's own modules are nodes; modules
    of the user are looked into. Sizes that the model reads off its input may steer
    it; they are those of `example`. Costs two forward passes.

    Args:
        model: Takes one tensor; other arguments keep their defaults.
        example: A batch of inputs; two rows or so.

    Raises:
        StructureError: The model does not run on the example, or what it does depends
            on more than the sizes of its input (the line is named).

    Examples:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(), nn.Linear(4, 2))
        >>> [str(n) for n in trace_graph(net, torch.zeros(2, 3)).nodes[1:4]]
        ["linear at '0'", "leaky_relu at '1'", "linear at '2'"]
    """
    bound = _Bound(copy_model(model).eval())
    shape = tuple(example.shape)
    with torch.no_grad(), seeded(0, "trace"):
        try:
            expected = bound(example)
        except Exception as error:
            raise StructureError(
                f"the model does not run on inputs of shape {shape}: {_brief(error)}"
            ) from error
        tracer = _Tracer(example)
        try:
            graph = tracer.trace(bound)
        except Exception as error:
            raise StructureError(
                f"the model cannot be traced: at {_place(error)}: {_brief(error)}. "
                "Traced code may ask for the sizes of tensors, not for what is in "
                "them: write such a choice as torch.where, or take it out of forward"
            ) from error
    module = fx.GraphModule(bound, graph)
    outputs = fx.node.map_arg(_output(graph).args[0], lambda n: tracer.seen[n.name])
    if not _agree(outputs, expected):
        raise StructureError(
            "the model cannot be traced: what was traced computes other outputs. It "
            "draws random numbers in eval mode, or changes a tensor by `+=` that it "
            "reads again under another name"
        )
    nodes = tuple(_node(node, module, tracer.seen) for node in graph.nodes)
    return Graph(nodes, module)


def operation_of(module: nn.Module) -> tuple[Kind, str]:
    """Return the kind and operation of a module of torch.

    "other" and the name of the class for modules of the user, also where they derive
    from one of torch's: these are looked into, not trusted by their name.

    Examples:
        >>> operation_of(nn.Dropout2d())
        ('elementwise', 'dropout2d')
    """
    torchs = type(module).__module__.startswith(("torch.nn", "torch.ao.nn"))
    for base in type(module).__mro__ if torchs else ():
        name = SPELLINGS.get(_squeezed(base.__name__), "")
        if name:
            return KINDS[name], name
    return "other", type(module).__name__


class _Bound(nn.Module):
    """A model called with one tensor, so that other arguments keep their defaults."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x):  # type: ignore[no-untyped-def]  # a proxy while tracing
        return self.model(x)


class _Sized(fx.Proxy):
    """A traced value that knows its length, and what it is as an index."""

    tracer: "_Tracer"

    def __getattr__(self, k: str) -> "_SizedAttribute":
        return _SizedAttribute(self, k)

    def __len__(self) -> int:
        return len(self.tracer.seen[self.node.name])

    def __index__(self) -> int:
        return operator.index(self.tracer.seen[self.node.name])


class _SizedAttribute(_Sized, fx.proxy.Attribute):
    """The same, of an attribute such as `shape`."""

    __init__ = fx.proxy.Attribute.__init__


class _Tracer(fx.Tracer):
    """Traces with an example at hand, so that sizes are known where they are asked."""

    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self.example = example
        self.seen: dict[str, Any] = {}
        self._running = False

    def create_proxy(self, kind, target, args, kwargs, *rest, **options):  # type: ignore[no-untyped-def]  # as fx has it
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        self._running = True
        try:
            self.seen[proxy.node.name] = self._run(proxy.node)
        finally:
            self._running = False
        return proxy

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Sized(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, CONTAINERS):
            return False
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m, forward, args, kwargs):  # type: ignore[no-untyped-def]  # as fx has it
        if self._running:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr, attr_val, parameter_proxy_cache):  # type: ignore[no-untyped-def]  # as fx has it
        if self._running:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = self.seen[obj.node.name]
        return bool(value) if _is_plain(value) else super().to_bool(obj)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        parts = range(len(self.seen[obj.node.name]))
        return iter([operator.getitem(obj, i) for i in parts])

    def _run(self, node: fx.Node) -> Any:
        def known(n: fx.Node) -> Any:
            return self.seen[n.name]

        args = fx.node.map_arg(node.args, known)
        kwargs = fx.node.map_arg(node.kwargs, known)
        target: Any = node.target
        if node.op == "placeholder":
            return self.example
        if node.op == "get_attr":
            return operator.attrgetter(target)(self.root)
        if node.op == "call_module":
            return self.root.get_submodule(target).forward(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)


class _Runner(nn.Module):
    """A recorder as a module, whose weights `functional_call` can replace."""

    def __init__(self, recorder: "_Recorder") -> None:
        super().__init__()
        self.model = recorder.module.model
        self._recorder = recorder

    def forward(self, inputs: Tensor) -> Any:
        return self._recorder.run(inputs)


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps what each node gave."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.seen: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        if self._in_place(n) and isinstance(n.args[0], fx.Node):
            changed = _storage(self.env[n.args[0]])
            for name, value in self.seen.items():
                if isinstance(value, Tensor) and _storage(value) == changed:
                    self.seen[name] = value.clone()
        self.seen[n.name] = super().run_node(n)
        return self.seen[n.name]

    def _in_place(self, n: fx.Node) -> bool:
        if n.op == "call_module":
            return bool(getattr(self.fetch_attr(str(n.target)), "inplace", False))
        if n.op not in ("call_method", "call_function") or not n.args:
            return False
        name = getattr(n.target, "__name__", str(n.target))
        changes = name.endswith("_") and not name.endswith("__")
        return changes or name in IN_PLACE or bool(n.kwargs.get("inplace", False))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _output(graph: fx.Graph) -> fx.Node:
    return next(node for node in reversed(graph.nodes) if node.op == "output")


def _agree(first: object, second: object) -> bool:
    pairs = zip(tree_leaves(first), tree_leaves(second), strict=True)
    return all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True)
        for a, b in pairs
        if isinstance(a, Tensor) and isinstance(b, Tensor)
    )


def _node(node: fx.Node, module: fx.GraphModule, seen: Mapping[str, Any]) -> Node:
    result = seen.get(node.name)  # the output is a node, and has no result
    path, owner = "", None
    if node.op in ("call_module", "get_attr"):
        path = str(node.target).removeprefix("model").removeprefix(".")
    if node.op == "call_module":
        owner = module.get_submodule(str(node.target))
    kind, operation = _kind(node, owner, result)

    def concrete(n: fx.Node) -> Any:
        return seen[n.name] if _is_plain(seen[n.name]) else Value(n.name)

    return Node(
        name=node.name,
        kind=kind,
        operation=operation,
        inputs=tuple(
            n.name for n in node.all_input_nodes if not _is_plain(seen[n.name])
        ),
        path=path,
        module=owner,
        shape=tuple(result.shape) if isinstance(result, Tensor) else None,
        arguments=tuple(fx.node.map_arg(node.args, concrete)),
        keywords=dict(fx.node.map_arg(node.kwargs, concrete)),
    )


def _is_plain(value: object) -> bool:
    """Say whether a traced value holds no tensor: a size, a shape, a dtype."""
    if isinstance(value, tuple | list):
        return all(_is_plain(one) for one in value)
    return not isinstance(value, Tensor)


def _kind(node: fx.Node, owner: nn.Module | None, result: Any) -> tuple[Kind, str]:
    if node.op in ("placeholder", "output", "get_attr"):
        name = {"placeholder": "input", "get_attr": "parameter"}.get(node.op, node.op)
        return name, name  # type: ignore[return-value]  # all three are kinds
    if owner is not None:
        return operation_of(owner)
    target: Any = node.target
    if target is getattr:
        target = node.args[1]
    if _is_plain(result):
        return "size", str(target)
    if not isinstance(target, str):
        target = DISPATCHED.get(target, getattr(target, "__name__", str(target)))
    name = SPELLINGS.get(_squeezed(target), target)
    return KINDS.get(name, "other"), name


def _brief(error: Exception) -> str:
    first = str(error).strip().split("\n")[0].split(". ")[0].rstrip(".")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _place(error: Exception) -> str:
    """Return file, line and text of the user's line at which a trace ended."""
    torchs = str(Path(torch.__file__).parent)
    outside = []
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == fx.proxy.__file__:
            break  # what a traced tensor was asked for; from here on it is fx
        if not frame.filename.startswith((torchs, __file__)):
            outside.append(frame)
    if not outside:
        return "an unknown line"
    last = outside[-1]
    code = f" `{last.line}`" if last.line else ""
    return f"{Path(last.filename).name}:{last.lineno}{code}"
