"""Sections are plain values that are checked where they are made."""

import pytest

from thalweg.errors import InputError
from thalweg.reporting import Callout, Table


def test_a_ragged_table_is_refused():
    with pytest.raises(InputError, match=r"rows\[1\] has 1 cells, .* has 2 columns"):
        Table(["a", "b"], [[1, 2], [3]])


def test_an_unknown_kind_of_callout_is_refused():
    # The constructor's own check, not the type checker's of the test run.
    callout = object.__new__(Callout)
    object.__setattr__(callout, "kind", "shout")
    with pytest.raises(InputError, match="'verdict', 'warning', 'info', 'error', got"):
        callout.__post_init__()
