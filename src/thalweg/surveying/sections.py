"""The report of a survey as sections, from its stored results alone."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from thalweg import instruments as ti
from thalweg.reporting import (
    Callout,
    Figure,
    Part,
    Quantities,
    Quantity,
    Section,
    Table,
    Text,
    basins_figure,
    eigenvalue_figure,
    layers_figure,
    line_figure,
    merge_tree_figure,
    persistence_figure,
    spectrum_figure,
    surface_caption,
    surface_figure,
)
from thalweg.surveying.plan import Plan
from thalweg.surveying.sign_locks import locks_section

if TYPE_CHECKING:
    import xarray as xr

# What each row of the sharpness table measures.
MEASURES = {
    "zeroth": "max L(θ + e) − L(θ)",
    "first": "ρ · max |∇L(θ + e)|",
    "average": "mean L(θ + e) − L(θ)",
    "zeroth, adaptive": "max L(θ + |θ|e) − L(θ)",
    "average, adaptive": "mean L(θ + |θ|e) − L(θ)",
}
SLICE_NOTE = (
    "Two directions out of {dim:,}: a smooth slice proves nothing about the others."
)
# Basins shallower than this share of the slice's range are not drawn.
RIPPLE = 0.01


# Entries of a landscape's description that need more than their name.
SETTINGS = {
    "dim": "dimension",
    "rows": "examples",
    "data": "fingerprint of the data",
    "parameters": "fingerprint of the parameters",
    "constants": "fingerprint of buffers and constants",
    "form": "form of the loss",
    "seed": "seed of the landscape",
}


def sections(
    datasets: "Mapping[str, xr.Dataset]", plan: Plan, summary: Mapping[str, object]
) -> list[Section]:
    """Return the sections of the report, in the order of reading."""
    dim = _dim(summary)
    builders = {
        "eigenvalues": lambda ds: _curvature(ds, datasets),
        "sharpness": _sharpness,
        "surface": lambda ds: _surface(ds, "Random directions", dim),
        "hessian_surface": lambda ds: _surface(ds, "Top Hessian directions", dim),
        "topology": lambda ds: _topology(ds, datasets),
        "layers": _layers,
        "sign_locks": locks_section,
        "paths": _paths,
        "aligned": lambda ds: _aligned(ds, datasets),
        "plane": lambda ds: _surface(ds, "Plane through the checkpoints", dim),
    }
    result = [_overview(datasets, summary)]
    result += [build(datasets[s]) for s, build in builders.items() if s in datasets]
    if "eigenvalues" not in datasets and "spectrum" in datasets:
        result.append(_curvature(None, datasets))
    return [*result, _settings(plan, summary)]


def _dim(summary: Mapping[str, object]) -> int:
    landscape = summary["landscape"]
    assert isinstance(landscape, Mapping)
    return int(landscape.get("dim", 0))


def cost_of(dataset: "xr.Dataset") -> dict[str, object]:
    """Return a step's cost without the host."""
    cost = json.loads(dataset.attrs.get("cost", "{}"))
    return {k: v for k, v in cost.items() if k not in ("host", "cpu_seconds")}


def _overview(
    datasets: "Mapping[str, xr.Dataset]", summary: Mapping[str, object]
) -> Section:
    parts: list[Part] = []
    verdict = summary["verdict"]
    if isinstance(verdict, Mapping):
        reasons = "\n\n".join(verdict["reasons"])
        parts.append(Callout("verdict", f"**{verdict['headline']}**\n\n{reasons}"))
    tiles: list[Quantity] = []
    if (point := datasets.get("point")) is not None:
        tiles += _point_tiles(point)
    if (spectrum := datasets.get("eigenvalues")) is not None:
        cost = cost_of(spectrum)
        tiles.append(Quantity("Top eigenvalue", float(spectrum["value"][0]), cost=cost))
    if (trace := datasets.get("trace")) is not None:
        tiles.append(_trace_tile(trace))
    if tiles:
        parts.append(Quantities(tiles))
    for kind, entry in (("info", "notes"), ("warning", "warnings")):
        messages = summary[entry]
        assert isinstance(messages, list)
        parts += [Callout(kind, message) for message in messages]  # type: ignore[arg-type]  # both are kinds
    return Section("Overview", parts)


