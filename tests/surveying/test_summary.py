"""The summary as text: what a terminal shows."""

from thalweg.surveying.summary import describe


def test_long_labels_stay_apart_from_their_values():
    pair = "a checkpoint with a long name – another one, curve"
    summary = {
        "verdict": None,
        "figures": {"loss": 1.5, "barriers": {pair: 0.25}},
        "notes": ["n"],
        "warnings": ["w"],
    }
    first, second, *rest = describe(summary, None).splitlines()
    assert second == f"barrier {pair}  0.25"
    assert first.split() == ["loss", "1.5"] and first.index("1.5") == len(pair) + 10
    assert rest == ["note: n", "warning: w"]
