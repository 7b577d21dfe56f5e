"""`thalweg doctor`: what is installed, and whether the instruments measure right."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import typer

from thalweg.cli._options import Json
from thalweg.cli.entry import app
from thalweg.provenance import to_json, versions

_CORE = ("scipy", "xarray", "zarr", "gudhi", "plotly", "matplotlib", "scikit-learn")
_EXTRAS = {
    "data": ("mlxtend", "scikit-image", "Hershey-Fonts"),
    "merging": ("transformers", "pyyaml"),
    "ray": ("ray",),
    "trainers": ("lightning", "transformers", "accelerate"),
    "docs": ("mkdocs-material", "mkdocstrings"),
}


@app.command()
def doctor(json: Json = False) -> None:
    """Show versions, threads, devices and extras, and test the instruments.

    The self-test measures landscapes whose answers are known in closed form; exit code
    1 says that one came out wrong.
    """
    findings = {
        "versions": versions() | {name: _version(name) for name in _CORE},
        "compute": _compute(),
        "extras": {
            extra: {name: _version(name) for name in names}
            for extra, names in _EXTRAS.items()
        },
        "torchvision": _torchvision(),
    }
    if not json:
        _print(findings)
    claims = _self_test()
    if json:
        typer.echo(to_json(findings | {"self_test": claims}))
    else:
        for claim in claims:
            good = claim["verdict"] == "supported"
            mark = "ok   " if good else "WRONG"
            typer.echo(f"  {mark} {claim['claim']}: {claim['measured']:.2g}")
    wrong = sum(claim["verdict"] != "supported" for claim in claims)
    if not json:
        typer.echo(
            f"{wrong} of {len(claims)} checks came out wrong"
            if wrong
            else f"all {len(claims)} checks agree with the closed forms"
        )
    if wrong:
        raise typer.Exit(1)


def _compute() -> dict[str, Any]:
    import os

    import torch

    devices = ["cpu"]
    devices += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return {
        "processors": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "devices": devices,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _torchvision() -> str:
    """Say whether torchvision is absent, works, or breaks what imports it.

    Its compiled part must be of the same build as torch; where it is not, packages that
    import it on the side (transformers, torchmetrics) fail with an unrelated message.
    """
    installed = _version("torchvision")
    if installed is None:
        return "not installed (thalweg does not need it)"
    found = subprocess.run(
        [sys.executable, "-c", "import torchvision"],
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode == 0:
        return f"{installed}, works"
    lines = found.stderr.strip().splitlines() or ["no message"]
    return (
        f"BROKEN: {installed} does not import with torch {_version('torch')} "
        f"({lines[-1]}). Packages that import it fail with it. thalweg does not need "
        "it: pip uninstall torchvision, or install the build that belongs to torch"
    )


def _self_test() -> list[dict[str, Any]]:
    import torch

    from thalweg.studies import run_study

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run_study("instruments", size="quick").records()
    finally:
        torch.set_num_threads(threads)


def _print(findings: dict[str, Any]) -> None:
    for name, number in findings["versions"].items():
        typer.echo(f"{name:14} {number or 'MISSING'}")
    for name, value in findings["compute"].items():
        text = ", ".join(value) if isinstance(value, list) else value
        typer.echo(f"{name:14} {text}")
    typer.echo(f"torchvision    {findings['torchvision']}")
    typer.echo("extras")
    for extra, packages in findings["extras"].items():
        missing = [name for name, number in packages.items() if number is None]
        state = f"lacks {', '.join(missing)}" if missing else "there"
        typer.echo(f"  {extra:12} {state}")
    typer.echo("self-test (largest errors)")
