"""Starts that no locked sign obstructs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.errors import InputError
from thalweg.models import copy_model
from thalweg.solvable.relu_topology.exchange import rescale_rows
from thalweg.solvable.relu_topology.layer_pairs import LayerPair
from thalweg.solvable.relu_topology.layer_weights import replace_by_neuron
from thalweg.solvable.relu_topology.scanning import (
    conserved_pairs,
    layers_of,
    scan_pair,
)


@dataclass(frozen=True)
class Reinitialization:
    """Weights whose neurons are no longer locked.

    Attributes:
        state: A state dict of the model.
        before: c of the neurons of each pair of layers, by their names.
        after: That of the new weights.
    """

    state: dict[str, Any]
    before: dict[tuple[str, str], np.ndarray]
    after: dict[tuple[str, str], np.ndarray]


def reinit_unlocked(
    model: nn.Module,
    how: str = "rescale",
    *,
    example_input: Tensor | None = None,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> Reinitialization:
    """Return weights from which gradient flow is not obstructed by locked signs.

    "rescale" turns the locked and marginal neurons with one weight out into free ones
    of c' = |c| (|w1|² + |w2|² where c vanishes); (alpha w1, w2 / alpha) leaves the
    function as it is. "signs" keeps every c and lets the locked signs alternate, so
    that both are there, which changes the function. The model stays as it is: load
    `state` into it.

    Args:
        model: The network.
        how: "rescale" or "signs".
        example_input: A batch to trace the model with, see `scan`.
        pairs: Names of layers to take, see `scan`.

    Raises:
        InputError: An unknown `how`, an activation whose degree is not 1, or a neuron
            with w1 = 0, which no rescaling frees.
    """
    if how not in ("rescale", "signs"):
        raise InputError(f'how must be "rescale" or "signs", got {how!r}')
    taken, _ = conserved_pairs(model, example_input, pairs)
    twin = copy_model(model)
    change = _rescaled if how == "rescale" else _alternating
    for pair in taken:
        inner, outer = change(twin, pair)
        first, second = twin.get_submodule(pair.first), twin.get_submodule(pair.second)
        replace_by_neuron(first, second, inner, outer)
    before, after = (
        {(p.first, p.second): scan_pair(net, p).invariants.c for p in taken}
        for net in (model, twin)
    )
    return Reinitialization(twin.state_dict(), before, after)


def _weights(model: nn.Module, pair: LayerPair) -> tuple[Tensor, Tensor]:
    weights = layers_of(model, pair)
    return weights.inner.detach().double(), weights.outer.detach().double()


def _rescaled(model: nn.Module, pair: LayerPair) -> tuple[Tensor, Tensor]:
    if pair.kappa != 1:
        raise InputError(
            f'how="rescale" needs activations of degree 1, got {pair.kappa}'
        )
    (inner, outer), scanned = _weights(model, pair), scan_pair(model, pair)
    law = scanned.invariants
    bound = (scanned.outs == 1) & (law.kind <= 0)
    to = np.where(law.kind < 0, -law.c, law.scale)[bound]
    a, b = rescale_rows(inner[bound].cpu().numpy(), outer[bound].T.cpu().numpy(), to)
    inner[bound] = torch.from_numpy(a).to(inner)
    outer[bound] = torch.from_numpy(b.T).to(outer)
    return inner, outer


def _alternating(model: nn.Module, pair: LayerPair) -> tuple[Tensor, Tensor]:
    (inner, outer), scanned = _weights(model, pair), scan_pair(model, pair)
    signs = (-1.0) ** torch.arange(len(scanned.locked)).to(outer)
    outer[scanned.locked] = outer[scanned.locked].abs() * signs[:, None]
    return inner, outer
