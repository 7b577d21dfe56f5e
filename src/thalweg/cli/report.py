"""`thalweg report`: rebuild a report from stored results."""

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
    json: Json = False,
) -> None:
    """Rebuild the report of a survey from its stored results."""
    from thalweg.surveying import rebuild_report

    path = rebuild_report(directory, out)
    typer.echo(to_json({"report": str(path)}) if json else f"report: {path}")
