"""Which studies there are, found without importing any."""

import ast
import pkgutil
from dataclasses import dataclass
from pathlib import Path

from thalweg.errors import InputError


@dataclass(frozen=True)
class StudyInfo:
    """A study's name, whose claims it tests, its summary and its module."""

    name: str
    paper: str
    summary: str
    module: str


def list_studies() -> tuple[StudyInfo, ...]:
    """Return the studies in the order of their names; no module is imported."""
    folder = Path(__file__).parent
    found = []
    for module in pkgutil.iter_modules([str(folder)]):
        file = folder / module.name / "__init__.py"
        if not module.ispkg:
            file = folder / f"{module.name}.py"
        info = _read(file, f"{__package__}.{module.name}")
        if info is not None:
            found.append(info)
    return tuple(sorted(found, key=lambda info: info.name))


def find_study(name: str) -> StudyInfo:
    """Return the study of that name.

    Raises:
        InputError: There is none; the names are listed.
    """
    studies = list_studies()
    for info in studies:
        if info.name == name:
            return info
    known = ", ".join(info.name for info in studies)
    raise InputError(f"there is no study {name!r}; there are: {known}")


def _read(file: Path, module: str) -> StudyInfo | None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    literals = {}
    for statement in tree.body:
        if not isinstance(statement, ast.Assign):
            continue
        if isinstance(statement.value, ast.Constant):
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    literals[target.id] = str(statement.value.value)
    if "NAME" not in literals or "PAPER" not in literals:
        return None
    summary = (ast.get_docstring(tree) or "").partition("\n")[0]
    return StudyInfo(literals["NAME"], literals["PAPER"], summary, module)