def _point_tiles(point: "xr.Dataset") -> list[Quantity]:
    known = {
        "loss": ("Loss", "loss_stderr"),
        "accuracy": ("Accuracy", "accuracy_stderr"),
        "gradient_norm": ("Gradient norm", None),
        "noise_scale": ("Gradient noise scale", "noise_scale_stderr"),
        "weight_norm": ("Weight norm", None),
    }
    tiles: list[Quantity] = []
    for name, (label, error) in known.items():
        if name not in point:
            continue
        cost = cost_of(point) if not tiles else "in the same step"
        stderr = float(point[error]) if error and error in point else None
        note = ""
        if name == "gradient_norm" and "gradient_stderr" in point:
            note = f"sampling error {float(point['gradient_stderr']):.3g}"
        if name == "noise_scale":
            note = "tr C / ‖g‖², in examples"
        tiles.append(Quantity(label, float(point[name]), stderr, cost=cost, note=note))
    skipped = {
        *known,
        "accuracy_stderr",
        "decay",
        "decay_share",
        "gradient_stderr",
        "loss_stderr",
        "noise_scale_stderr",
        "precision",
    }
    tiles += [
        Quantity(
            str(name).replace("_", " ").capitalize(),
            float(point[name]),
            cost="in the same step",
        )
        for name in point.data_vars
        if name not in skipped
    ]
    return tiles


def _trace_tile(trace: "xr.Dataset") -> Quantity:
    note = trace.attrs.get("method", "")
    if not int(trace["converged"]):
        note += ", stopped before 1 % of twice the standard error"
    value, stderr = float(trace["value"]), float(trace["stderr"])
    return Quantity("Hessian trace", value, stderr, cost=cost_of(trace), note=note)


def _curvature(
    found: "xr.Dataset | None", datasets: "Mapping[str, xr.Dataset]"
) -> Section:
    parts: list[Part] = []
    if found is not None:
        rows: list[list[object]] = [
            [i + 1, float(value), _two_digits(residual), "yes" if ok else "no"]
            for i, (value, residual, ok) in enumerate(
                zip(
                    found["value"].values,
                    found["residual"].values,
                    found["converged"].values,
                    strict=True,
                )
            )
        ]
        rows.append(
            [
                "smallest",
                float(found["smallest"]),
                _two_digits(found["smallest_residual"]),
                "yes" if int(found["smallest_converged"]) else "no",
            ]
        )
        caption = (
            "Eigenvalues of the Hessian by Lanczos with full reorthogonalization. The "
            "residual |Hv − λv| is recomputed and bounds the distance to an "
            f"eigenvalue; of an exactly multiple one, one copy is found. "
            f"{int(found['products'])} products."
        )
        figure = eigenvalue_figure(
            found["value"].values,
            found["residual"].values,
            found["converged"].values.astype(bool),
        )
        parts.append(Figure(figure, "Top eigenvalues; the bars are residuals."))
        parts.append(Table(["", "eigenvalue", "residual", "converged"], rows, caption))
    if (spectrum := datasets.get("spectrum")) is not None:
        caption = (
            "Density of the Hessian's eigenvalues by stochastic Lanczos quadrature, "
            f"{spectrum.attrs['probes']} probes of {spectrum.attrs['steps']} steps."
        )
        known = () if found is None else found["value"].values
        parts.append(Figure(spectrum_figure(spectrum, known), caption))
    return Section("Curvature", parts)


def _two_digits(error: object) -> float:
    return float(f"{float(error):.1e}")  # type: ignore[arg-type]  # a 0-d array


def _sharpness(dataset: "xr.Dataset") -> Section:
    rows = [
        [
            str(kind),
            MEASURES.get(str(kind), ""),
            Quantity("", float(dataset["value"][i]), _error(dataset["stderr"][i])),
            float(dataset["radius"][i]),
            int(dataset["evaluations"][i]),
            str(dataset["note"].values[i]),
        ]
        for i, kind in enumerate(dataset["kind"].values)
    ]
    columns = ["measure", "of", "value", "radius", "evaluations", "note"]
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    caption = (
        "Maxima are over |e| ≤ ρ and are lower bounds; in the mean e is N(0, ρ²/dim), "
        "its mean length is the radius; adaptive e is multiplied entrywise by |θ|. "
        "Values depend on the ball, the norm and the radius, and plain ones change "
        "under a rescaling of layers that leaves the function as it is: compare models "
        "only at equal settings and equal training loss."
    )
    return Section("Sharpness", [Table(columns, rows, caption)])


