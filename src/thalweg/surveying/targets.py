"""From a TARGET and checkpoints on the command line to a survey."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from thalweg.errors import InputError
from thalweg.execution import running_executor
from thalweg.landscapes import NetworkLandscape, load_target
from thalweg.surveying.conduct import Survey, survey

if TYPE_CHECKING:
    from thalweg.execution import Executor

DEMO = "small CNN on 1,438 handwritten digits"


def survey_target(
    target: str | None,
    *,
    checkpoints: Sequence[str | Path] = (),
    weight_decay: float | None = None,
    executor: "Executor | str | None" = None,
    address: str | None = None,
    seed: int = 0,
    **options: Any,
) -> Survey:
    """Survey what a TARGET names, at its first checkpoint; the demo without a TARGET.

    Args:
        target: "package.module:name" or "path/to/file.py:name".
        checkpoints: Files; several draw lines, planes and barriers between them.
        weight_decay: Of the surveyed loss.
        executor: Where surfaces run.
        address: Of the cluster, with `executor="ray"`; asked before anything is done.
        seed: Seed of the survey, and of the demo's training.
        **options: Keywords of `survey`.

    Raises:
        TargetError: The TARGET does not import, or names something else.
        CheckpointError: A checkpoint cannot be read or does not fit.
        InputError: An option is not understood.
        ExecutionError: No cluster answers at the address.
    """
    with running_executor(executor, address=address) as workers:
        options["executor"] = workers
        if target is None:
            return _survey_demo(checkpoints, weight_decay, seed, options)
        return _survey_target(target, checkpoints, weight_decay, seed, options)


def _survey_target(
    target: str,
    checkpoints: Sequence[str | Path],
    weight_decay: float | None,
    seed: int,
    options: dict[str, Any],
) -> Survey:
    given: dict[str, Any] = {}
    if weight_decay is not None:
        given["weight_decay"] = weight_decay
    loaded = load_target(target, checkpoints, **given)
    land = loaded.landscape
    notes = list(loaded.notes)
    if isinstance(land, NetworkLandscape):
        if land.mode == "eval" and _in_training(land.model):
            notes.append(
                "The model is in train mode; it was surveyed in eval mode (running "
                "batch-norm statistics, no dropout)."
            )
    states: Mapping[str, Any] = dict(
        zip(_names(checkpoints), loaded.states, strict=True)
    )
    name = options.pop("name", "") or target.rpartition("/")[2]
    return survey(
        land,
        checkpoints=states,
        seed=seed,
        notes=notes,
        name=name,
        recipe=loaded.recipe,
        **options,
    )


def _survey_demo(
    checkpoints: Sequence[str | Path],
    weight_decay: float | None,
    seed: int,
    options: dict[str, Any],
) -> Survey:
    from thalweg.surveying.demo import demo_landscape

    if checkpoints:
        raise InputError("--checkpoint needs a TARGET whose model it fits")
    if weight_decay is not None:
        raise InputError(
            "--weight-decay needs a TARGET: the demo's landscape has the decay that "
            "its network was trained with"
        )
    notes = ["No TARGET was given: this is a demo network, trained a moment ago."]
    return survey(demo_landscape(seed), seed=seed, notes=notes, name=DEMO, **options)


def _in_training(model: torch.nn.Module) -> bool:
    return any(
        module.training
        for module in model.modules()
        if isinstance(module, torch.nn.Dropout | torch.nn.modules.batchnorm._NormBase)
    )


def _names(checkpoints: Sequence[str | Path]) -> list[str]:
    """Return a short name for each file: its stem, numbered where stems repeat."""
    stems = [Path(file).stem for file in checkpoints]
    return [
        stem if stems.count(stem) == 1 else f"{stem} ({i + 1})"
        for i, stem in enumerate(stems)
    ]
