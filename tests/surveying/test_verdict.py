"""What gradient and curvature allow to be said."""

from dataclasses import replace

from thalweg.surveying.verdict import Facts, judge

STATIONARY = Facts(
    gradient_norm=0.01,
    gradient_error=0.02,
    scale=1.0,
    curvature=0.1,
    floor=1e-6,
    products=57,
    decay=-0.1,
    decay_share=0.1,
)


def test_no_negative_curvature_is_no_proof():
    verdict = judge(STATIONARY)
    assert verdict.kind == "no negative curvature found"
    assert "57 products" in verdict.headline
    assert any("not a proof" in reason for reason in verdict.reasons)


def test_negative_curvature_at_a_stationary_point_is_a_saddle():
    verdict = judge(replace(STATIONARY, curvature=-0.1))
    assert verdict.kind == "saddle"
    assert any("vᵀHv = −0.1" in reason for reason in verdict.reasons)


def test_curvature_within_rounding_is_no_evidence():
    assert judge(replace(STATIONARY, curvature=-1e-7)).kind != "saddle"


def test_a_large_gradient_is_not_stationary_whatever_the_curvature():
    for curvature in (-1.0, 1.0, None):
        facts = replace(STATIONARY, gradient_norm=1.0, curvature=curvature)
        verdict = judge(facts)
        assert verdict.kind == "not stationary"
        assert "50 times its sampling error" in verdict.reasons[0]


def test_weight_decay_is_named_where_it_explains_the_gradient():
    facts = replace(STATIONARY, gradient_norm=1.0, decay=5e-4, decay_share=0.97)
    text = " ".join(judge(facts).reasons)
    assert "97%" in text and "--weight-decay 0.0005" in text
    # A gradient along +θ is no decay: its fitted coefficient is negative.
    text = " ".join(judge(replace(facts, decay=-5e-4)).reasons)
    assert "--weight-decay" not in text


def test_weight_decay_is_named_at_a_saddle_of_the_loss_without_it():
    facts = replace(STATIONARY, curvature=-0.1, decay=0.01, decay_share=0.99)
    verdict = judge(facts)
    assert verdict.kind == "saddle"
    assert "--weight-decay 0.01" in " ".join(verdict.reasons)
    # Where nothing speaks against a minimum there is nothing to explain.
    text = " ".join(judge(replace(facts, curvature=0.1)).reasons)
    assert "--weight-decay" not in text


def test_without_examples_the_gradient_is_held_against_its_scale():
    facts = replace(STATIONARY, gradient_error=None, scale=10.0)
    assert judge(replace(facts, gradient_norm=1e-6)).kind != "not stationary"
    assert judge(replace(facts, gradient_norm=1e-4)).kind == "not stationary"


def test_curvature_not_looked_at_is_said():
    verdict = judge(replace(STATIONARY, curvature=None))
    assert "not looked at" in verdict.headline
