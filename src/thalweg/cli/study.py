"""`thalweg study`: list the studies, or run one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thalweg.cli._options import Json
from thalweg.cli.entry import app
from thalweg.errors import InputError
from thalweg.provenance import to_json

if TYPE_CHECKING:
    from thalweg.studies import Size, Study


@app.command(context_settings={"ignore_unknown_options": True})
def study(
    name: Annotated[
        str | None, typer.Argument(help="Which study; without it they are listed.")
    ] = None,
    own: Annotated[
        list[str] | None,
        typer.Argument(metavar="[--OPTION VALUE]...", help="The study's own options."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Under a minute.")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="As large as is useful.")
    ] = False,
    seeds: Annotated[
        str | None,
        typer.Option("--seeds", help="How many seeds (3), or which ones (0,4,9)."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for claims, data and report.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what is in --out.")
    ] = False,
    json: Json = False,
) -> None:
    """Run a paper's claim at laptop scale; a study's own options follow its name.

    Exit code 1 says that a claim was contradicted.
    """
    from thalweg.studies import run_study

    if name is None:
        _list(json)
        return
    if quick and full:
        raise InputError("--quick and --full exclude each other")
    size: Size = "quick" if quick else "full" if full else "default"
    found = run_study(
        name,
        size=size,
        seeds=_seeds(seeds),
        store=out,
        resume=resume,
        options=_pairs(name, own or []),
    )
    if json:
        typer.echo(to_json({"study": name, "claims": found.records()}))
    else:
        _print(name, found)
        if out is not None:
            typer.echo(f"report: {out / 'report.html'}")
    if any(claim.verdict == "contradicted" for claim in found.claims):
        raise typer.Exit(1)


def _list(json: bool) -> None:
    from thalweg.studies import list_studies

    studies = list_studies()
    if json:
        typer.echo(to_json([vars(info) for info in studies]))
        return
    for info in studies:
        typer.echo(f"{info.name}\n    {info.summary}\n    {info.paper}")


def _print(name: str, found: "Study") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Study: {name}", show_lines=True)
    for column in ("Claim", "Measured", "Standard error", "Verdict"):
        table.add_column(column)
    for claim in found.claims:
        error = "" if claim.stderr is None else f"{claim.stderr:.3g}"
        measured = claim.measured
        if not isinstance(measured, str):
            measured = f"{measured:.4g}"
        table.add_row(claim.claim, measured, error, claim.verdict)
    Console().print(table)


def _seeds(text: str | None) -> int | list[int] | None:
    if text is None:
        return None
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"--seeds must be a number or numbers with commas, got {text!r}"
        ) from None
    return numbers if "," in text else numbers[0]


def _pairs(name: str, arguments: list[str]) -> dict[str, str]:
    """Read `--starts 1000 --M=8` into {"starts": "1000", "M": "8"}."""
    pairs = {}
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if not option.startswith("--"):
            raise InputError(f"unexpected argument {word!r}; {_accepted(name)}")
        if not equals:
            following = next(words, None)
            if following is None:
                raise InputError(f"option {option} has no value; {_accepted(name)}")
            value = following
        pairs[option[2:].replace("-", "_")] = value
    return pairs


def _accepted(name: str) -> str:
    from thalweg.studies import study_options

    options = study_options(name)
    listed = ", ".join(f"--{key.replace('_', '-')} {v}" for key, v in options.items())
    return f"study {name} has the options: {listed or 'none of its own'}"
