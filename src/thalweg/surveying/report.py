"""What a survey leaves in its directory: summary, figures, the HTML report."""

from collections.abc import Mapping
from pathlib import Path

from thalweg.provenance import to_json
from thalweg.reporting import save_figure, write_report
from thalweg.surveying.archive import Archive
from thalweg.surveying.plan import Plan
from thalweg.surveying.sections import sections

DRAWN = ("surface", "hessian_surface", "plane", "spectrum", "eigenvalues")


def write_files(
    archive: Archive,
    plan: Plan,
    summary: Mapping[str, object],
    report: str | Path | None = None,
) -> Path | None:
    """Write summary.json, the PNGs and the report; return the report's path."""
    directory = archive.directory
    if directory is None:
        return None
    archive.write("summary.json", to_json(summary, indent=2))
    for name in DRAWN:
        if name in archive.datasets:
            save_figure(archive.datasets[name], directory / f"{name}.png")
    title = str(summary["name"]) or "Survey"
    verdict = summary["verdict"]
    subtitle = str(verdict["headline"]) if isinstance(verdict, Mapping) else ""
    data = {
        "summary": summary,
        "plan": plan.to_json(),
        "datasets": {
            step: dataset.to_dict() for step, dataset in archive.datasets.items()
        },
    }
    return write_report(
        Path(report) if report is not None else directory / "report.html",
        title,
        sections(archive.datasets, plan, summary),
        data,
        subtitle=subtitle,
    )
