"""The survey itself: plan, steps, summary, report; resumable throughout."""

import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from thalweg.errors import InputError, ThalwegWarning
from thalweg.execution import running_executor, thread_count
from thalweg.landscapes import Landscape, NetworkLandscape, free_memory
from thalweg.provenance import fingerprint, to_json
from thalweg.surveying import budget as budgets
from thalweg.surveying.aligned_lines import refuse_unalignable
from thalweg.surveying.archive import Archive
from thalweg.surveying.plan import Plan, chosen_steps, parse_bytes, parse_seconds
from thalweg.surveying.report import write_files
from thalweg.surveying.steps import RUN, Context, skipped
from thalweg.surveying.summary import read_summary, summarize

if TYPE_CHECKING:
    import xarray as xr

    from thalweg.execution import Executor


@dataclass(frozen=True)
class Survey:
    """What a survey found.

    Args:
        summary: Every figure with its error, the verdict, warnings, cost.
        datasets: Results by step.
        plan: What was chosen to fit the budget.
        directory: Where they are stored, or None.
    """

    summary: dict[str, object]
    datasets: "Mapping[str, xr.Dataset]"
    plan: Plan
    directory: Path | None

    @property
    def finite(self) -> bool:
        """Whether the loss is finite anywhere it was looked at."""
        return bool(self.summary["finite"])

    @property
    def report(self) -> Path | None:
        """Path of the HTML report."""
        return None if self.directory is None else self.directory / "report.html"

    def to_json(self) -> str:
        """Return the summary as JSON."""
        return to_json(self.summary, indent=2)

    def describe(self) -> str:
        """Return the verdict, the figures and the report's path as text."""
        from thalweg.surveying.summary import describe

        return describe(self.summary, self.report)


def survey(
    landscape: Landscape,
    *,
    out: str | Path | None = None,
    budget: str | float = "45s",
    memory: str | int | None = None,
    only: str | Sequence[str] | None = None,
    layers: str = "*",
    refine: int | None = None,
    checkpoints: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
    align: bool = False,
    plan: Plan | str | Path | None = None,
    resume: bool = False,
    executor: "Executor | str | None" = None,
    address: str | None = None,
    recipe: Callable[[], Landscape] | None = None,
    seed: int = 0,
    progress: Any = "auto",
    name: str = "",
    notes: Sequence[str] = (),
) -> Survey:
    """Survey a landscape around its origin: loss, curvature, sharpness, surfaces.

    Timing and free memory are looked at once, before the first step; everything chosen
    from them is in the returned plan, and a survey with the same plan and landscape
    gives the same figures to the bit.

    Args:
        landscape: Stands at the point to survey (`landscape.at(point)`).
        out: Directory of plan, results, summary, figures and report; nothing is written
            where None.
        budget: Seconds, or "30s", "5m", "1h".
        memory: Bytes, "500MB", "2GB", or "minimal", for Krylov bases, sketches and
            retained graphs; half of what is free by default.
        only: Steps to run; all by default.
        layers: Shell pattern of the parameters in the table by layer.
        refine: Most points of each surface, placed where it bends, breaks off or
            crosses a level (`ti.Refine`); a regular grid where None.
        checkpoints: Name -> state dict; several draw lines, curves and planes between.
        align: Whether to permute the units of the other checkpoints to lie nearest the
            first, and draw the lines to them once more.
        plan: A plan to repeat, or the directory of the survey that made it.
        resume: Go on with the survey in `out`.
        executor: Where surfaces run, see `ti.surface`.
        address: Of the cluster, with `executor="ray"`; see `RayExecutor`.
        recipe: Builds the landscape in worker processes; it is sent to them otherwise.
        seed: Seed of every random number.
        progress: "auto", "plain" or "none".
        name: What the report calls the landscape.
        notes: Remarks for the report, before its warnings.

    Raises:
        InputError: An option is not understood, or the landscape stands nowhere, at
            a point that is not finite, has one dimension, or two checkpoints have
            the same weights.
        StructureError: Units cannot be aligned in this network.
        StoreError: `out` holds another survey.
        ExecutionError: No cluster answers at the address.
    """
    if landscape.dim < 2:
        raise InputError(
            "a survey needs two dimensions at least; a landscape of one is a line: use "
            "`ti.surface(landscape, torch.ones(1, 1), [axis])`"
        )
    if getattr(landscape, "shards", None):
        raise InputError(
            "a survey plans by the clock of one process: use the instruments on a "
            "landscape over a process group, or survey one of all rows"
        )
    bad = int((~torch.isfinite(landscape.point())).sum())
    if bad:
        raise InputError(
            f"the point to survey has {bad} of {landscape.dim} entries that are NaN or "
            "infinite: training diverged, or the checkpoint is damaged"
        )
    _refuse_twins(landscape, checkpoints or {})
    with running_executor(executor, address=address) as workers:
        directory = None if out is None else Path(out)
        chosen = _plan(
            landscape,
            plan=plan,
            directory=directory if resume else None,
            budget=budget,
            memory=memory,
            only=only,
            layers=layers,
            refine=refine,
            checkpoints=len(checkpoints or ()),
            align=align,
            seed=seed,
        )
        if "aligned" in chosen.steps:
            refuse_unalignable(landscape)
        identity = fingerprint(landscape.describe(), landscape.point())
        archive = Archive.create(directory, chosen, identity, resume=resume)
        land = _thinned(landscape, chosen)
        context = Context(
            land,
            chosen,
            archive,
            executor=workers,
            recipe=recipe if land is landscape else None,  # a thinned one is another
            progress=progress,
            checkpoints=checkpoints or {},
        )
        with thread_count(chosen.threads):
            _run(context)
    summary = summarize(
        archive.datasets,
        chosen,
        name=name,
        landscape=landscape.describe(),
        notes=tuple(notes),
    )
    write_files(archive, chosen, summary)
    if directory is not None:
        shutil.rmtree(directory / "chunks", ignore_errors=True)
    return Survey(summary, archive.datasets, chosen, directory)


