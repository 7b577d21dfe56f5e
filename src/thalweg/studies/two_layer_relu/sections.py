"""What the study shows: the families and their table, spectra, widths and SGD."""

import json

import numpy as np
import xarray

from thalweg.provenance import attributes
from thalweg.reporting import Figure, Section, Table, Text, line_figure
from thalweg.solvable import ReLUTeacherStudent
from thalweg.solvable.two_layer_relu import Family, Growth

FORMAT = 1  # of the families' dataset


def families_dataset(
    land: ReLUTeacherStudent, found: tuple[Family, ...]
) -> xarray.Dataset:
    """Return the families as a labelled dataset (`format` names its version)."""
    numbers = {
        "loss": [f.loss for f in found],
        "count": [f.count for f in found],
        "fraction": [f.fraction for f in found],
        "low": [f.low for f in found],
        "high": [f.high for f in found],
        "smallest_eigenvalue": [f.what.smallest for f in found],
        "largest_eigenvalue": [f.what.largest for f in found],
        "S_min": [f.what.S_min for f in found],
        "orthogonal_norm": [f.what.orthogonal_norm for f in found],
        "nullity": [f.what.nullity for f in found],
        "flat": [f.what.flat for f in found],
        "cubic": [f.what.cubic for f in found],
    }
    texts = {
        "kind": [f.what.kind for f in found],
        "level": [f.what.level for f in found],
        "isotropy": [json.dumps(f.isotropy) for f in found],
    }
    variables: dict[str, tuple[object, object]] = {
        name: ("family", np.array(values)) for name, values in (numbers | texts).items()
    }
    variables["W"] = (
        ("family", "student", "input"),
        np.stack([f.W.numpy() for f in found])
        if found
        else np.empty((0, land.K, land.d)),
    )
    return xarray.Dataset(
        variables, attrs=attributes(format=FORMAT, landscape=land.describe())
    )


def families_section(
    teacher: str, land: ReLUTeacherStudent, found: tuple[Family, ...]
) -> Section:
    """Return the table of families, with their shares against the loss."""
    columns = (
        "Loss", "Starts", "Share, %", "95 % interval, %", "What", "Isotropy", "λ min",
        "λ max", "λ min of S", "Null: flat + cubic",
    )  # fmt: skip
    rows = [
        (
            f.loss,
            f.count,
            100 * f.fraction,
            f"{100 * f.low:.3g} to {100 * f.high:.3g}",
            f"{f.what.level} {f.what.kind}",
            "" if f.isotropy is None else str(f.isotropy),
            f.what.smallest,
            f.what.largest,
            f.what.S_min,
            f"{f.what.nullity}: {f.what.flat} + {f.what.cubic}",
        )
        for f in found
    ]
    table = Table(
        columns,
        rows,
        "Each row is one minimum up to permutations of students and those of teachers "
        "that keep their inner products. Intervals are Wilson's.",
    )
    parts: list[Text | Table | Figure] = [
        Text(
            f"Teacher: {teacher}, M = {land.M}; students: K = {land.K}. The loss is "
            "½ E[(f - g)²] in closed form. The share of starts depends on the "
            "optimizer (batched L-BFGS) and on the scale of the start (1/√d)."
        ),
        table,
    ]
    if found:
        figure = line_figure(
            np.array([f.loss for f in found]),
            {"share of starts": np.array([f.fraction for f in found])},
            bands={"share of starts": np.array([(f.high - f.low) / 2 for f in found])},
            x_label="loss of the family",
            y_label="share of starts",
            markers=True,
        )
        parts.append(Figure(figure, "Share of starts against the loss of the minimum."))
    return Section("Families of minima", tuple(parts))


def spectra_section(land: ReLUTeacherStudent, found: tuple[Family, ...]) -> Section:
    """Return the Hessian spectra of the lowest families."""
    spectra = {}
    for f in found[:5]:
        if float(f.W.norm(dim=1).min()) > 1e-8:
            spectra[f"loss {abs(f.loss):.5f}"] = land.spectrum(f.W).values.numpy()
    text = Text(
        "Eigenvalues of the Hessian in ascending order. In dimension d beyond the span "
        "of the teacher every eigenvalue of S comes d - r more times: as d grows the "
        "bulk is (1/K) Σ δ(eigenvalue of S), and these values are its outliers."
    )
    if not spectra:
        return Section("Spectra", (text,))
    rank = np.arange(1, land.dim + 1, dtype=float)
    figure = line_figure(
        rank, spectra, x_label="rank", y_label="eigenvalue", scale="linear"
    )
    return Section("Spectra", (text, Figure(figure, "One line a family.")))


def growth_section(grown: tuple[tuple[Family, Growth], ...]) -> Section:
    """Return the hierarchy: where one student more leads from the lowest minima."""
    text = Text(
        "A neuron split in two leaves the function as it is and adds the curvature of "
        "the table along the difference of the halves; a new neuron changes the loss "
        "with the given slope. Where one of them is negative the minimum turns into a "
        "saddle, and descents from there end at the losses on the right. Zero is a "
        "loss below 1e-10; the slope is the lowest that a local search found."
    )
    columns = (
        "Loss", "Curvature of a split, lowest", "highest", "Slope of a new neuron",
        "Ways down", "Lowest loss reached", "Highest",
    )  # fmt: skip
    rows = []
    for family, growth in grown:
        reached: tuple[int, float | str, float | str] = (0, "", "")
        if growth.ends is not None:
            losses = growth.ends.loss
            losses = losses.where(losses > 1e-10, 0.0)
            reached = len(losses), float(losses.min()), float(losses.max())
        split = growth.split
        rows.append(
            (
                family.loss,
                float(split.min()),
                float(split.max()),
                growth.birth,
                *reached,
            )
        )
    table = Table(columns, rows, "The lowest strict minima, at one student more.")
    return Section("One student more", (text, table))


def widths_section(widths: xarray.Dataset) -> Section:
    """Return the fraction of spurious ends against the width."""
    lines, bands = {}, {}
    for more, name in ((0, "K = M"), (1, "K = M + 1")):
        part = widths.sel(more=more)
        lines[name] = part["fraction"].values
        bands[name] = ((part["high"] - part["low"]) / 2).values
    figure = line_figure(
        widths["width"].values.astype(float),
        lines,
        bands=bands,
        x_label="width M of the orthonormal teacher",
        y_label="fraction of starts in spurious minima",
        markers=True,
    )
    return Section("Width", (Figure(figure, "Bands are Wilson 95 % half-widths."),))


def sgd_section(sgd: xarray.Dataset) -> Section:
    """Return the losses of SGD over those of the equations."""
    lines, bands = {"equations, d → ∞": sgd["ode"].values}, {}
    for d in sgd["d"].values:
        name = f"SGD, d = {d}"
        runs = sgd["loss"].sel(d=d)
        lines[name] = runs.mean("run").values
        bands[name] = (runs.std("run") / np.sqrt(sgd.sizes["run"])).values
    figure = line_figure(
        sgd["time"].values,
        lines,
        bands=bands,
        x_label="time, steps / d",
        y_label="test loss",
    )
    deviations = sgd["deviation"].mean("run").values
    table = Table(
        ("d", "Mean deviation of overlaps", "times √d"),
        [
            (int(d), float(gap), float(gap * np.sqrt(d)))
            for d, gap in zip(sgd["d"].values, deviations, strict=True)
        ],
    )
    caption = (
        "Means over runs; bands are standard errors. Both start at equal overlaps."
    )
    return Section("One-pass SGD and its equations", (Figure(figure, caption), table))
