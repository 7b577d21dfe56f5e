"""Claims and verdicts."""

import math

import pytest

from thalweg.errors import InputError
from thalweg.studies import Claim, Study, judge


@pytest.mark.parametrize(
    ("measured", "stderr", "bounds", "verdict"),
    [
        (1.0, None, {"at_most": 2.0}, "supported"),
        (2.0, None, {"at_most": 2.0}, "supported"),
        (2.1, None, {"at_most": 2.0}, "contradicted"),
        (1.0, 0.1, {"at_most": 2.0}, "supported"),
        (1.9, 0.1, {"at_most": 2.0}, "not seen at this scale"),
        (2.1, 0.1, {"at_most": 2.0}, "not seen at this scale"),
        (2.3, 0.1, {"at_most": 2.0}, "contradicted"),
        (0.0, 0.1, {"at_least": 0.5}, "contradicted"),
        (0.6, 0.01, {"at_least": 0.5, "at_most": 0.7}, "supported"),
        (math.nan, 0.1, {"at_least": 0.5}, "not seen at this scale"),
        (math.inf, None, {"at_most": 2.0}, "contradicted"),
    ],
)
def test_judge(measured, stderr, bounds, verdict):
    assert judge(measured, stderr, **bounds) == verdict


def test_bad_verdicts_are_refused():
    with pytest.raises(InputError, match="at_most or at_least"):
        judge(1.0)
    claim = Claim("it is so", 1.0, None, "supported")
    object.__setattr__(claim, "verdict", "proved")  # past the run-time type check
    with pytest.raises(InputError, match="'contradicted'.*got 'proved'"):
        claim.__post_init__()


def test_the_table_sets_claims_beside_measurements():
    study = Study((Claim("it is so", 0.5, 0.1, "supported"),))
    section = study.table()
    assert section.parts[0].rows == [("it is so", 0.5, 0.1, "supported")]
    assert study.records()[0]["stderr"] == 0.1