def _refuse_twins(
    landscape: Landscape, checkpoints: Mapping[str, Mapping[str, torch.Tensor]]
) -> None:
    if not isinstance(landscape, NetworkLandscape):
        return
    seen: dict[str, str] = {}
    for name, state in checkpoints.items():
        twin = seen.setdefault(fingerprint(landscape.flatten(state)), name)
        if twin != name:
            raise InputError(
                f"checkpoints {twin!r} and {name!r} have the same weights: there is "
                "neither a line nor a plane between them"
            )


def _plan(
    land: Landscape,
    *,
    plan: Plan | str | Path | None,
    directory: Path | None,
    budget: str | float,
    memory: str | int | None,
    only: str | Sequence[str] | None,
    layers: str,
    refine: int | None,
    checkpoints: int,
    align: bool,
    seed: int,
) -> Plan:
    if directory is not None and (directory / "plan.json").is_file():
        return Plan.read(directory)
    if plan is not None:
        return plan if isinstance(plan, Plan) else Plan.read(plan)
    steps = chosen_steps(only, checkpoints, align=align)
    budgets.check_refine(refine)
    seconds = parse_seconds(budget)
    amount = None if memory in (None, budgets.MINIMAL) else parse_bytes(memory)
    costs, threads = budgets.measure(land)
    if memory == budgets.MINIMAL:
        amount = budgets.MINIMAL_VECTORS * costs.vector
    return budgets.choose(
        land,
        costs,
        steps=steps,
        budget=seconds,
        memory=free_memory(land.device) // 2 if amount is None else amount,
        threads=threads,
        layers=layers,
        refine=refine,
        seed=seed,
        paths=max(checkpoints - 1, 0),
    )


def _thinned(land: Landscape, plan: Plan) -> Landscape:
    if not isinstance(land, NetworkLandscape) or plan.examples == plan.total:
        return land
    from thalweg.seeding import generator

    order = torch.randperm(plan.total, generator=generator(plan.seed, "examples"))
    return land.subset(order[: plan.examples].sort().values)


def _run(context: Context) -> None:
    for step in context.plan.steps:
        done = context.archive.datasets
        if step in done or skipped(step, done):
            continue
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ThalwegWarning)
            try:
                dataset = RUN[step](context)
            finally:
                context.release()
        if dataset is None:
            continue
        messages = []
        for warning in caught:
            if issubclass(warning.category, ThalwegWarning):
                messages.append(str(warning.message))
            else:
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno
                )
        if messages:
            dataset = dataset.assign_attrs(warnings=to_json(messages))
        context.archive.put(step, dataset)


def rebuild_report(directory: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a survey anew from its stored results.

    Raises:
        StoreError: There is no survey in `directory`.
        InputError: Its results lack every step.
    """
    directory = Path(directory)
    archive = Archive.open(directory)
    if not archive.datasets:
        raise InputError(f"the survey in {directory} has no finished step yet")
    plan = Plan.read(directory)
    summary = read_summary(archive, plan)
    path = write_files(archive, plan, summary, report=out)
    assert path is not None
    return path
