"""`thalweg report`: rebuild a report from stored results, or export them."""

from pathlib import Path
from typing import Annotated

import typer

from thalweg.cli._options import Json
from thalweg.cli.entry import app
from thalweg.provenance import to_json


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(help="Directory of a survey.")],
    out: Annotated[
        Path | None, typer.Option(help="Where to write; DIR/report.html by default.")
    ] = None,
    export: Annotated[
        list[Path] | None,
        typer.Option(
            help="Write the step that the file is named for instead: surface.vts for "
            "ParaView, spectrum.svg, layers.nc. May be repeated.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Rebuild the report of a survey from its stored results, or export them."""
    from thalweg.surveying import export_step, rebuild_report

    if export:
        files = [str(export_step(directory, path)) for path in export]
        typer.echo(to_json({"exported": files}) if json else "\n".join(files))
        return
    path = rebuild_report(directory, out)
    typer.echo(to_json({"report": str(path)}) if json else f"report: {path}")
