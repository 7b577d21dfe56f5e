"""Entry point: the commands, and how errors leave the program.

Exit codes: 0 ok, 2 wrong usage or input, 3 the loss is nowhere finite, 130 interrupted.
"""

import sys
import warnings
from typing import Annotated

import typer

from thalweg.errors import ThalwegError, ThalwegWarning

INTERRUPTED = 130

app = typer.Typer(
    help="Instruments for the loss landscape of neural networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> bool:
    if wanted:
        from thalweg.provenance import versions

        typer.echo(f"thalweg {versions()['thalweg']}")
        raise typer.Exit
    return wanted


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Instruments for the loss landscape of neural networks."""


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    debug = "--debug" in arguments  # wherever it stands on the line
    arguments = [argument for argument in arguments if argument != "--debug"]
    warnings.simplefilter("always", ThalwegWarning)
    warnings.showwarning = _show_warning
    try:
        app(args=arguments, prog_name="thalweg")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except ThalwegError as error:
        if debug:
            raise
        typer.echo(f"thalweg: {error}", err=True)
        code = 2
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        typer.echo("interrupted; what is finished is kept, --resume goes on", err=True)
    return code


def _show_warning(  # the signature of warnings.showwarning
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: str | None = None,
) -> None:
    if issubclass(category, ThalwegWarning):
        typer.echo(f"warning: {message}", err=True)
