"""Every public name in a fresh interpreter, never a module where a name is meant."""

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import thalweg

SOURCE = Path(__file__).parents[1] / "src"
ROOMS = [
    "thalweg",
    *(
        f"thalweg.{module.name}"
        for module in pkgutil.iter_modules(thalweg.__path__)
        if module.ispkg and module.name != "cli"
    ),
]
CHECK = """
import importlib, sys, types
room = importlib.import_module(sys.argv[1])
for name in room.__all__:
    value = getattr(room, name)
    assert not isinstance(value, types.ModuleType) or name in PACKAGES, name
"""
# Rooms whose public names are themselves packages.
PACKAGES = {"thalweg.solvable": {"deep_linear", "relu_topology", "two_layer_relu"}}


def fresh(code: str, *arguments: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        check=True,
        env=environment,
    )


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_import_in_a_fresh_interpreter(room):
    fresh(f"PACKAGES = {PACKAGES.get(room, set())!r}" + CHECK, room)


@pytest.mark.parametrize(
    "first", ["", "import thalweg.surveying", "import thalweg.cli", "import thalweg"]
)
def test_survey_is_a_function_in_any_order_of_imports(first):
    fresh(f"{first}\nfrom thalweg import survey\nassert callable(survey)")


def test_heavy_packages_load_only_when_they_are_used():
    heavy = ["matplotlib", "plotly", "gudhi", "xarray", "sklearn", "zarr", "ray"]
    fresh(
        "import sys, thalweg, thalweg.instruments, thalweg.reporting\n"
        f"loaded = set({heavy}) & set(sys.modules)\nassert not loaded, loaded"
    )
