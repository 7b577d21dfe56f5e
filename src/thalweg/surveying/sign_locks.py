"""Neurons whose output sign gradient flow cannot change, as a survey shows them."""

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from thalweg.errors import StructureError
from thalweg.landscapes import NetworkLandscape
from thalweg.models import copy_model
from thalweg.reporting import Section, Table, Text
from thalweg.solvable.relu_topology import Scan, scan

if TYPE_CHECKING:
    import xarray as xr


def find_locks(land: NetworkLandscape) -> Scan | None:
    """Scan the network at the point it stands at; None where no neuron is locked."""
    twin = copy_model(land.model)
    twin.load_state_dict(land.unflatten(land.point()), strict=False)
    inputs = _inputs(land)
    example = None
    try:
        found = scan(twin)
    except StructureError:  # no chain of modules: trace it
        if not inputs:
            return None
        example = inputs[0][:2]
        try:
            found = scan(twin, example)
        except StructureError:
            return None
    if not found.locked:
        return None
    return scan(twin, example, data=inputs or None)


def _inputs(land: NetworkLandscape) -> list[Tensor]:
    """Return the batches of inputs where the data holds them as tensors."""
    data = getattr(land.data, "tensors", land.data)
    if not isinstance(data, tuple | list) or not data:
        return []
    if isinstance(data[0], Tensor):
        return [data[0].to(land.device)]
    rows = [batch[0] for batch in data if isinstance(batch, tuple | list) and batch]
    return [x.to(land.device) for x in rows if isinstance(x, Tensor)]


def locks_table(found: Scan) -> "xr.Dataset":
    """Return the pairs that hold locked neurons as a Dataset, one row a pair."""
    import xarray as xr

    pairs = [pair for pair in found.pairs if len(pair.locked)]

    def counts(sign: int) -> list[int]:
        return [int(np.sum(p.signs[p.locked] == sign)) for p in pairs]

    return xr.Dataset(
        {
            "neurons": ("pair", [len(p.ins) for p in pairs]),
            "locked_positive": ("pair", counts(1)),
            "locked_negative": ("pair", counts(-1)),
            "free": ("pair", [len(p.free) for p in pairs]),
            "marginal": ("pair", [len(p.marginal) for p in pairs]),
            "log2_components": ("pair", [p.log2_components for p in pairs]),
            "effective_components": ("pair", [p.effective_components for p in pairs]),
            "dead": ("pair", [-1 if p.dead is None else len(p.dead) for p in pairs]),
        },
        coords={"pair": [f"{p.pair.first} → {p.pair.second}" for p in pairs]},
    )


def locks_section(dataset: "xr.Dataset") -> Section:
    """Return the section of the report."""
    columns = {
        "neurons": "neurons",
        "locked_positive": "locked +",
        "locked_negative": "locked -",
        "free": "free",
        "marginal": "marginal",
        "dead": "never active",
        "log2_components": "log2 of the components",
        "effective_components": "up to exchange",
    }
    rows = [
        [
            str(pair),
            *[
                None
                if name == "dead" and dataset[name][i] < 0
                else int(dataset[name][i])
                for name in columns
            ],
        ]
        for i, pair in enumerate(dataset["pair"].values)
    ]
    text = Text(
        "Gradient flow conserves |w in|² + b² - |w out|² of each of these neurons. "
        "Where it is negative and one weight leads out, that weight can never change "
        "its sign: it is locked. Steps of SGD move the quantity at second order only; "
        "Adam and other adaptive steps do not keep it."
    )
    table = Table(["layers", *columns.values()], rows)
    return Section("Sign-locked neurons", [text, table])
