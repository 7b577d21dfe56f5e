"""What a study says: claims, each beside a measurement and a verdict."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from thalweg.errors import InputError
from thalweg.reporting import Section, Table

if TYPE_CHECKING:
    import xarray

Verdict: TypeAlias = Literal["supported", "not seen at this scale", "contradicted"]


@dataclass(frozen=True)
class Claim:
    """One claim of a paper and what was measured.

    Args:
        claim: The claim in a sentence, with the number or bound that it names.
        measured: What was measured: a number, or a short text.
        stderr: Standard error of the number; None where it carries none.
        verdict: "supported", "not seen at this scale" or "contradicted".

    Raises:
        InputError: Another verdict.
    """

    claim: str
    measured: float | str
    stderr: float | None
    verdict: Verdict

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict):
            raise InputError(
                f"verdict must be one of {get_args(Verdict)}, got {self.verdict!r}"
            )


@dataclass(frozen=True)
class Study:
    """What a run of a study found.

    Attributes:
        claims: The claims with their verdicts.
        datasets: The numbers behind them, by name.
        sections: What the report shows after the table of claims.
    """

    claims: tuple[Claim, ...]
    datasets: Mapping[str, "xarray.Dataset"] = field(default_factory=dict)
    sections: tuple[Section, ...] = ()

    def table(self) -> Section:
        """Return the section that sets each claim beside its measurement."""
        rows = [(c.claim, c.measured, c.stderr, c.verdict) for c in self.claims]
        columns = ("Claim", "Measured", "Standard error", "Verdict")
        return Section("Claims", (Table(columns, rows),), "claims")

    def records(self) -> list[dict[str, Any]]:
        """Return the claims as plain dictionaries."""
        return [
            {
                "claim": c.claim,
                "measured": c.measured,
                "stderr": c.stderr,
                "verdict": c.verdict,
            }
            for c in self.claims
        ]


def judge(
    measured: float,
    stderr: float | None = None,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    errors: float = 2.0,
) -> Verdict:
    """Return the verdict on `at_least <= value <= at_most` from a measurement of it.

    Supported where the measurement keeps the bounds by `errors` standard errors,
    contradicted where it breaks one by as much, and not seen at this scale between.
    Without a standard error there is no between; a NaN is never a verdict either way.
    """
    if at_most is None and at_least is None:
        raise InputError("judge needs at_most or at_least")
    if measured != measured:
        return "not seen at this scale"
    room = min(
        at_most - measured if at_most is not None else float("inf"),
        measured - at_least if at_least is not None else float("inf"),
    )
    margin = errors * (stderr or 0.0)
    if room >= margin:
        return "supported"
    return "contradicted" if room < -margin else "not seen at this scale"