def _error(value: object) -> float | None:
    number = float(value)  # type: ignore[arg-type]  # a 0-d array
    return number if number > 0 else None


def _surface(dataset: "xr.Dataset", title: str, dim: int) -> Section:
    points = dataset.sizes.get("point", dataset["loss"].size)
    cost = cost_of(dataset)
    text = f"{points:,} points in {cost.get('seconds', 0):.3g} s."
    caption = f"{surface_caption(dataset)} {text} {SLICE_NOTE.format(dim=dim)}"
    return Section(title, [Figure(surface_figure(dataset), caption)])


def _topology(dataset: "xr.Dataset", datasets: "Mapping[str, xr.Dataset]") -> Section:
    parts: list[Part] = []
    for name, label in (
        ("surface", "Random directions"),
        ("hessian_surface", "Top Hessian directions"),
    ):
        pairs = dataset.isel(pair=dataset["surface"].values == name)
        if pairs.sizes["pair"] == 0:
            continue
        if pairs.sizes["pair"] == 1:
            bottom = float(pairs["birth"][0])
            parts.append(Text(f"{label}: one basin, its lowest sample {bottom:.4g}."))
            continue
        caption = (
            f"{label}: {pairs.sizes['pair']} basins of the sampled slice. Each point "
            "is one basin, by the loss where it appears and the loss where it merges "
            "into a deeper one."
        )
        parts.append(Figure(persistence_figure(pairs), caption))
        if "parent" in pairs and name in datasets:
            parts += _basins(label, pairs, datasets[name])
    return Section("Topology of the slices", parts)


def _basins(label: str, pairs: "xr.Dataset", surface: "xr.Dataset") -> list[Part]:
    """Return the merge tree, and the basins that are no ripples on the slice."""
    births, deaths = pairs["birth"].values, pairs["death"].values
    tree = merge_tree_figure(births, deaths, pairs["parent"].values)
    parts: list[Part] = [
        Figure(tree, f"{label}: which basin joins which as the level rises.")
    ]
    if "x1" not in surface.sizes:
        return parts
    values = surface["loss"].values
    finite = values[np.isfinite(values)]
    threshold = RIPPLE * float(np.ptp(finite)) if finite.size else 0.0
    deep = ~(deaths - births <= threshold)
    if deep.sum() < 2:
        return parts
    labels = ti.merge_tree(surface).basins(threshold)
    saddles = pairs["saddle_index"].values[deep]
    figure = basins_figure(
        surface, labels, pairs["birth_index"].values[deep], saddles[saddles >= 0]
    )
    caption = (
        f"{label}: the basins of the slice, minima as circles and the saddles between "
        f"them as crosses. {int((~deep).sum())} basins shallower than {RIPPLE:.0%} of "
        "the range belong to the ones that they flow into. A minimum of this slice "
        "need not be one of the loss."
    )
    return [*parts, Figure(figure, caption)]


def _layers(dataset: "xr.Dataset") -> Section:
    columns = {
        "size": "parameters",
        "weight_norm": "‖w‖",
        "gradient_norm": "‖g‖",
        "top_eigenvalue": "top eigenvalue",
        "relative_flatness": "relative flatness",
    }
    present = [name for name in columns if name in dataset]
    rows = [
        [
            str(layer),
            Quantity(
                "", float(dataset["trace"][i]), _error(dataset["trace_stderr"][i])
            ),
            *[_or_none(dataset[name].values[i].item()) for name in present],
        ]
        for i, layer in enumerate(dataset["layer"].values)
    ]
    unsure = [
        str(layer)
        for layer, done in zip(
            dataset["layer"].values, dataset["converged"].values, strict=True
        )
        if not done
    ]
    note = f"Top eigenvalue not converged: {', '.join(unsure)}." if unsure else ""
    heads = ["layer", "trace", *[columns[name] for name in present]]
    table = Table(heads, rows, note)
    names = [str(layer) for layer in dataset["layer"].values]
    bars = layers_figure(
        names,
        {
            "trace": dataset["trace"].values,
            "top eigenvalue": dataset["top_eigenvalue"].values,
        },
        stderrs={"trace": dataset["trace_stderr"].values},
    )
    figure = Figure(bars, "The diagonal block of the Hessian that belongs to each.")
    return Section("By layer", [figure, table])


