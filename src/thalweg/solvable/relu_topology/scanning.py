"""Sign-locked neurons, components and Betti numbers of a torch model."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.errors import InputError, StructureError
from thalweg.models import copy_model
from thalweg.seeding import seeded
from thalweg.solvable.relu_topology.betti import poincare_polynomial
from thalweg.solvable.relu_topology.conservation import Invariants, invariants
from thalweg.solvable.relu_topology.labels import NeuronClasses, effective_components
from thalweg.solvable.relu_topology.layer_pairs import (
    LayerPair,
    find_pairs,
    weights_objection,
)
from thalweg.solvable.relu_topology.layer_weights import NeuronWeights, neuron_weights


@dataclass(frozen=True)
class ScannedPair(NeuronClasses):
    """Two layers of a model and what the flow conserves of the neurons between.

    Attributes:
        pair: The layers' names and what lies between.
        invariants: c, scale and kind of each neuron.
        ins: Entries of w1 of each neuron, its bias included, without pruned ones.
        outs: Weights out of each neuron, without pruned ones.
        signs: Sign of w2 of each neuron that has one weight out; 0 of the others.
        inner_signs: Sign of w1 of each neuron that has one weight in; 0 of the others.
        dead: Neurons that no example of the data activates; None without data, or where
            their outputs do not reach a ReLU with the sign that they have.
    """

    pair: LayerPair
    invariants: Invariants
    ins: np.ndarray
    outs: np.ndarray
    signs: np.ndarray
    inner_signs: np.ndarray
    dead: np.ndarray | None

    def __repr__(self) -> str:
        signs = self.signs[self.locked]
        dead = "" if self.dead is None else f", {len(self.dead)} dead"
        return (
            f"ScannedPair({self.pair.first} -> {self.pair.second}: {len(self.ins)} "
            f"neurons, {len(signs)} locked ({np.sum(signs > 0)} +, {np.sum(signs < 0)} "
            f"-), {len(self.marginal)} marginal, {len(self.free)} free{dead})"
        )

    @property
    def locked(self) -> np.ndarray:
        """Return the sign-locked neurons: one weight out, and c < 0."""
        return np.flatnonzero((self.invariants.kind < 0) & (self.outs == 1))

    @property
    def counts(self) -> tuple[int, int, int]:
        """Return how many neurons have positive, negative and zero c."""
        kind = self.invariants.kind
        return int(np.sum(kind > 0)), int(np.sum(kind < 0)), int(np.sum(kind == 0))

    @property
    def label(self) -> np.ndarray:
        """Return the sign that no path can change of each neuron, and 0 without."""
        kind = self.invariants.kind
        return np.where(kind < 0, self.signs, np.where(kind > 0, self.inner_signs, 0))

    @property
    def log2_components(self) -> int:
        """Return log2 b_0 of the invariant set."""
        kind = self.invariants.kind
        return int(np.sum((kind < 0) & (self.outs == 1) | (kind > 0) & (self.ins == 1)))

    @property
    def effective_components(self) -> int:
        """Return the number of components up to exchange of neurons of one class."""
        total = 1
        for d, e, kinds in self._groups():
            total *= effective_components(kinds.astype(np.float64), d, e).count
        return total

    @cached_property
    def betti(self) -> dict[int, int]:
        """Return {degree: Betti number}, exactly; O(positive · negative) products."""
        result = {0: 1}
        for d, e, kinds in self._groups():
            terms = poincare_polynomial(kinds.astype(np.float64), d, e).terms
            product: dict[int, int] = {}
            for i, x in result.items():
                for j, y in terms.items():
                    product[i + j] = product.get(i + j, 0) + x * y
            result = product
        return result

    def _groups(self) -> Iterable[tuple[int, int, np.ndarray]]:
        """Yield (d, e, kinds) of the neurons of each number of weights in and out."""
        sizes = np.stack([self.ins, self.outs], 1)
        for d, e in np.unique(sizes, axis=0):
            if d and e:
                some = (sizes == (d, e)).all(1)
                yield int(d), int(e), self.invariants.kind[some]

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values, for JSON."""
        positive, negative, zero = self.counts
        return {
            "first": self.pair.first,
            "second": self.pair.second,
            "between": list(self.pair.between),
            "kappa": self.pair.kappa,
            "neurons": len(self.ins),
            "positive": positive,
            "negative": negative,
            "zero": zero,
            "locked": self.locked.tolist(),
            "locked_signs": self.signs[self.locked].tolist(),
            "marginal": self.marginal.tolist(),
            "log2_components": self.log2_components,
            "effective_components": self.effective_components,
            "dead": None if self.dead is None else self.dead.tolist(),
            "c": self.invariants.c.tolist(),
        }


