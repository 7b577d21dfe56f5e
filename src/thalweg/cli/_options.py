"""Options that several commands share."""

import tomllib
from pathlib import Path
from typing import Annotated, no_type_check

import typer

from thalweg.errors import InputError


# typer hands over its own context, which is no `typer.Context` to a run-time check.
@no_type_check
def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    if path is None:
        return None
    try:
        entries = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"--config {path} cannot be read: {error}") from None
    known = {parameter.name for parameter in context.command.params}
    entries = {name.replace("-", "_"): value for name, value in entries.items()}
    unknown = sorted(set(entries) - known)
    if unknown:
        raise InputError(f"--config {path} has unknown options: {unknown}")
    context.default_map = {**(context.default_map or {}), **entries}
    return path


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="TOML file with options; those on the line win.",
        callback=_read_config,
        is_eager=True,
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the summary as JSON, and nothing else.")
]
Progress = Annotated[
    str,
    typer.Option(
        "--progress", help="auto (bars on a terminal), plain (lines), or none."
    ),
]
