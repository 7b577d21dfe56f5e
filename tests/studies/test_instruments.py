"""The study of the instruments: every claim holds."""

from thalweg.studies import list_studies, run_study


def test_every_claim_is_supported():
    study = run_study("instruments", size="quick")
    failed = [claim for claim in study.claims if claim.verdict != "supported"]
    assert failed == []
    assert study.datasets["errors"]["error"].shape == (len(study.claims), 1)


def test_it_is_listed():
    assert "instruments" in [info.name for info in list_studies()]
