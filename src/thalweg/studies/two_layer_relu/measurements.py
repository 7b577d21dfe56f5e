"""What the study measures: descents, fractions by width, SGD and its equations."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import torch
import xarray
from torch import Tensor

from thalweg.errors import InputError
from thalweg.provenance import attributes
from thalweg.seeding import normal
from thalweg.solvable import ReLUTeacherStudent
from thalweg.solvable.two_layer_relu import Descents, Family, Growth, wilson
from thalweg.studies.store import StudyStore

TEACHERS = ("orthonormal", "correlated", "gaussian")
WIDTHS = (2, 3, 4, 5, 6, 7, 8, 10)

_F64 = torch.zeros((), dtype=torch.float64)
_SGD_START = (
    torch.tensor([[0.3, 0.05], [0.05, 0.4]], dtype=torch.float64),
    torch.tensor([[0.2, 0.1], [-0.1, 0.3]], dtype=torch.float64),
)
_ETA, _DELTA, _T_MAX, _RECORD = 0.5, 0.05, 4.0, 41


@dataclass(frozen=True)
class Scale:
    """How much a size of the study does."""

    starts: int  # of the families
    width_starts: int  # of each width
    dimensions: tuple[int, ...]  # of simulated SGD
    runs: int  # of SGD in each dimension and seed


SCALES = {
    "quick": Scale(300, 500, (50, 200), 12),
    "default": Scale(2000, 2000, (50, 200, 800), 16),
    "full": Scale(10_000, 10_000, (50, 200, 800, 3200), 24),
}


def make_teacher(kind: str, M: int) -> Tensor:
    """Return M unit vectors (M, M): orthonormal, equally correlated, or random.

    Raises:
        InputError: No such kind.
    """
    if kind not in TEACHERS:
        raise InputError(f"teacher must be one of {TEACHERS}, got {kind!r}")
    eye = torch.eye(M, dtype=torch.float64)
    if kind == "orthonormal" or M == 1:
        return eye
    if kind == "gaussian":
        rows = normal((M, M), 0, "teacher", like=_F64)
        return rows / rows.norm(dim=1, keepdim=True)
    rho = -0.8 / (M - 1)
    return torch.linalg.cholesky((1 - rho) * eye + rho)


def descents(
    land: ReLUTeacherStudent, seed: int, n: int, store: StudyStore, key: str
) -> Descents:
    """Return n descents of one seed, from the store where they are."""

    def compute() -> Mapping[str, object]:
        # Wide students have zeros where the gradient vanishes to second order.
        loss_tol = 1e-12 if land.K > land.M else None
        ends = land.find_minima(n, seed=seed, loss_tol=loss_tol)
        return {f.name: getattr(ends, f.name).numpy() for f in fields(ends)}

    arrays = store.once(f"descents-{key}-n{n}-seed{seed}", compute)
    return Descents(**{name: torch.from_numpy(x) for name, x in arrays.items()})


def joined(parts: list[Descents]) -> Descents:
    """Return the descents of several seeds as one."""
    names = [f.name for f in fields(Descents)]
    return Descents(**{n: torch.cat([getattr(p, n) for p in parts]) for n in names})


def spurious(
    teacher: str, M: int, K: int, n: int, seeds: tuple[int, ...], store: StudyStore
) -> tuple[int, int]:
    """Return how many of how many starts end above zero loss."""
    land = ReLUTeacherStudent(make_teacher(teacher, M), K)
    key = f"{teacher}-{M}-{K}"
    ends = joined([descents(land, seed, n, store, key) for seed in seeds])
    return int((ends.loss > 1e-10).sum()), len(ends)


def grown(
    land: ReLUTeacherStudent, found: tuple[Family, ...], most: int = 6
) -> tuple[tuple[Family, Growth], ...]:
    """Return where one student more leads from the lowest strict minima."""
    strict = [f for f in found if f.what.kind == "minimum"]
    return tuple((f, land.grow(f.W)) for f in strict[:most])


def fractions(
    scale: Scale, seeds: tuple[int, ...], store: StudyStore
) -> xarray.Dataset:
    """Return the fraction of starts in spurious minima, by width and K - M."""
    counts = np.array(
        [
            [
                spurious("orthonormal", M, M + more, scale.width_starts, seeds, store)
                for more in (0, 1)
            ]
            for M in WIDTHS
        ]
    )
    bounds = np.array([[wilson(int(c), int(n)) for c, n in row] for row in counts])
    axes = ("width", "more")
    return xarray.Dataset(
        {
            "spurious": (axes, counts[..., 0]),
            "starts": (axes, counts[..., 1]),
            "fraction": (axes, counts[..., 0] / counts[..., 1]),
            "low": (axes, bounds[..., 0]),
            "high": (axes, bounds[..., 1]),
        },
        coords={"width": list(WIDTHS), "more": [0, 1]},
        attrs=attributes(teacher="orthonormal", seeds=list(seeds)),
    )


def one_pass_sgd(
    scale: Scale, seeds: tuple[int, ...], store: StudyStore
) -> tuple[xarray.Dataset, dict[str, float]]:
    """Return losses of equations and runs over time, and the noise floors."""
    land = ReLUTeacherStudent(make_teacher("orthonormal", 2), 2)
    path = land.ode(_SGD_START, _ETA, _DELTA, t_max=_T_MAX, record=_RECORD)
    runs = [(seed, i) for seed in seeds for i in range(scale.runs)]
    losses = np.empty((len(scale.dimensions), len(runs), len(path.times)))
    gaps = np.empty((len(scale.dimensions), len(runs)))
    for at, d in enumerate(scale.dimensions):
        for index, seed in enumerate(seeds):
            simulate = partial(_simulated, land, d, seed, scale.runs)
            piece = store.once(f"sgd-d{d}-n{scale.runs}-seed{seed}", simulate)
            rows = slice(index * scale.runs, (index + 1) * scale.runs)
            losses[at, rows] = piece["loss"]
            gap = np.concatenate(
                [piece["Q"] - path.Q.numpy(), piece["R"] - path.R.numpy()], -1
            )
            gaps[at, rows] = np.abs(gap[:, 1:]).mean((1, 2, 3))
    dataset = xarray.Dataset(
        {
            "ode": ("time", path.loss.numpy()),
            "loss": (("d", "run", "time"), losses),
            "deviation": (("d", "run"), gaps),
        },
        coords={"time": path.times.numpy(), "d": list(scale.dimensions)},
        attrs=attributes(seeds=list(seeds), eta=_ETA, delta=_DELTA, t_max=_T_MAX),
    )
    settings = {"low": (0.2, 0.1), "eta": (0.4, 0.1), "delta": (0.4, 0.2)}
    floors = {}
    for name, (eta, delta) in settings.items():
        start = 0.9 * torch.eye(2, dtype=torch.float64)
        end = land.ode(start, eta, delta, t_max=20 / eta, record=2, step=0.5)
        floors[name] = float(end.loss[-1])
    return dataset, floors


def _simulated(
    land: ReLUTeacherStudent, d: int, seed: int, runs: int
) -> dict[str, object]:
    names = [1000 * seed + i for i in range(runs)]
    found = land.simulate_sgd(
        _SGD_START, _ETA, _DELTA, t_max=_T_MAX, record=_RECORD, d=d, seeds=names
    )
    return {name: getattr(found, name).numpy() for name in ("loss", "Q", "R")}
