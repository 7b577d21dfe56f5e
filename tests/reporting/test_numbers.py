"""Numbers as text: rounding, exponents, errors, costs."""

import numpy as np
import pytest

from thalweg.reporting import format_cost, format_number, format_value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0, "0"),
        (7, "7"),
        (1797, "1797"),
        (21738, "21\u202f738"),
        (-12345678, "−12\u202f345\u202f678"),
        (18.23456, "18.23"),
        (-0.0123456, "−0.01235"),
        (0.001, "0.001"),
        (9.99996, "10.00"),
        (99999.6, "1.000 × 10⁵"),
        (12345.6, "12346"),
        (3.1e-4, "3.1 × 10⁻⁴"),
        (-2.5e30, "−2.5 × 10³⁰"),
        (float("nan"), "NaN"),
        (float("inf"), "∞"),
        (-np.inf, "−∞"),
        (np.float32(0.5), "0.5"),
        (np.int64(12), "12"),
        (None, "–"),
        ("", "–"),
        (True, "True"),
        ("filter", "filter"),
    ],
)
def test_format_number(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (145.3, 1.31, "145.3 ± 1.3"),
        (0.0123456, 0.00034, "0.01235 ± 0.00034"),
        (1234567.0, 1200.0, "(1.2346 ± 0.0012) × 10⁶"),
        (13625.0, 17945.0, "(1.4 ± 1.8) × 10⁴"),
        (-3e-6, 6e-4, "(0.0 ± 6.0) × 10⁻⁴"),
        (1437.0, 60.0, "1437 ± 60"),
        (3.1e-4, 1.2e-5, "(3.10 ± 0.12) × 10⁻⁴"),
        (0.0, 0.5, "0.00 ± 0.50"),
        (1e-9, 0.25, "0.00 ± 0.25"),
        (5.0, 0.0, "5 ± 0"),
        (5.0, float("nan"), "5 ± NaN"),
        (float("nan"), 1.0, "NaN ± 1"),
        (5.0, None, "5"),
        ("none", 1.0, "none"),
    ],
)
def test_format_value(value, stderr, text):
    assert format_value(value, stderr) == text


def test_format_cost_names_counts_and_leaves_the_host_to_the_data():
    cost = {"seconds": 1.25, "cpu_seconds": 1.2, "host": "a", "products": 20}
    assert format_cost(cost) == "1.25 s, 20 products"
    assert format_cost({"forward": 1, "backward": 3, "products": 1}) == (
        "1 forward pass, 3 backward passes, 1 product"
    )
    assert format_cost("free") == "free"
    assert format_cost({}) == ""
