"""The page of a comparison as sections: tables of differences, figures side by side."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from thalweg.reporting import (
    Callout,
    Figure,
    Gallery,
    Part,
    Quantity,
    Section,
    Table,
    Text,
    format_number,
    spectra_figure,
    surface_caption,
    surface_figure,
)
from thalweg.surveying.comparability import Surveyed, conditions

SURFACES = {
    "surface": "Random directions",
    "hessian_surface": "Top Hessian directions",
    "plane": "Plane through the checkpoints",
}
WHERE = {
    "surface": "Each along random directions, scaled to its own weights: "
    "compare widths and heights, not single bumps.",
    "hessian_surface": "Each along its own top two eigenvectors; coordinates are "
    "distances.",
    "plane": "Each through its own checkpoints.",
}
# A figure of a survey: its value and the error of that, None where there is none.
Measured: TypeAlias = tuple[float, float | None]
Read: TypeAlias = Callable[[Mapping[str, Any]], dict[str, Measured]]
# An error below this share of a number does not reach the four digits written.
NEGLIGIBLE = 5e-5


def sections(
    surveys: Sequence[Surveyed], different: Mapping[str, tuple[str, ...]]
) -> list[Section]:
    """Return the sections of the comparison, in the order of reading."""
    result = [_overview(surveys, different)]
    tables: list[tuple[str, Read, str]] = [
        ("Loss and gradient", _point, POINT_NOTE),
        ("Curvature", _curvature, CURVATURE_NOTE),
        ("Sharpness", _sharpness, SHARPNESS_NOTE),
        ("Barriers", _barriers, ""),
    ]
    for title, read, note in tables:
        parts: list[Part] = [*_tables(surveys, read, note)]
        if title == "Curvature":
            parts += _spectra(surveys)
        if title == "Sharpness" and parts:
            parts += _efforts(surveys)
        if parts:
            result.append(Section(title, parts))
    result += [
        Section(title, _surfaces(surveys, step))
        for step, title in SURFACES.items()
        if any(step in one.datasets for one in surveys)
    ]
    return [*result, _settings(surveys)]


def _overview(
    surveys: Sequence[Surveyed], different: Mapping[str, tuple[str, ...]]
) -> Section:
    names = [one.name for one in surveys]
    parts: list[Part] = [_conditions(surveys, different)]
    rows = [
        [
            one.name,
            str(one.summary["name"]) or "–",
            _headline(one.summary),
            int(one.summary["landscape"].get("dim", 0)),
        ]
        for one in surveys
    ]
    parts.append(Table(["survey", "of", "verdict", "parameters"], rows))
    if len({row[-1] for row in rows}) > 1:
        text = (
            "The networks have different numbers of parameters: a ball of one radius "
            "and a trace over all directions do not mean the same in each."
        )
        parts.append(Callout("warning", text))
    for name, one in zip(names, surveys, strict=True):
        if warnings := one.summary["warnings"]:
            parts.append(Callout("warning", f"**{name}**: " + "\n\n".join(warnings)))
    return Section("Overview", parts)


def _conditions(
    surveys: Sequence[Surveyed], different: Mapping[str, tuple[str, ...]]
) -> Callout:
    """Say what all surveys have in common, or first of all what they have not."""
    if not different:
        common = conditions(surveys[0])
        named = [
            f"{name.replace('_', ' ')} `{common[name]}`"
            for name in ("data", "examples", "loss", "weight_decay", "radius")
            if name in common
        ]
        text = "Data, loss and radius are the same in all surveys"
        return Callout("info", f"{text}: {', '.join(named)}." if named else f"{text}.")
    rows = [
        f"**{name.replace('_', ' ')}**: {' / '.join(f'`{value}`' for value in row)}"
        for name, row in different.items()
    ]
    text = (
        "These surveys were not made under the same conditions. The differences below "
        "are not those of the networks alone, but also of:"
    )
    return Callout("warning", "\n\n".join([text, *rows]))


def _headline(summary: Mapping[str, Any]) -> str:
    verdict = summary["verdict"]
    return "–" if verdict is None else str(verdict["headline"])


# Tables ---------------------------------------------------------------------------

POINT_NOTE = (
    "Errors of loss and accuracy are those of the sample. Where all surveys see the "
    "same examples, the difference is known better than its error here."
)
CURVATURE_NOTE = (
    "The error of an eigenvalue is its residual, which bounds it; that of the trace is "
    "a standard error. Both are of the computation on this data alone, and left out "
    "where they do not reach the digits written."
)
SHARPNESS_NOTE = (
    "Worst cases are lower bounds without an error; averages have a standard error. "
    "Plain measures change under a rescaling of layers that leaves the function as it "
    "is."
)


def _tables(surveys: Sequence[Surveyed], read: Read, note: str) -> list[Table]:
    """Return the figures that two surveys have at least, and their differences.

    One table holds both where there are two surveys; more need one for each.
    """
    columns = [read(one.summary["figures"]) for one in surveys]
    labels = [
        label
        for label in dict.fromkeys(label for column in columns for label in column)
        if sum(label in column for column in columns) > 1
    ]
    if not labels:
        return []
    first, *others = [one.name for one in surveys]
    heads = [head for name in others for head in (f"{name} − {first}", "in errors")]
    cells = [[column.get(label) for column in columns] for label in labels]
    values = [[_cell(cell) for cell in row] for row in cells]
    changes = [
        [part for cell in row[1:] for part in _difference(row[0], cell)]
        for row in cells
    ]
    if len(surveys) == 2:
        rows = [[a, *b, *c] for a, b, c in zip(labels, values, changes, strict=True)]
        return [Table(["", first, *others, *heads], rows, note)]
    return [
        Table(["", first, *others], _labeled(labels, values)),
        Table(["", *heads], _labeled(labels, changes), note),
    ]


def _labeled(labels: list[str], rows: list[list[object]]) -> list[list[object]]:
    return [[label, *row] for label, row in zip(labels, rows, strict=True)]


def _cell(measured: Measured | None) -> object:
    """Return a value with its error, where that reaches the digits written."""
    if measured is None:
        return None
    value, error = measured
    if error is not None and error < NEGLIGIBLE * abs(value):
        error = None
    return Quantity("", value, error)


def _difference(first: Measured | None, other: Measured | None) -> list[object]:
    """Return other - first with its error, and how many errors that is."""
    if first is None or other is None:
        return [None, None]
    difference = other[0] - first[0]
    if first[1] is None or other[1] is None:
        return [Quantity("", difference), None]
    error = math.hypot(first[1], other[1])
    cell = _cell((difference, error))
    if error < NEGLIGIBLE * abs(difference):
        return [cell, None]
    return [cell, float(f"{difference / error:.2g}") if error else None]


def _point(figures: Mapping[str, Any]) -> dict[str, Measured]:
    names = {
        "loss": "loss_stderr",
        "accuracy": "accuracy_stderr",
        "gradient_norm": None,
        "weight_norm": None,
        "noise_scale": "noise_scale_stderr",
    }
    found: dict[str, Measured] = {}
    for name, error in names.items():
        if name in figures:
            stderr = _number(figures.get(error)) if error else None
            label = name.replace("_", " ")
            found[label] = (float(figures[name]), stderr)
    return found


def _curvature(figures: Mapping[str, Any]) -> dict[str, Measured]:
    found: dict[str, Measured] = {}
    for rank, pair in enumerate(figures.get("top_eigenvalues", ()), start=1):
        found[f"eigenvalue {rank}"] = (float(pair["value"]), float(pair["residual"]))
    if (low := figures.get("smallest_eigenvalue")) is not None:
        found["smallest eigenvalue"] = (float(low["value"]), float(low["residual"]))
    if (trace := figures.get("trace")) is not None:
        found["trace"] = (float(trace["value"]), float(trace["stderr"]))
    return found


def _sharpness(figures: Mapping[str, Any]) -> dict[str, Measured]:
    found: dict[str, Measured] = {}
    for kind, row in figures.get("sharpness", {}).items():
        stderr = _number(row["stderr"])
        found[kind] = (float(row["value"]), stderr if stderr else None)
    return found


def _efforts(surveys: Sequence[Surveyed]) -> list[Part]:
    """Say where the ascents to the worst case were not equally long."""
    steps = [one.plan.sharpness_steps for one in surveys]
    if len(set(steps)) == 1:
        return []
    text = (
        f"The ascents of the worst cases took {' / '.join(map(str, steps))} steps: "
        "fewer leave a bound farther below the maximum."
    )
    return [Callout("warning", text)]


def _barriers(figures: Mapping[str, Any]) -> dict[str, Measured]:
    return {
        f"{pair}{suffix}": (float(value), None)
        for entry, suffix in (("barriers", ""), ("aligned_barriers", ", aligned"))
        for pair, value in figures.get(entry, {}).items()
    }


def _number(value: object) -> float | None:
    return None if value is None else float(value)  # type: ignore[arg-type]  # a figure


# Figures --------------------------------------------------------------------------


def _spectra(surveys: Sequence[Surveyed]) -> list[Part]:
    found = {
        one.name: one.datasets["spectrum"]
        for one in surveys
        if "spectrum" in one.datasets
    }
    if not found:
        return []
    widths = ", ".join(
        f"{name} {float(spectrum.attrs['sigma']):.2g}"
        for name, spectrum in found.items()
    )
    caption = (
        "Densities of the Hessians' eigenvalues by stochastic Lanczos quadrature. "
        f"Peaks are as wide as the resolution σ: {widths}."
    )
    return [Figure(spectra_figure(found), caption), *_missing(surveys, "spectrum")]


def _surfaces(surveys: Sequence[Surveyed], step: str) -> list[Part]:
    found = {one.name: one.datasets[step] for one in surveys if step in one.datasets}
    datasets = list(found.values())
    figures = []
    for name, dataset in found.items():
        caption = surface_caption(dataset, beside=datasets)
        picture = surface_figure(dataset, beside=datasets)
        figures.append(Figure(picture, f"**{name}**. {caption}", f"{name}: {caption}"))
    text = f"The same axes and one scale of colors and heights for all. {WHERE[step]}"
    return [Text(text), Gallery(figures), *_missing(surveys, step)]


def _missing(surveys: Sequence[Surveyed], step: str) -> list[Part]:
    names = [one.name for one in surveys if step not in one.datasets]
    if not names:
        return []
    return [Callout("info", f"Without the step `{step}`: {', '.join(names)}.")]


def _settings(surveys: Sequence[Surveyed]) -> Section:
    """Say what the surveys were made with, and where that differs."""
    shown = {
        "directory": [str(one.directory) for one in surveys],
        **{
            name: [_text(getattr(one.plan, name)) for one in surveys]
            for name in (
                "seed",
                "examples",
                "rho",
                "sharpness_method",
                "sharpness_steps",
                "sharpness_samples",
                "surface_points",
                "refine",
                "eigen_products",
                "trace_products",
                "probes",
                "lanczos_steps",
                "threads",
            )
        },
    }
    rows = [
        [name.replace("_", " "), *(row if len(set(row)) == 1 else map(_strong, row))]
        for name, row in shown.items()
    ]
    text = Text(
        "What differs is set in bold. Settings of precision may: more products or "
        "steps come closer to the same quantity. A survey with `--plan` of another "
        "repeats all of them."
    )
    names = [one.name for one in surveys]
    return Section("Settings", [text, Table(["setting", *names], rows)])


def _strong(text: str) -> str:
    return f"**{text}**"


def _text(value: object) -> str:
    return value if isinstance(value, str) else format_number(value)