def _or_none(value: float) -> float | None:
    return None if value != value else value  # biases have no relative flatness


def _paths(dataset: "xr.Dataset") -> Section:
    columns = {
        "peak": "largest loss",
        "barrier": "barrier",
        "max_end": "over the higher end",
        "mean_end": "over the mean",
        "length": "length",
    }
    present = [name for name in columns if name in dataset]
    pairs = [str(pair) for pair in dataset["pair"].values]
    rows = [
        [pair, *[float(dataset[name][i]) for name in present]]
        for i, pair in enumerate(pairs)
    ]
    caption = (
        "Loss along straight lines between checkpoints. The barrier is the largest "
        "rise over the line between the ends' losses; beside it the rise over the "
        "higher end, and over their mean."
    )
    if any(pair.endswith(", curve") for pair in pairs):
        caption += (
            " A curve is a Bézier curve of one bend between the same ends, trained for "
            "a low mean loss: where it stays low and the line does not, the two "
            "checkpoints lie in one connected valley."
        )
    table = Table(["pair", *[columns[name] for name in present]], rows)
    lines = {pair: dataset["loss"].values[i] for i, pair in enumerate(pairs)}
    curve = line_figure(dataset["t"].values, lines, x_label="t", y_label="loss")
    return Section("Between checkpoints", [Figure(curve, caption), table])


def _aligned(dataset: "xr.Dataset", datasets: "Mapping[str, xr.Dataset]") -> Section:
    before = datasets["paths"]
    rows = [
        [
            str(pair),
            float(before["barrier"].sel(pair=pair)),
            float(dataset["barrier"][i]),
            f"{float(dataset['moved'][i]):.0%}",
            float(dataset["distance_before"][i]),
            float(dataset["distance"][i]),
        ]
        for i, pair in enumerate(dataset["pair"].values)
    ]
    columns = [
        "pair",
        "barrier",
        "barrier, aligned",
        "units moved",
        "distance",
        "distance, aligned",
    ]
    caption = (
        "The units of each network permuted to lie nearest those of the first, by "
        "matching weights: the function stays (outputs differ by "
        f"{float(dataset['error'].max()):.1g} of the largest at most), the line does "
        "not."
    )
    lines = {}
    for i, pair in enumerate(dataset["pair"].values):
        lines[str(pair)] = before["loss"].sel(pair=pair).values
        lines[f"{pair}, aligned"] = dataset["loss"].values[i]
    curve = line_figure(dataset["t"].values, lines, x_label="t", y_label="loss")
    return Section(
        "Between aligned checkpoints", [Figure(curve, caption), Table(columns, rows)]
    )


def _settings(plan: Plan, summary: Mapping[str, object]) -> Section:
    landscape, versions = summary["landscape"], summary["versions"]
    assert isinstance(landscape, Mapping) and isinstance(versions, Mapping)
    rows: list[list[object]] = [
        [
            SETTINGS.get(str(key), str(key).replace("_", " ")),
            json.dumps(value) if isinstance(value, dict | list) else str(value),
        ]
        for key, value in landscape.items()
    ]
    rows += [
        ["examples in each pass", f"{plan.examples:,} of {plan.total:,}"],
        ["budget", f"{plan.budget:.0f} s"],
        ["memory for bases", f"{plan.memory / 1e6:,.0f} MB"],
        ["seed of the survey", plan.seed],
        ["threads", plan.threads],
        *[[name, text] for name, text in versions.items()],
    ]
    cost = summary["cost"]
    assert isinstance(cost, Mapping)
    text = Text(
        f"The steps took {cost['seconds']:.1f} s. The plan, with everything chosen by "
        "timing or memory, is in `plan.json`; `--plan` repeats it to the bit."
    )
    return Section("Settings", [text, Table(["setting", "value"], rows)])
