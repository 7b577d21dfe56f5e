"""`thalweg survey`: the landscape around a trained network, as a report."""

from pathlib import Path
from typing import Annotated

import typer

from thalweg.cli._options import Config, Json, Progress
from thalweg.cli.entry import app


@app.command()
def survey(
    target: Annotated[
        str | None,
        typer.Argument(
            help="package.module:name or path/to/file.py:name, naming a landscape, a "
            "tuple (model, loss, data), or a function that returns one. Without it a "
            "small network is trained on real digits.",
        ),
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            help="Weights to load (.safetensors, or .pt read weights-only). Several "
            "draw lines, curves of low loss and the plane between them, with barriers.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Directory of the report and the results.")
    ] = Path("thalweg-survey"),
    budget: Annotated[
        str, typer.Option(help="Time that the survey may take: 30s, 5m, 1h.")
    ] = "45s",
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory for bases and retained graphs: minimal, 500MB, 2GB. Half of "
            "what is free by default."
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            help="Steps to run, separated by commas: point, eigenvalues, trace, "
            "spectrum, sharpness, surface, hessian_surface, topology, layers, "
            "sign_locks, paths, plane, aligned."
        ),
    ] = None,
    align: Annotated[
        bool,
        typer.Option(
            "--align",
            help="Permute the units of the other checkpoints to lie nearest the first, "
            "and draw the lines to them once more.",
        ),
    ] = False,
    layers: Annotated[
        str, typer.Option(help="Shell pattern of the parameters in the layer table.")
    ] = "*",
    refine: Annotated[
        int | None,
        typer.Option(
            help="Draw each surface from up to this many points, placed where it "
            "bends, breaks off or crosses a level, instead of a regular grid."
        ),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(
            help="Survey the loss plus (this / 2)·‖θ‖², as a network trained with "
            "weight decay minimized it."
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="Directory of an earlier survey whose plan to repeat."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted survey.")
    ] = False,
    executor: Annotated[
        str | None,
        typer.Option(
            help="Where surfaces run: local, process:2 for two workers, or ray."
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="With --executor ray, the cluster to join: auto for the one that "
            "runs, or host:port. Without it one is started here for the survey."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random number.")] = 0,
    progress: Progress = "auto",
    json: Json = False,
    config: Config = None,
) -> None:
    """Survey the landscape around a trained network and write a report."""
    from thalweg.surveying import survey_target

    result = survey_target(
        target,
        checkpoints=tuple(checkpoint or ()),
        out=out,
        budget=budget,
        memory=memory,
        only=only,
        align=align,
        layers=layers,
        refine=refine,
        weight_decay=weight_decay,
        plan=plan,
        resume=resume,
        executor=executor,
        address=address,
        seed=seed,
        progress="none" if json and progress == "auto" else progress,
    )
    if json:
        typer.echo(result.to_json())
    else:
        typer.echo(result.describe())
    if not result.finite:
        raise typer.Exit(3)
