"""Probabilities of locked neurons against closed forms and samples."""

import numpy as np
import pytest

from thalweg.errors import InputError
from thalweg.solvable import relu_topology as rt


@pytest.mark.parametrize("rho", [0.1, 1.0, 4.0])
def test_lock_probability_in_closed_form(rho):
    one = 2 / np.pi * np.arctan(np.sqrt(rho))
    assert rt.lock_probability(1, rho) == pytest.approx(one, rel=1e-12)
    two = 1 - (1 + rho) ** -0.5
    assert rt.lock_probability(2, rho) == pytest.approx(two, rel=1e-12)


def test_lock_probability_against_samples():
    rng = np.random.default_rng(0)
    w1, w2 = rng.standard_normal((40000, 5)), rng.standard_normal((1, 40000))
    kind = rt.invariants(w1, np.sqrt(3) * w2).kind
    p = rt.lock_probability(5, 3.0)
    error = np.sqrt(p * (1 - p) / 40000)
    assert abs(np.mean(kind < 0) - p) < 4 * error


def test_obstruction_probability_in_closed_form_and_by_samples():
    # Both signs are needed: obstructed where all are locked with one sign.
    for neurons in (2, 5):
        found = rt.obstruction_probability(neurons, 0.6, (1, 1))
        assert found == pytest.approx(2 * 0.3**neurons, rel=1e-12)
    draws = np.random.default_rng(1).multinomial(6, [0.3, 0.3, 0.4], 20000)
    short = np.maximum(0, 3 - draws[:, 0]) + np.maximum(0, 2 - draws[:, 1])
    expected = rt.obstruction_probability(6, 0.6, (3, 2))
    error = np.sqrt(expected * (1 - expected) / 20000)
    assert abs(np.mean(short > draws[:, 2]) - expected) < 4 * error


def test_errors_name_what_is_accepted():
    with pytest.raises(InputError, match="d must be at least 1 and rho positive"):
        rt.lock_probability(0, 1.0)
    with pytest.raises(InputError, match="lock in \\[0, 1\\]"):
        rt.obstruction_probability(3, 1.5, (1, 1))
