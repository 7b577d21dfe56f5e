"""Permute the units of one network so that it lies nearest another."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from thalweg.errors import CheckpointError, DataError, InputError, StructureError
from thalweg.instruments.alignment.inference import Place, infer_spec
from thalweg.instruments.alignment.matching import (
    Permutations,
    WeightMatching,
    match_activations,
)
from thalweg.instruments.alignment.permutations import PermutationSpec
from thalweg.landscapes import Batches
from thalweg.models import copy_model, trace_graph
from thalweg.seeding import normal, seeded

State = Mapping[str, Tensor]
Method = Literal["weights", "activations"]
CHECKED_ROWS = 64


@dataclass(frozen=True)
class Alignment:
    """A network permuted so that it lies nearest another.

    Args:
        state: State dict of the permuted model_b.
        permutations: Name -> p; unit i is what was unit p[i].
        spec: Which axes of which tensors they act on.
        method: "weights" or "activations".
        objective: sum <W_a, P W_b> over the weights.
        identity: The same without permutations.
        objectives: The same for each start, the identity's first.
        sweeps: Rounds over the permutations, of the best start.
        converged: Whether no permutation gains any more, given the others.
        distances: |θ_a - θ_b| over all parameters, before and after.
        error: max |f(P b) - f(b)| / max |f(b)| on the batch checked; None without.
        note: What else there is to know.
    """

    state: dict[str, Tensor] = field(repr=False)
    permutations: Permutations = field(repr=False)
    spec: PermutationSpec = field(repr=False)
    method: Method
    objective: float
    identity: float
    objectives: tuple[float, ...]
    sweeps: int
    converged: bool
    distances: tuple[float, float]
    error: float | None
    note: str = ""


def align(
    model_a: nn.Module,
    model_b: nn.Module | State,
    data: Any = None,
    *,
    method: Method = "weights",
    spec: PermutationSpec | None = None,
    restarts: int = 3,
    sweeps: int = 100,
    tol: float = 1e-9,
    check: bool = True,
    seed: int = 0,
) -> Alignment:
    """Permute the units of b, its function unchanged, to lie nearest a.

    By weights: maximizes sum <W_a, P W_b>, equivalently minimizes |θ_a - P θ_b|, one
    permutation after the other, each by a linear assignment. That stops at a local
    optimum; `restarts` begin again at random permutations, and the best is kept. By
    activations: each permutation maximizes the correlation of units on the data; those
    that no activation shows (inside torch's attention) are then matched by weights.

    Which permutations leave the function unchanged is inferred from the traced network:
    units behind Linear, convolutions (grouped ones group by group) and embeddings,
    followed through norms, activations, pooling, residual sums, concatenation, flatten,
    attention (whole heads, and units within each). A sweep costs one assignment,
    O(units³), and the products of the weights for each permutation.

    Args:
        model_a: The network that stays.
        model_b: The network to permute: a module, or a state dict of model_a's class.
        data: Inputs, or what a `NetworkLandscape` takes: the network is traced and
            checked on its first batch. Needed but where the network begins with a
            Linear, for which normal inputs are drawn, and by activations.
        method: "weights" or "activations".
        spec: Permutations written by hand, where they cannot be inferred.
        restarts: Random starts besides the identity; by weights only.
        sweeps: Limit of rounds over the permutations, of each start.
        tol: Gain of a step, relative to the objective, that counts as none.
        check: Whether to make sure, on a batch, that the function is the same.
        seed: Seed of orders, starts and drawn inputs.

    Raises:
        StructureError: The networks are of different architectures, cannot be traced
            (the operation is named), or the permuted one computes another function.
        CheckpointError: Weights are not finite.
        InputError: An option is not understood.
        DataError: Data are needed.

    Source: "Git Re-Basin: Merging Models modulo Permutation Symmetries",
    S. K. Ainsworth, J. Hayase, S. Srinivasa, 2023; "Convergent Learning", Y. Li,
    J. Yosinski, J. Clune, H. Lipson, J. Hopcroft, 2016 (by activations).

    Examples:
        >>> from thalweg.models import mlp
        >>> a, b = mlp((4, 8, 2), seed=1), mlp((4, 8, 2), seed=2)
        >>> found = align(a, b)
        >>> found.distances[1] < found.distances[0], found.error < 1e-5
        (True, True)
    """
    if method not in ("weights", "activations"):
        raise InputError(f'method must be "weights" or "activations", got {method!r}')
    if restarts < 0 or sweeps < 1:
        raise InputError(
            f"restarts must be 0 or more and sweeps 1 or more, got {restarts}, {sweeps}"
        )
    if spec is not None and method == "activations":
        raise InputError(
            'method="activations" has to find the units in the traced network: leave '
            '`spec` out, or give method="weights"'
        )
    if data is None and method == "activations":
        raise DataError(
            'data is needed by method="activations": units are matched by what they do '
            "on it"
        )
    a, b = state_of(model_a), state_of(model_b)
    check_states({"model_a": a, "model_b": b})
    batches = read_inputs(model_a, data, seed) if check or spec is None else None
    graph, places = None, tuple[Place, ...]()
    if spec is None:
        assert batches is not None
        graph = trace_graph(model_a, first_inputs(batches)[:2])
        spec, places = infer_spec(graph)
    _check_spec(spec, a)
    names = [name for name, _ in model_a.named_parameters()]
    search = WeightMatching(
        spec,
        {name: a[name] for name in names if name in spec.axes},
        {name: b[name] for name in names if name in spec.axes},
    )
    limits: dict[str, Any] = {"sweeps": sweeps, "tol": tol, "seed": seed}
    start, notes = spec.identity(), _unmoved(names, spec)
    if method == "activations":
        assert graph is not None and batches is not None
        start |= match_activations(spec, places, graph, (a, b), inputs_of(batches))
        seen = {place.id for place in places}
        unseen = [id for id in spec.sizes if id not in seen]
        if unseen:
            notes.append(f"no activation shows {_some(unseen)}: matched by weights")
        runs = [search.climb(start, key=0, only=unseen, **limits)]
    else:
        starts = [start, *(spec.random(seed, "start", r) for r in range(restarts))]
        runs = [search.climb(p, key=i, **limits) for i, p in enumerate(starts)]
    best = max(runs, key=lambda run: run.objective)
    state = spec.apply(b, best.permutations)
    error = None
    if check:
        assert batches is not None
        network = model_b if isinstance(model_b, nn.Module) else model_a
        error = _checked(network, b, state, first_inputs(batches)[:CHECKED_ROWS])
    return Alignment(
        state=state,
        permutations=best.permutations,
        spec=spec,
        method=method,
        objective=best.objective,
        identity=search.objective(spec.identity()),
        objectives=tuple(run.objective for run in runs),
        sweeps=best.sweeps,
        converged=best.converged,
        distances=(_distance(a, b, names), _distance(a, state, names)),
        error=error,
        note="; ".join(notes),
    )


def infer_permutations(model: nn.Module, data: Any = None) -> PermutationSpec:
    """Infer how the units of a network may be permuted, its function unchanged.

    Args:
        model: The network.
        data: Inputs, or what a `NetworkLandscape` takes, as of `align`.

    Raises:
        StructureError: The network cannot be traced, or holds an operation that is not
            understood (it is named).
        DataError: Data are needed.

    Examples:
        >>> from thalweg.models import mlp
        >>> infer_permutations(mlp((4, 8, 6, 2))).sizes
        {'1': 8, '3': 6}
    """
    inputs = first_inputs(read_inputs(model, data, 0))
    return infer_spec(trace_graph(model, inputs[:2]))[0]


def state_of(given: nn.Module | State) -> dict[str, Tensor]:
    """Return the state dict of a module, or the one given."""
    return dict(given.state_dict() if isinstance(given, nn.Module) else given)


def check_states(states: Mapping[str, State]) -> None:
    """Make sure that state dicts are of one architecture, and finite.

    Args:
        states: By the names that messages call them.

    Raises:
        StructureError: Names or shapes differ.
        CheckpointError: A weight is NaN or infinite.
    """
    (first, a), *others = states.items()
    for other, b in others:
        alone = [[n for n in x if n not in y] for x, y in ((a, b), (b, a))]
        if any(alone):
            raise StructureError(
                f"{first} and {other} are of different architectures: only {first} has "
                f"{alone[0][:4]}, only {other} has {alone[1][:4]}"
            )
        for name, tensor in a.items():
            if tensor.shape != b[name].shape:
                raise StructureError(
                    f"{first} and {other} are of different architectures: {name!r} has "
                    f"shapes {tuple(tensor.shape)} and {tuple(b[name].shape)}"
                )
    for which, state in states.items():
        bad = [n for n, t in state.items() if not bool(torch.isfinite(t).all())]
        if bad:
            raise CheckpointError(
                f"{which} has weights that are NaN or infinite: {bad[:4]}"
            )


def read_inputs(model: nn.Module, data: Any, seed: int) -> Batches:
    """Return the user's inputs in batches, or normal ones for a first Linear.

    Raises:
        DataError: There are none, and the shape of an input is not known.
    """
    if data is not None:
        return Batches((data,) if isinstance(data, Tensor) else data)
    layers = [m for m in model.modules() if list(m.parameters(recurse=False))]
    first = layers[0] if layers else None
    if not isinstance(first, nn.Linear):
        raise DataError(
            "data is needed: the shape of an input does not follow from the first "
            f"layer, {type(first).__name__}; give a batch of inputs"
        )
    like = first.weight.detach()
    shape = (CHECKED_ROWS, first.in_features)
    return Batches((normal(shape, seed, "inputs", like=like),))


def inputs_of(batches: Batches) -> Iterator[Tensor]:
    """Return the inputs of each batch.

    Raises:
        DataError: A batch is no tensor of inputs, nor begins with one.
    """
    for batch in batches:
        data = batch.data[0] if isinstance(batch.data, tuple | list) else batch.data
        if not isinstance(data, Tensor):
            raise DataError(
                "data must give a tensor of inputs, or batches that begin with one, "
                f"got {type(batch.data).__name__}"
            )
        yield data


def first_inputs(batches: Batches) -> Tensor:
    """Return the inputs of the first batch."""
    return next(inputs_of(batches))


def _check_spec(spec: PermutationSpec, state: State) -> None:
    for name, axes in spec.axes.items():
        if name not in state:
            raise StructureError(f"spec names {name!r}, which is not in the model")
        sizes = tuple(sum(segment.size for segment in axis) for axis in axes)
        if sizes != tuple(state[name].shape):
            raise StructureError(
                f"spec has axes of {sizes} entries for {name!r}, which has shape "
                f"{tuple(state[name].shape)}"
            )


def _checked(network: nn.Module, before: State, after: State, inputs: Tensor) -> float:
    """Return the relative difference of two states' outputs, and make sure of none."""
    network = copy_model(network).eval()
    outputs = []
    for state in (before, after):
        network.load_state_dict(state)
        with torch.no_grad(), seeded(0, "check"):
            leaves = tree_leaves(network(inputs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        outputs.append(torch.cat([t.double().flatten() for t in tensors]))
    first, second = outputs
    scale = max(float(first.abs().max()), torch.finfo(torch.float64).tiny)
    error = float((first - second).abs().max()) / scale
    dtypes = [t.dtype for t in after.values() if t.is_floating_point()]
    tol = max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.5
    if not error <= tol:
        raise StructureError(
            "the permuted network computes another function: outputs differ by "
            f"{error:.3g} of the largest, more than {tol:.1g}; the permutations are "
            "not symmetries of this network"
        )
    return error


def _unmoved(names: Sequence[str], spec: PermutationSpec) -> list[str]:
    """Say which parameters no permutation acts on, beside those of unmoved outputs."""
    if not spec.sizes:
        return ["no unit of this network can be permuted"]
    unknown = [name for name in names if name not in spec.axes]
    return [f"left in place: {_some(unknown)}"] if unknown else []


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def _distance(a: State, b: State, names: Sequence[str]) -> float:
    squares = [((a[n].double() - b[n].double()) ** 2).sum() for n in names]
    return float(torch.stack(squares).sum().sqrt())