@dataclass(frozen=True)
class Scan:
    """What `scan` found.

    Attributes:
        pairs: The pairs of layers with conserved quantities.
        skipped: The others, each with its objection.
    """

    pairs: tuple[ScannedPair, ...]
    skipped: tuple[LayerPair, ...]

    @property
    def locked(self) -> int:
        """Return the number of sign-locked neurons."""
        return sum(len(pair.locked) for pair in self.pairs)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values, for JSON."""
        return {
            "pairs": [pair.to_dict() for pair in self.pairs],
            "skipped": [
                {"first": s.first, "second": s.second, "reason": s.objection}
                for s in self.skipped
            ],
        }


def scan(
    model: nn.Module,
    example_input: Tensor | None = None,
    *,
    data: Tensor | Iterable[Any] | None = None,
    pairs: Sequence[tuple[str, str]] | None = None,
    rtol: float | None = None,
    force: bool = False,
) -> Scan:
    """Find the layers whose neurons are bound by conserved quantities, and how.

    Two layers (Linear or convolution) with only positively homogeneous operations
    between (ReLU, leaky ReLU, PReLU, |z|, squares, dropout, pooling, flattening)
    conserve c = |w1|² + b² - kappa |w2|² of each neuron or channel under gradient flow
    of any loss. With one weight out, a neuron of c < 0 never changes its sign.
    Normalization, skip connections, other activations, shared or partly frozen
    weights break this; such pairs are listed with the reason.

    Computed in float64. The model stays as it is; the cost is one pass over the data.

    Args:
        model: The network.
        example_input: A batch to trace the model with; without it only chains of
            `nn.Sequential` are searched.
        data: Inputs, as a tensor or an iterable of batches (of tuples the first item),
            on which to look for dead neurons.
        pairs: Names of layers to take, where the model cannot be traced; of those that
            can be traced only these are taken.
        rtol: |c| <= rtol · (|w1|² + |w2|²) is marginal; 1e-6 in float64, 1e-4 below.
        force: Take pairs whose activation is not homogeneous as if it were.

    Raises:
        StructureError: There is nothing to search, the trace fails, or `pairs` names
            no layers.
        InputError: `pairs` names layers that conserve nothing, NaN weights, or data
            without an example.

    Examples:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> found = scan(net)
        >>> len(found.pairs), found.pairs[0].log2_components == found.locked
        (1, True)
    """
    taken, skipped = conserved_pairs(model, example_input, pairs, force=force)
    dead = _dead(model, taken, data) if data is not None else {}
    found = (scan_pair(model, pair, rtol, dead.get(pair.first)) for pair in taken)
    return Scan(tuple(found), tuple(skipped))


def conserved_pairs(
    model: nn.Module,
    example: Tensor | None,
    pairs: Sequence[tuple[str, str]] | None,
    *,
    force: bool = False,
) -> tuple[list[LayerPair], list[LayerPair]]:
    """Return the pairs to take and those to skip; raises as `scan` does."""
    known = _known_pairs(model, example, pairs)
    taken: list[LayerPair] = []
    skipped: list[LayerPair] = []
    for pair in known:
        if not pair.objection or (force and pair.activation):
            taken.append(pair)
        elif pairs is not None:
            advice = "; force=True takes it as if it were" if pair.activation else ""
            raise InputError(
                f"the pair ({pair.first!r}, {pair.second!r}) conserves nothing: "
                f"{pair.objection}{advice}"
            )
        else:
            skipped.append(pair)
    return taken, skipped


def layers_of(model: nn.Module, pair: LayerPair) -> NeuronWeights:
    """Return the weights of a pair of layers, neuron by neuron."""
    return neuron_weights(
        model.get_submodule(pair.first), model.get_submodule(pair.second)
    )


def _known_pairs(
    model: nn.Module,
    example: Tensor | None,
    wanted: Sequence[tuple[str, str]] | None,
) -> list[LayerPair]:
    if wanted is None:
        try:
            return find_pairs(model, example)
        except StructureError as error:
            if example is None:
                raise
            raise StructureError(
                f"{error}; or give the names of the layers, pairs=[(first, second)]"
            ) from error
    try:
        known = {(p.first, p.second): p for p in find_pairs(model, example)}
    except StructureError:
        known = {}
    layers = dict(model.named_modules())
    for pair in wanted:
        for name in pair:
            if not isinstance(getattr(layers.get(name), "weight", None), Tensor):
                raise StructureError(f"pairs names {name!r}, which is no layer")
    return [
        known.get(
            (first, second),
            LayerPair(
                first, second, (), objection=weights_objection(model, first, second)
            ),
        )
        for first, second in wanted
    ]


def scan_pair(
    model: nn.Module,
    pair: LayerPair,
    rtol: float | None = None,
    dead: np.ndarray | None = None,
) -> ScannedPair:
    """Return what is conserved of one pair of layers."""
    weights = layers_of(model, pair)
    inner, outer = weights.inner.detach(), weights.outer.detach()
    law = invariants(inner, outer.T, kappa=pair.kappa, rtol=rtol)
    ins, outs = weights.ins.cpu().numpy(), weights.outs.cpu().numpy()

    def signs(side: Tensor, counts: np.ndarray) -> np.ndarray:
        # Where one weight is left the others are pruned to zero: the sum is it.
        total = side.double().sum(1).sign().cpu().numpy()
        return np.where(counts == 1, total, 0).astype(np.int8)

    return ScannedPair(
        pair, law, ins, outs, signs(outer, outs), signs(inner, ins), dead
    )


def _dead(
    model: nn.Module, pairs: Sequence[LayerPair], data: Tensor | Iterable[Any]
) -> dict[str, np.ndarray]:
    """Return the neurons that are never active, for layers before a ReLU.

    Their outputs tell only if nothing on the way to it makes negative ones positive.
    """
    twin = copy_model(model).eval()
    turning = {"neg", "abs", "square"}
    names = []
    for pair in pairs:
        before = takewhile(lambda name: name != "relu", pair.between)
        if "relu" in pair.between and turning.isdisjoint(before):
            names.append(pair.first)
    active: dict[str, Tensor] = {}

    def watch(name: str) -> None:
        layer = twin.get_submodule(name)
        axis = -1 if isinstance(layer, nn.Linear) else 1

        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            seen = (output.detach() > 0).movedim(axis, 0).flatten(1).any(1)
            active[name] = seen | active[name] if name in active else seen

        layer.register_forward_hook(hook)

    for name in names:
        watch(name)
    with torch.no_grad(), seeded(0, "dead neurons"):
        for batch in (data,) if isinstance(data, Tensor) else data:
            twin(batch[0] if isinstance(batch, tuple | list) else batch)
    if names and not active:
        raise InputError("data must hold an example at least, got none")
    return {name: np.flatnonzero(~seen.cpu().numpy()) for name, seen in active.items()}
