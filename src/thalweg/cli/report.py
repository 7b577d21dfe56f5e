"""`thalweg report`: rebuild the report of a survey, export its results, or compare."""

from pathlib import Path
from typing import Annotated

import typer

from thalweg.cli._options import Json
from thalweg.cli.entry import app
from thalweg.errors import InputError
from thalweg.provenance import to_json


@app.command()
def report(
    directories: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="Directory of a survey; several are put side by side.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where to write; DIR/report.html by default, comparison.html where "
            "there are several."
        ),
    ] = None,
    export: Annotated[
        list[Path] | None,
        typer.Option(
            help="Write the step that the file is named for instead: surface.vts for "
            "ParaView, spectrum.svg, layers.nc. May be repeated.",
        ),
    ] = None,
    allow_different: Annotated[
        bool,
        typer.Option(
            "--allow-different",
            help="Compare surveys of different data, loss or radius; the report says "
            "what differs.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Rebuild the report of a survey, export its results, or compare several."""
    from thalweg.surveying import compare_surveys, export_steps, rebuild_report

    if export:
        if len(directories) > 1:
            raise InputError(
                f"--export takes the results of one survey, got {len(directories)}"
            )
        files = [str(path) for path in export_steps(directories[0], export)]
        typer.echo(to_json({"exported": files}) if json else "\n".join(files))
        return
    if len(directories) > 1:
        comparison = compare_surveys(
            directories, out or "comparison.html", allow_different=allow_different
        )
        found = comparison.to_json() if json else f"report: {comparison.report}"
        typer.echo(found)
        return
    path = rebuild_report(directories[0], out)
    typer.echo(to_json({"report": str(path)}) if json else f"report: {path}")
