"""The lines between checkpoints once more, their units permuted to match."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from thalweg import instruments as ti
from thalweg.errors import InputError
from thalweg.landscapes import Landscape, NetworkLandscape
from thalweg.models import copy_model

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class AlignedPair:
    """The line from the first checkpoint to another one, permuted.

    Args:
        name: What the line is called.
        alignment: What was permuted.
        barrier: Of the line; None where the permuted checkpoint is the first.
        loss: At the first checkpoint.
    """

    name: str
    alignment: ti.Alignment
    barrier: ti.Barrier | None
    loss: float

    @property
    def evaluations(self) -> int:
        """Points evaluated."""
        return self.barrier.evaluations if self.barrier is not None else 1


def refuse_unalignable(land: Landscape) -> None:
    """Make sure that the units of a network can be aligned.

    Raises:
        InputError: The landscape is no network's.
        StructureError: Its permutations cannot be inferred (the operation is named).
    """
    ti.infer_permutations(_network(land).model, _network(land).data)


def align_checkpoints(
    land: Landscape,
    checkpoints: Mapping[str, Mapping[str, Tensor]],
    *,
    points: int,
    seed: int,
) -> list[AlignedPair]:
    """Align every other checkpoint to the first, and draw the line to it."""
    network = _network(land)
    (first, start), *others = [
        (name, _whole(network, state)) for name, state in checkpoints.items()
    ]
    model = copy_model(network.model)
    model.load_state_dict(start)
    standing = network.with_state(start)
    loss = float(standing.loss(standing.point()))
    pairs = []
    for name, state in others:
        found = ti.align(model, state, network.data, seed=seed)
        barrier = None
        if found.distances[1] > 0:
            barrier = ti.barrier(network, start, found.state, points=points)
        pairs.append(AlignedPair(f"{first} – {name}", found, barrier, loss))
    return pairs


def aligned_table(pairs: Sequence[AlignedPair], points: int) -> "xr.Dataset":
    """Return lines of so many points, barriers, what was permuted, one row a pair."""
    import xarray as xr

    t = np.linspace(0.0, 1.0, points)

    def rows(name: str) -> list[float]:
        return [
            0.0 if pair.barrier is None else getattr(pair.barrier, name)
            for pair in pairs
        ]

    losses = [
        np.full(len(t), pair.loss)
        if pair.barrier is None
        else pair.barrier.line["loss"].values
        for pair in pairs
    ]
    found = [pair.alignment for pair in pairs]
    return xr.Dataset(
        {
            "loss": (("pair", "t"), np.stack(losses)),
            "barrier": ("pair", rows("value")),
            "max_end": ("pair", rows("max_end")),
            "mean_end": ("pair", rows("mean_end")),
            "moved": ("pair", [_moved(one) for one in found]),
            "distance_before": ("pair", [one.distances[0] for one in found]),
            "distance": ("pair", [one.distances[1] for one in found]),
            "error": ("pair", [one.error or 0.0 for one in found]),
        },
        coords={"pair": [pair.name for pair in pairs], "t": t},
    )


def _moved(found: ti.Alignment) -> float:
    """Return the share of units that are at another place than before."""
    still = sum(
        int((p == torch.arange(len(p))).sum()) for p in found.permutations.values()
    )
    units = sum(len(p) for p in found.permutations.values())
    return 1 - still / units if units else 0.0


def _network(land: Landscape) -> NetworkLandscape:
    if not isinstance(land, NetworkLandscape):
        raise InputError(
            f"align needs the landscape of a network, got {type(land).__name__}"
        )
    return land


def _whole(land: NetworkLandscape, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a checkpoint with all entries of the model's state dict."""
    standing = land.with_state(state)
    return standing.unflatten(standing.point())
