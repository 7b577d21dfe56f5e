"""The summary of a survey: figures with their errors, the verdict, the warnings."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from thalweg.provenance import versions
from thalweg.surveying.archive import Archive
from thalweg.surveying.plan import Plan
from thalweg.surveying.steps import LOCAL, skipped
from thalweg.surveying.verdict import Facts, Verdict, judge

if TYPE_CHECKING:
    import xarray as xr


def summarize(
    datasets: "Mapping[str, xr.Dataset]",
    plan: Plan,
    *,
    name: str,
    landscape: Mapping[str, object],
    notes: tuple[str, ...] = (),
) -> dict[str, object]:
    """Return everything a survey found, as plain values."""
    verdict = _verdict(datasets)
    return {
        "name": name,
        "landscape": dict(landscape),
        "verdict": None
        if verdict is None
        else {
            "kind": verdict.kind,
            "headline": verdict.headline,
            "reasons": list(verdict.reasons),
        },
        "figures": _figures(datasets),
        "notes": list(notes),
        "warnings": [*_saddle(verdict), *plan.notes, *_warnings(datasets)],
        "finite": _finite(datasets),
        "cost": _cost(datasets),
        "seed": plan.seed,
        "versions": versions(),
    }


def read_summary(archive: Archive, plan: Plan) -> dict[str, object]:
    """Return the summary of stored results; name and notes as they were kept."""
    assert archive.directory is not None
    file = archive.directory / "summary.json"
    if file.is_file():
        stored = json.loads(file.read_text())
    else:  # the survey was interrupted
        first = next(iter(archive.datasets.values()))
        stored = {"landscape": json.loads(first.attrs.get("landscape", "{}"))}
    return summarize(
        archive.datasets,
        plan,
        name=stored.get("name", ""),
        landscape=stored["landscape"],
        notes=tuple(stored.get("notes", ())),
    )


def _verdict(datasets: "Mapping[str, xr.Dataset]") -> Verdict | None:
    if "point" not in datasets:
        return None
    point = datasets["point"]
    if not np.isfinite(float(point["loss"])):
        return None
    spectrum = datasets.get("eigenvalues")
    largest = 1.0
    if spectrum is not None:
        largest = float(np.abs([*spectrum["value"].values, spectrum["smallest"]]).max())
    precision = float(point["precision"])
    return judge(
        Facts(
            gradient_norm=float(point["gradient_norm"]),
            gradient_error=_optional(point, "gradient_stderr"),
            scale=largest * max(1.0, float(point["weight_norm"])),
            curvature=None if spectrum is None else float(spectrum["curvature"]),
            floor=100 * precision * largest,
            products=0 if spectrum is None else int(spectrum["products"]),
            decay=float(point["decay"]),
            decay_share=float(point["decay_share"]),
        )
    )


def _saddle(verdict: Verdict | None) -> list[str]:
    if verdict is None or verdict.kind != "saddle":
        return []
    return [
        "This is a saddle, not a minimum: figures that presume a minimum do not hold. "
        "The direction v is kept in directions/descent.safetensors."
    ]


def _optional(dataset: "xr.Dataset", name: str) -> float | None:
    return float(dataset[name]) if name in dataset else None


def _figures(datasets: "Mapping[str, xr.Dataset]") -> dict[str, object]:
    """Return the scalar figures: name -> value, or {value, stderr, products}."""
    figures: dict[str, object] = {}
    if (point := datasets.get("point")) is not None:
        figures |= {str(name): float(point[name]) for name in point.data_vars}
    if (spectrum := datasets.get("eigenvalues")) is not None:
        figures["top_eigenvalues"] = [
            {"value": float(value), "residual": float(residual), "converged": bool(ok)}
            for value, residual, ok in zip(
                spectrum["value"].values,
                spectrum["residual"].values,
                spectrum["converged"].values,
                strict=True,
            )
        ]
        figures["smallest_eigenvalue"] = {
            "value": float(spectrum["smallest"]),
            "residual": float(spectrum["smallest_residual"]),
            "converged": bool(spectrum["smallest_converged"]),
        }
        figures["curvature"] = float(spectrum["curvature"])
    if (trace := datasets.get("trace")) is not None:
        figures["trace"] = {
            "value": float(trace["value"]),
            "stderr": float(trace["stderr"]),
            "converged": bool(trace["converged"]),
            "products": int(trace["products"]),
        }
    if (sharpness := datasets.get("sharpness")) is not None:
        figures["sharpness"] = {
            str(kind): {
                name: float(sharpness[name][i])
                for name in ("value", "stderr", "radius")
            }
            for i, kind in enumerate(sharpness["kind"].values)
        }
    if (locks := datasets.get("sign_locks")) is not None:
        locked = locks["locked_positive"] + locks["locked_negative"]
        figures["sign_locked_neurons"] = int(locked.sum())
    if (paths := datasets.get("paths")) is not None:
        figures["barriers"] = {
            str(pair): float(paths["barrier"][i])
            for i, pair in enumerate(paths["pair"].values)
        }
    if (aligned := datasets.get("aligned")) is not None:
        figures["aligned_barriers"] = {
            str(pair): float(aligned["barrier"][i])
            for i, pair in enumerate(aligned["pair"].values)
        }
    return figures


def _warnings(datasets: "Mapping[str, xr.Dataset]") -> list[str]:
    messages: list[str] = []
    if any(skipped(step, datasets) for step in LOCAL):
        messages.append(
            "The loss or its gradient is not finite at the point: there is no "
            "curvature and no sharpness to measure. What looks around it was done."
        )
    for step, dataset in datasets.items():
        messages += json.loads(dataset.attrs.get("warnings", "[]"))
        # Of a refined surface the points that were evaluated.
        status = dataset.get("point_status", dataset.get("status"))
        if status is None:
            continue
        broken = int((status.values > 0).sum())
        if broken:
            messages.append(
                f"{step}: the loss is not finite at {broken} of "
                f"{status.size} points; they are kept and marked."
            )
    return list(dict.fromkeys(messages))


def _finite(datasets: "Mapping[str, xr.Dataset]") -> bool:
    losses = [
        dataset["loss"].values for dataset in datasets.values() if "loss" in dataset
    ]
    return not losses or any(np.isfinite(values).any() for values in losses)


def _cost(datasets: "Mapping[str, xr.Dataset]") -> dict[str, object]:
    steps = {
        step: json.loads(dataset.attrs["cost"])
        for step, dataset in datasets.items()
        if "cost" in dataset.attrs
    }
    seconds = sum(float(cost["seconds"]) for cost in steps.values())
    return {"seconds": round(seconds, 3), "steps": steps}


def describe(summary: Mapping[str, object], report: Path | None) -> str:
    """Return a summary as a few lines of text."""
    lines: list[str] = []
    verdict = summary["verdict"]
    if isinstance(verdict, Mapping):
        lines.append(str(verdict["headline"]))
        lines += [f"  {reason}" for reason in verdict["reasons"]]
    figures = summary["figures"]
    assert isinstance(figures, Mapping)
    rows = _rows(figures)
    width = max([28, *(len(label) + 2 for label, _ in rows)])
    lines += [f"{label:<{width}}{text}" for label, text in rows]
    noted, warned = summary["notes"], summary["warnings"]
    assert isinstance(noted, list) and isinstance(warned, list)
    lines += [f"note: {message}" for message in noted]
    lines += [f"warning: {message}" for message in warned]
    if report is not None:
        lines.append(f"report: {report}")
    return "\n".join(lines)


def _rows(figures: Mapping[str, object]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name in ("loss", "accuracy", "gradient_norm"):
        if name in figures:
            error = figures.get(f"{name.removesuffix('_norm')}_stderr")
            rows.append((name.replace("_", " "), _pm(figures[name], error)))
    if isinstance(top := figures.get("top_eigenvalues"), list):
        rows.append(("top eigenvalues", ", ".join(f"{t['value']:.4g}" for t in top)))
    if isinstance(low := figures.get("smallest_eigenvalue"), Mapping):
        rows.append(("smallest eigenvalue", _pm(low["value"], low["residual"])))
    if isinstance(trace := figures.get("trace"), Mapping):
        text = _pm(trace["value"], trace["stderr"])
        rows.append(("trace", f"{text} ({trace['products']} products)"))
    if isinstance(sharpness := figures.get("sharpness"), Mapping):
        rows += [
            (f"sharpness {kind}", _pm(row["value"], row["stderr"]))
            for kind, row in sharpness.items()
        ]
    if isinstance(barriers := figures.get("barriers"), Mapping):
        rows += [
            (f"barrier {pair}", f"{value:.4g}") for pair, value in barriers.items()
        ]
    if isinstance(aligned := figures.get("aligned_barriers"), Mapping):
        rows += [
            (f"aligned barrier {pair}", f"{value:.4g}")
            for pair, value in aligned.items()
        ]
    return rows


def _pm(value: object, error: object) -> str:
    text = f"{float(value):.4g}"  # type: ignore[arg-type]  # figures are numbers
    if error is None or not 0 < float(error) < float("inf"):  # type: ignore[arg-type]  # as above
        return text
    return f"{text} ± {float(error):.1g}"  # type: ignore[arg-type]  # as above
