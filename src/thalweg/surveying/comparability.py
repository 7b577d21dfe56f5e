"""Which stored surveys may be compared: what has to be the same, and what is not.

Figures of two networks say something about the networks only where data, loss and
radius are the same.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thalweg.errors import InputError
from thalweg.surveying.archive import Archive
from thalweg.surveying.plan import Plan
from thalweg.surveying.summary import read_summary

if TYPE_CHECKING:
    import xarray as xr

# Entries of a landscape's description that say which network it is, and how its passes
# were cut, not what is measured.
OF_THE_NETWORK = {
    "batches",
    "checkpoints",
    "constants",
    "dim",
    "fingerprint",
    "model",
    "parameters",
    "seed",
}

# Conditions of the step "sharpness": a survey without it has no figure that they touch.
OF_SHARPNESS = {"radius", "worst case by"}


@dataclass(frozen=True)
class Surveyed:
    """One stored survey.

    Args:
        name: What the comparison calls it: the shortest end of its path that no other
            has.
        directory: Where it is stored.
        summary: Its figures, verdict and warnings.
        datasets: Results by step.
        plan: What it did.
    """

    name: str
    directory: Path
    summary: Mapping[str, Any]
    datasets: "Mapping[str, xr.Dataset]"
    plan: Plan


def read_surveys(directories: Sequence[Path]) -> tuple[Surveyed, ...]:
    """Read stored surveys.

    Raises:
        StoreError: A directory holds no survey.
        InputError: Fewer than two directories, one given twice, or a survey without a
            finished step.
    """
    if len(directories) < 2:
        raise InputError(
            f"a comparison needs two surveys at least, got {len(directories)}"
        )
    places = [directory.resolve() for directory in directories]
    twice = [d for d, place in zip(directories, places, strict=True)
             if places.count(place) > 1]  # fmt: skip
    if twice:
        raise InputError(f"{twice[0]} is given twice; compare different surveys")
    found = []
    for name, directory in zip(_names(places), directories, strict=True):
        archive = Archive.open(directory)
        if not archive.datasets:
            raise InputError(f"the survey in {directory} has no finished step yet")
        plan = Plan.read(directory)
        summary = read_summary(archive, plan)
        found.append(Surveyed(name, directory, summary, archive.datasets, plan))
    return tuple(found)


def _names(places: Sequence[Path]) -> list[str]:
    """Return for each path the fewest of its last parts that tell all apart."""
    for count in range(1, max(len(place.parts) for place in places) + 1):
        names = ["/".join(place.parts[-count:]) for place in places]
        if len(set(names)) == len(names):
            break
    return names


def differences(surveys: Sequence[Surveyed]) -> dict[str, tuple[str, ...]]:
    """Return the conditions of measurement that are not the same in all surveys."""
    found_in = [conditions(one) for one in surveys]
    names = dict.fromkeys(name for found in found_in for name in found)
    table = {
        name: tuple(found.get(name, "none") for found in found_in) for name in names
    }
    return {
        name: row
        for name, row in table.items()
        if len(set(row) - ({"none"} if name in OF_SHARPNESS else set())) > 1
    }


def conditions(one: Surveyed) -> dict[str, str]:
    """Return what has to be the same: data, loss, and the radius of the sharpness."""
    landscape = one.summary["landscape"]
    found = {
        name: value
        for name, value in _leaves(landscape)
        if name.rpartition(".")[2] not in OF_THE_NETWORK
    }
    plan = one.plan
    if plan.total:
        found["examples"] = f"{plan.examples} of {plan.total}"
        if plan.examples < plan.total:  # which ones, too
            found["examples"] += f", drawn with seed {plan.seed}"
    if "sharpness" in one.datasets:
        found["radius"] = f"{plan.rho:g}"
        found["worst case by"] = plan.sharpness_method
    return found


def _leaves(entry: object, name: str = "") -> list[tuple[str, str]]:
    """Return the entries of nested mappings and lists under dotted names."""
    if isinstance(entry, Mapping):
        items = [(str(key), value) for key, value in entry.items()]
    elif isinstance(entry, list) and any(isinstance(v, Mapping) for v in entry):
        items = [(str(index), value) for index, value in enumerate(entry)]
    else:
        return [(name, entry if isinstance(entry, str) else json.dumps(entry))]
    prefix = f"{name}." if name else ""
    return [leaf for key, value in items for leaf in _leaves(value, prefix + key)]
