"""Sets of units: what ties, blocks, parts and heads leave free to move."""

import pytest

from thalweg.instruments.alignment.units import Units


@pytest.fixture
def units():
    return Units()


def test_tied_axes_are_one_set(units):
    a, b, c = (units.new(6) for _ in range(3))
    units.tie(a, b)
    units.tie(c, b)
    assert units.now(a) == units.now(b) == units.now(c)
    units.fix(c)
    assert units.is_fixed(a)


def test_an_axis_tied_to_repeated_units_moves_in_their_runs(units):
    channels, flat = units.new(4), units.new(12)
    ((index, _),) = channels
    units.tie(flat, ((index, 3),))
    assert units.now(flat) == ((index, 3),)
    # Runs of two and of three entries: runs of six.
    twos = ((units.new(6)[0][0], 2),)
    units.tie(flat, twos)
    ((both, repeat),) = units.now(flat)
    assert repeat == 6 and units.units(both) == 2
    assert units.now(channels) == ((both, 2),) and units.now(twos) == ((both, 6),)


def test_stretches_of_other_lengths_fall_into_common_parts(units):
    a, b = units.new(3) + units.new(5), units.new(4) + units.new(4)
    units.tie(a, b)
    assert units.now(a) == units.now(b)
    assert [units.units(i) for i, _ in units.now(a)] == [3, 1, 4]


def test_a_shifted_axis_ends_in_parts_of_one_order(units):
    a, b = units.new(3), units.new(6)
    units.tie(a + b, b + a)
    assert units.now(a + b) == units.now(b + a)
    assert units.units(units.now(a)[0][0]) == 3


def test_cuts_through_a_unit_fix(units):
    ((index, _),) = units.new(3)
    axis = ((index, 2),)
    part = units.part(axis, 1, 5)
    assert units.is_fixed(part) and units.is_fixed(axis) and units.size(part) == 4
    whole = units.new(4)
    assert units.size(units.part(whole, 1, 4)) == 3 and not units.is_fixed(whole)


def test_blocks(units):
    axis = units.new(12)
    ((index, repeat),) = units.block(axis, 4)
    assert (units.units(index), repeat) == (3, 4)
    assert units.block(axis, 6) == units.now(axis) and units.units(1) == 3
    ((_, repeat),) = units.now(axis)
    assert repeat == 12  # runs of four and of six
    odd = units.new(5)
    units.block(odd, 2)
    assert units.is_fixed(odd)


def test_heads_are_tied_and_coarsened(units):
    q, v = units.new(12), units.new(12)
    units.tie(units.heads(q, 3), units.heads(v, 3))
    (i,), (j,) = units.now(q), units.now(v)
    assert units.heads_of(i[0]) == units.heads_of(j[0])
    assert units.heads_of(i[0])[1] == 3
    # Blocks within a head keep the heads, whole heads become their order.
    ((half, repeat),) = units.block(q, 2)
    assert repeat == 2 and units.heads_of(half) == units.heads_of(j[0])
    ((whole, repeat),) = units.block(q, 4)
    assert repeat == 4 and units.heads_of(whole) is None
    assert whole == units.heads_of(j[0])[0]


def test_heads_that_do_not_fit_are_fixed(units):
    axis = units.new(12)
    units.heads(axis, 3)
    units.heads(axis, 4)
    assert units.is_fixed(axis)
    other = units.new(12)
    heads = units.heads(other, 3)
    units.fix(heads)
    assert units.heads_of(units.now(other)[0][0]) is None and units.is_fixed(other)
