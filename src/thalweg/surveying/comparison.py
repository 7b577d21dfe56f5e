"""Several stored surveys on one page, if they may be compared at all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from thalweg.errors import InputError
from thalweg.provenance import to_json
from thalweg.reporting import write_report
from thalweg.surveying.comparability import Surveyed, differences, read_surveys
from thalweg.surveying.comparison_sections import sections


@dataclass(frozen=True)
class Comparison:
    """Surveys side by side.

    Args:
        surveys: In the order given; differences are from the first.
        different: Condition -> its value in each survey, where these are not the same.
        report: Path of the HTML page.
    """

    surveys: tuple[Surveyed, ...]
    different: Mapping[str, tuple[str, ...]]
    report: Path

    def to_json(self) -> str:
        """Return names, figures and what differs as JSON."""
        return to_json(
            {
                "report": str(self.report),
                "different": self.different,
                "figures": {one.name: one.summary["figures"] for one in self.surveys},
            },
            indent=2,
        )


def compare_surveys(
    directories: Sequence[str | Path],
    out: str | Path = "comparison.html",
    *,
    allow_different: bool = False,
) -> Comparison:
    """Write one report with several stored surveys side by side.

    Surfaces have common axes and colors, spectra one axis; loss, curvature and
    sharpness stand in one table with their differences from the first survey, against
    the errors.

    Args:
        directories: Of two surveys or more; the first is what the others are held
            against.
        out: The HTML file to write.
        allow_different: Compare though data, loss or radius differ; the report then
            begins with what does.

    Raises:
        StoreError: A directory holds no survey.
        InputError: Fewer than two directories or one given twice, a survey without a
            finished step, or data, loss or radius differ.
    """
    surveys = read_surveys([Path(directory) for directory in directories])
    different = differences(surveys)
    if different and not allow_different:
        raise InputError(_refusal(surveys, different))
    report = write_report(
        out,
        " – ".join(one.name for one in surveys),
        sections(surveys, different),
        {
            "different": different,
            "surveys": {
                one.name: {
                    "summary": one.summary,
                    "plan": one.plan.to_json(),
                    "datasets": {s: ds.to_dict() for s, ds in one.datasets.items()},
                }
                for one in surveys
            },
        },
        subtitle=f"{len(surveys)} surveys side by side",
    )
    return Comparison(surveys, different, report)


def _refusal(
    surveys: Sequence[Surveyed], different: Mapping[str, tuple[str, ...]]
) -> str:
    names = ", ".join(one.name for one in surveys)
    rows = "; ".join(f"{name}: {' / '.join(row)}" for name, row in different.items())
    return (
        f"the surveys {names} differ in {rows}. Differences of their figures would not "
        "be those of the networks. Survey again under one condition (--plan repeats "
        "the settings of a survey), or see them side by side all the same with "
        "--allow-different"
    )
