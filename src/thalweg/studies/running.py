"""Run a study: options, seeds, resume, and the files it leaves."""

import importlib
import inspect
import os
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from thalweg.errors import InputError
from thalweg.execution import atomic_file
from thalweg.provenance import Meter, attributes, to_json
from thalweg.reporting import write_report
from thalweg.studies.claims import Study
from thalweg.studies.registry import StudyInfo, find_study
from thalweg.studies.store import StudyStore

Size: TypeAlias = Literal["quick", "default", "full"]
SIZES: tuple[str, ...] = get_args(Size)
_SEEDS = {"quick": 1, "default": 3, "full": 5}
_ARGUMENTS = ("size", "seeds", "store")


def run_study(
    name: str,
    *,
    size: Size = "default",
    seeds: int | Sequence[int] | None = None,
    store: str | Path | None = None,
    resume: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Study:
    """Run a study and return its claims, datasets and sections.

    With a folder it leaves there `claims.json`, each dataset as NetCDF,
    `report.html`, and the finished pieces that `resume` goes on from.

    Args:
        name: One of `list_studies()`.
        size: "quick", "default" or "full".
        seeds: How many (0, 1, ...) or which; 1, 3 or 5 by size.
        store: Folder; None leaves nothing.
        resume: Go on with a folder that holds this study of these settings.
        options: The study's own options; texts are read by their annotation.

    Raises:
        InputError: No such study, size, seeds or option (those accepted are listed).
        StoreError: The folder holds something else, or another plan.
    """
    info = find_study(name)
    if size not in SIZES:
        raise InputError(f"size must be one of {SIZES}, got {size!r}")
    if resume and store is None:
        raise InputError("resume needs the folder of the study: give store")
    module = importlib.import_module(info.module)
    settings = _options(info, module.run, dict(options or {}))
    chosen = _seeds(seeds, size)
    plan = {"study": name, "size": size, "seeds": chosen, "options": settings}
    folder = None if store is None else Path(store)
    pieces = StudyStore(folder, plan, resume=resume)
    with Meter() as meter:
        try:
            study = module.run(size, chosen, pieces, **settings)
        except InputError:
            pieces.abandon()
            raise
    if folder is not None:
        _write(folder, info, study, plan, meter)
    return study


def study_options(name: str) -> dict[str, str]:
    """Return the options of a study, each with its type and default, as text."""
    info = find_study(name)
    run = importlib.import_module(info.module).run
    return {
        option: f"{_describe(hint)} = {default!r}"
        for option, (hint, default) in _signature(run).items()
    }


def _signature(run: Any) -> dict[str, tuple[Any, Any]]:
    hints = typing.get_type_hints(inspect.unwrap(run))
    return {
        name: (hints.get(name, str), parameter.default)
        for name, parameter in inspect.signature(run).parameters.items()
        if name not in _ARGUMENTS
    }


def _options(info: StudyInfo, run: Any, given: dict[str, Any]) -> dict[str, Any]:
    known = _signature(run)
    if unknown := sorted(given.keys() - known.keys()):
        accepted = ", ".join(f"{n} ({_describe(h)})" for n, (h, _) in known.items())
        raise InputError(
            f"study {info.name!r} has no option {', '.join(map(repr, unknown))}; "
            f"it accepts: {accepted or 'none'}"
        )
    return {
        name: _read(name, given[name], hint) if name in given else default
        for name, (hint, default) in known.items()
    }


def _read(name: str, value: Any, hint: Any) -> Any:
    """Read a text by its annotation; other values are taken as they are."""
    if not isinstance(value, str):
        return value
    for kind in _kinds(hint):
        if kind is types.NoneType and value.lower() == "none":
            return None
        if kind is bool and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if kind in (int, float, str):
            try:
                return kind(value)
            except ValueError:
                continue
    raise InputError(f"option {name} must be {_describe(hint)}, got {value!r}")


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _describe(hint: Any) -> str:
    return " or ".join(
        "none" if kind is types.NoneType else getattr(kind, "__name__", str(kind))
        for kind in _kinds(hint)
    )


def _seeds(seeds: int | Sequence[int] | None, size: str) -> tuple[int, ...]:
    if seeds is None:
        seeds = _SEEDS[size]
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not chosen or len(set(chosen)) != len(chosen):
        raise InputError(
            f"seeds must be a positive number or different seeds, got {seeds!r}"
        )
    return chosen


def _write(
    folder: Path, info: StudyInfo, study: Study, plan: dict[str, Any], meter: Meter
) -> None:
    for name, dataset in study.datasets.items():
        temporary = folder / f"{name}.nc.tmp"
        dataset.to_netcdf(temporary, engine="h5netcdf")
        os.replace(temporary, folder / f"{name}.nc")
    record = {
        **plan,
        "paper": info.paper,
        "claims": study.records(),
        **attributes(cost=meter),
    }
    with atomic_file(folder / "claims.json") as file:
        file.write(to_json(record, indent=1).encode())
    write_report(
        folder / "report.html",
        f"Study: {info.name}",
        [study.table(), *study.sections],
        record | {"datasets": dict(study.datasets)},
        subtitle=info.paper,
    )
