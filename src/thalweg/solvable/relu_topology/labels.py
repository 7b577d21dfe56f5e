"""Connected components of the invariant set, and which of them are equivalent."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np

from thalweg.errors import InputError
from thalweg.solvable.relu_topology.conservation import (
    Array,
    Invariants,
    as_kinds,
    as_layers,
    invariants,
)

Mode = Literal["locked", "functions", "permutations"]


class NeuronClasses(ABC):
    """Neurons by what their conserved quantity does to the sign of w2."""

    invariants: Invariants

    @property
    @abstractmethod
    def locked(self) -> np.ndarray:
        """Return the sign-locked neurons: one weight out, and c < 0."""

    @property
    def marginal(self) -> np.ndarray:
        """Return the neurons with c = 0 up to the tolerance."""
        return np.flatnonzero(self.invariants.kind == 0)

    @property
    def free(self) -> np.ndarray:
        """Return the neurons that are neither sign-locked nor marginal."""
        free = self.invariants.kind != 0
        free[self.locked] = False
        return np.flatnonzero(free)


@dataclass(frozen=True)
class Components(NeuronClasses):
    """The component of the invariant set that holds a network, and its neurons.

    Attributes:
        d: Entries of w1, the hidden bias included.
        e: Outputs.
        invariants: The conserved quantities.
        signs: Sign of w2 of each neuron (0 throughout where e > 1).
        label: What tells the component from the others: for each neuron the sign that
            no path in the set can change (of w2 where e = 1 and c < 0, of w1 where
            d = 1 and c > 0), and 0 for a neuron without one.
    """

    d: int
    e: int
    invariants: Invariants
    signs: np.ndarray
    label: np.ndarray

    @property
    def locked(self) -> np.ndarray:
        """Return the sign-locked neurons: e = 1 and c < 0."""
        return np.flatnonzero((self.invariants.kind < 0) & (self.e == 1))

    @property
    def log2_count(self) -> int:
        """Return log2 of the number of components."""
        kind = self.invariants.kind
        split = (kind < 0) * (self.e == 1) + (kind > 0) * (self.d == 1)
        return int(split.sum())

    @property
    def count(self) -> int:
        """Return the number of components, b_0."""
        return 2**self.log2_count

    def counts(self, *, flow: bool = True) -> tuple[int, int, int]:
        """Return how many neurons are locked positive, locked negative, and free.

        Args:
            flow: Count marginal neurons as locked, as under exact gradient flow, which
                does not pass the apex in finite time; otherwise as free.
        """
        kind = self.invariants.kind
        held = (kind < 0) | ((kind == 0) & flow) if self.e == 1 else kind > 1
        positive = int(np.sum(held & (self.signs > 0)))
        negative = int(np.sum(held & (self.signs < 0)))
        # A marginal neuron at the apex stays zero under the flow: of no use.
        stuck = int(np.sum(held & (self.signs == 0)))
        return positive, negative, len(kind) - positive - negative - stuck


@dataclass(frozen=True)
class EffectiveComponents:
    """Number of components up to symmetries of the function, and why."""

    count: int
    mode: Mode
    explanation: str


def components(
    w1: Array,
    w2: Array,
    bias: Array | None = None,
    *,
    kappa: float = 1.0,
    rtol: float | None = None,
) -> Components:
    """Return the component of H(c) that holds the network (w1, w2, bias).

    Arguments and errors are those of `invariants`. On a locked neuron
    |w2| >= sqrt(-c / kappa) > 0, so that its sign cannot change along a path.

    Examples:
        >>> import torch
        >>> w1, w2 = torch.tensor([[0.0, 1.0], [3.0, 0.0]]), torch.tensor([[2.0, 1.0]])
        >>> found = components(w1, w2)
        >>> found.count, found.label.tolist()
        (2, [1, 0])
    """
    law = invariants(w1, w2, bias, kappa, rtol=rtol)
    inner, outer = as_layers(w1, w2, bias)
    d, e = inner.shape[1], outer.shape[0]
    signs = np.sign(outer[0]) if e == 1 else np.zeros(len(law.c))
    label = np.where(law.kind < 0, signs, 0.0)
    if d == 1:
        label = np.where(law.kind > 0, np.sign(inner[:, 0]), label)
    return Components(d, e, law, signs.astype(np.int8), label.astype(np.int8))


def effective_components(
    c: Invariants | Array, d: int, e: int, *, mode: Mode = "locked", atol: float = 0.0
) -> EffectiveComponents:
    """Return the number of components of H(c) up to symmetries of the function.

    Args:
        c: `Invariants`, or bare values (l,).
        d: Entries of w1, the hidden bias included.
        e: Outputs.
        mode: "locked" identifies components by permuting neurons of one class and
            rescaling each to the c of its new slot; "functions" also exchanges free
            with locked neurons, which connects sets of functions though never one
            trajectory; "permutations" only permutes neurons of equal c.
        atol: A bare |c| <= atol counts as zero; with "permutations", values within
            atol of their neighbor are equal.

    Raises:
        InputError: d or e below 1, an unknown mode, or c not finite.
    """
    if d < 1 or e < 1:
        raise InputError(f"d and e must be at least 1, got {d} and {e}")
    kinds = as_kinds(c, atol)
    plus = int(np.sum(kinds > 0)) if d == 1 else 0
    minus = int(np.sum(kinds < 0)) if e == 1 else 0
    by_class = (plus + 1) * (minus + 1)
    if mode == "locked":
        return EffectiveComponents(
            by_class,
            mode,
            "Permutation with rescaling exchanges neurons of one class; what is left "
            "is how many of those whose sign is locked are positive.",
        )
    if mode == "functions":
        both = bool(np.any(kinds > 0) and np.any(kinds < 0))
        return EffectiveComponents(
            1 if both else by_class,
            mode,
            "A free neuron takes either sign and can then change places with a locked "
            "one: the components represent the same functions. A trajectory never "
            "jumps, so its own component still binds it."
            if both
            else "There are no neurons of the other class to exchange with.",
        )
    if mode == "permutations":
        values = c.c if isinstance(c, Invariants) else np.asarray(c, dtype=np.float64)
        split = ((kinds > 0) & (d == 1)) | ((kinds < 0) & (e == 1))
        return EffectiveComponents(
            prod(size + 1 for size in _group_sizes(values[split], atol)),
            mode,
            "Without rescaling only neurons of equal c change places.",
        )
    accepted = ("locked", "functions", "permutations")
    raise InputError(f"mode must be one of {accepted}, got {mode!r}")


def _group_sizes(values: np.ndarray, atol: float) -> list[int]:
    if not len(values):
        return []
    breaks = np.flatnonzero(np.diff(np.sort(values)) > atol) + 1
    edges = np.concatenate([[0], breaks, [len(values)]])
    return [int(size) for size in np.diff(edges)]
