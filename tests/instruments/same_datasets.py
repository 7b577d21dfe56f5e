"""Equality of results to the bit."""


def same(first, second):
    """Assert that two datasets are equal to the bit, cost apart."""
    a, b = (dict(d.attrs) for d in (first, second))
    assert a.pop("cost") and b.pop("cost")
    assert a == b
    assert list(first.variables) == list(second.variables)
    for name in first.variables:
        one, other = first[name], second[name]
        assert one.dims == other.dims and one.dtype == other.dtype
        assert one.values.tobytes() == other.values.tobytes(), name
