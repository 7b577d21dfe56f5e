"""The study of the instruments: every claim holds."""

import pytest


@pytest.mark.parametrize("quick", ["instruments"], indirect=True)
def test_every_claim_is_supported(quick):
    _, study = quick
    failed = [claim for claim in study.claims if claim.verdict != "supported"]
    assert failed == []
    assert study.datasets["errors"]["error"].shape == (len(study.claims), 1)
