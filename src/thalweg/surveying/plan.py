"""What a survey will do: every choice, made once, written down before the first pass.

Whatever is chosen by timing, free memory or the budget is a field here; a repeated or
resumed survey reads the plan and measures nothing.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from thalweg.errors import InputError, StoreError
from thalweg.provenance import to_json

STEPS = (
    "point",
    "eigenvalues",
    "trace",
    "spectrum",
    "sharpness",
    "surface",
    "hessian_surface",
    "topology",
    "layers",
    "sign_locks",
    "paths",
    "plane",
    "aligned",
)
# Steps that run only where they are asked for.
ASKED = ("aligned",)
# Steps that need so many checkpoints.
CHECKPOINTS = {"paths": 2, "plane": 3, "aligned": 2}

NEEDS = {
    "hessian_surface": ("eigenvalues",),
    "topology": ("surface", "hessian_surface"),
    "eigenvalues": ("point",),
    "aligned": ("paths",),
}


@dataclass(frozen=True)
class Plan:
    """The choices of one survey.

    Args:
        steps: Names of the steps to run, in order.
        seed: Seed of every random number.
        budget: Seconds that the survey may take.
        memory: Bytes that a Krylov basis or a sketch may take, and as many again the
            retained graphs.
        threads: Torch threads of every pass.
        examples: Number of examples in every pass; `total` where all are used.
        total: Number of examples there are; 0 where the landscape has none.
        eigenpairs: Number of top eigenpairs.
        eigen_products: Limit of products for either end of the spectrum.
        trace_products: Limit of products of the trace.
        probes: Probes of the spectral density.
        lanczos_steps: Products a probe.
        surface_points: Points an axis of a surface.
        extent: Half-width of the random surface, in units of its directions.
        rho: Radius of the sharpness table.
        sharpness_method: "pgd", or "one_step" where ascents do not fit.
        sharpness_steps: Steps of each ascent of the worst case.
        sharpness_samples: Antithetic pairs of the average case.
        layer_products: Limit of products for the top eigenvalue of one layer.
        layer_probes: Probes that all layers' traces share.
        gradient_examples: Examples whose own gradients give the sampling error.
        path_points: Points a line between checkpoints.
        path_steps: Steps of training of each curve between checkpoints; none where 0.
        layers: Shell pattern of the parameters in the table by layer, or "*".
        refine: Most points of an adaptive surface, whose coarse grid then has
            `surface_points` an axis; 0 for a regular grid.
        measured: Seconds a pass and a product took when the plan was made.
        notes: What was reduced to fit the budget or the memory, in plain words.
    """

    steps: tuple[str, ...]
    seed: int
    budget: float
    memory: int
    threads: int
    examples: int
    total: int
    eigenpairs: int
    eigen_products: int
    trace_products: int
    probes: int
    lanczos_steps: int
    surface_points: int
    extent: float
    rho: float
    sharpness_method: str
    sharpness_steps: int
    sharpness_samples: int
    layer_products: int
    layer_probes: int
    gradient_examples: int
    path_points: int
    path_steps: int = 0
    layers: str = "*"
    refine: int = 0
    measured: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the plan as JSON."""
        return to_json(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the plan that `to_json` wrote.

        Raises:
            StoreError: The text is no plan of this version.
        """
        try:
            entries = json.loads(text)
            for name in ("steps", "notes"):
                entries[name] = tuple(entries[name])
            return cls(**entries)
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"this is no plan of a survey: {error}") from None

    @classmethod
    def read(cls, directory: str | Path) -> Self:
        """Read `plan.json` of a survey's directory, or the file itself.

        Raises:
            StoreError: There is none.
        """
        path = Path(directory)
        path = path / "plan.json" if path.is_dir() else path
        if not path.is_file():
            raise StoreError(f"no plan at {path}: give the directory of a survey")
        return cls.from_json(path.read_text())


def chosen_steps(
    only: str | Sequence[str] | None, checkpoints: int, *, align: bool = False
) -> tuple[str, ...]:
    """Return the steps to run, with what they need, in the order of `STEPS`.

    Args:
        only: Names, as a sequence or separated by commas; all where None, but for
            those that must be asked for.
        checkpoints: How many there are.
        align: Whether "aligned" is asked for.

    Raises:
        InputError: A name is unknown, or needs more checkpoints.
    """
    possible = [s for s in STEPS if checkpoints >= CHECKPOINTS.get(s, 0)]
    if align and "aligned" not in possible:
        raise InputError(f"align needs 2 checkpoints, got {checkpoints}")
    if only is None:
        return tuple(s for s in possible if s not in ASKED or align)
    wanted = _with_needs("aligned") if align else set()
    for name in re.findall(r"[^,\s]+", only) if isinstance(only, str) else only:
        if name not in STEPS:
            raise InputError(f"only={name!r} is no step; the steps are {STEPS}")
        if name not in possible:
            raise InputError(
                f"only={name!r} needs {CHECKPOINTS[name]} checkpoints, "
                f"got {checkpoints}"
            )
        wanted |= _with_needs(name)
    if not wanted:
        raise InputError(f"only={only!r} names no step; the steps are {STEPS}")
    return tuple(step for step in STEPS if step in wanted)


def _with_needs(name: str) -> set[str]:
    result = {name}
    for needed in NEEDS.get(name, ()):
        result |= _with_needs(needed)
    return result


def parse_seconds(budget: str | float) -> float:
    """Return seconds from 45, "30s", "5m" or "1h".

    Raises:
        InputError: The text is no duration, or it is not positive.
    """
    units = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
    return _parse(budget, units, "budget", "30s, 5m or 1h")


def parse_bytes(memory: str | int) -> int:
    """Return bytes from a number, "500MB" or "2GB".

    Raises:
        InputError: The text is no amount of memory, or it is not positive.
    """
    units = {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9}
    return int(_parse(memory, units, "memory", "minimal, 500MB or 2GB"))


def _parse(
    value: str | float, units: dict[str, float], name: str, examples: str
) -> float:
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", str(value))
    scale = units.get(match.group(2).lower()) if match else None
    if match is None or scale is None or float(match.group(1)) <= 0:
        raise InputError(f"{name}={value!r} is not understood; write {examples}")
    return float(match.group(1)) * scale
