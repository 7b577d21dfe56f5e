"""Targets that gradient flow of shallow ReLU networks cannot reach, and why.

Starts with prescribed conserved quantities are trained as ensembles; what they reach is
held against certified floors, verdicts, and the statistics of random starts.
"""

import numpy as np
import xarray

from thalweg.provenance import attributes
from thalweg.solvable import relu_topology as rt
from thalweg.studies.claims import Study
from thalweg.studies.obstruction.measurements import (
    SCALES,
    circle,
    decay,
    pairs,
    step_sizes,
    tabular,
    torch_starts,
    widths,
)
from thalweg.studies.obstruction.paper_claims import (
    claims_on_decay,
    claims_on_pairs,
    claims_on_starts,
    claims_on_tabular,
    claims_on_widths,
)
from thalweg.studies.obstruction.sections import (
    betti_section,
    circle_section,
    decay_section,
    floors_table,
    starts_section,
    tabular_section,
    widths_section,
)
from thalweg.studies.running import Size
from thalweg.studies.store import StudyStore

NAME = "obstruction"
PAPER = (
    "Topological obstruction to the training of shallow ReLU neural networks; "
    "M. Nurisso, P. Leroy, F. Vaccarino; 2024"
)


def run(size: Size, seeds: tuple[int, ...], store: StudyStore) -> Study:
    """Train locked and free starts on the circle and on real data; judge the claims.

    Args:
        size: Number of starts, steps and widths.
        seeds: Each adds its own starts.
        store: Keeps the trained ensembles.
    """
    scale = SCALES[size]
    x, y = (side.numpy() for side in circle())
    floors = {
        method: rt.loss_floor(x, y, 1, method=method)
        for method in ("sign", "convexity", "nnls")
    }
    floor = floors["nnls"].value
    two = pairs(scale, seeds, store)
    wide = widths(scale, seeds, store)
    thin = decay(scale, seeds[0], store)
    real = tabular(scale, seeds, store)
    starts = rt.lock_table((1, 2, 4, 8), range(1, 9))
    claims = (
        *claims_on_pairs(two, floor),
        *claims_on_widths(wide, floor),
        *claims_on_starts(torch_starts(scale, seeds, store), floor),
        *claims_on_decay(thin, step_sizes(scale, seeds[0]), floor),
        *claims_on_tabular(real),
    )
    bounds = xarray.Dataset(
        {"floor": ("bound", np.array([f.value for f in floors.values()]))},
        coords={"bound": list(floors)},
        attrs=attributes(points=len(y)),
    )
    datasets = {
        "pairs": two,
        "widths": wide,
        "decay": thin,
        "tabular": real,
        "starts": starts,
        "floors": bounds,
    }
    sections = (
        circle_section(two, floor, floors_table(floors)),
        widths_section(wide),
        betti_section(),
        decay_section(thin),
        starts_section(starts),
        tabular_section(real),
    )
    return Study(claims, datasets, sections)
