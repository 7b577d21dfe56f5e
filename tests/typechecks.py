"""The run-time type check of the test suite: beartype, an int serving as a float.

`Self` is not checked: beartype knows it in classes that it decorates itself, and here
it is handed their methods one by one.
"""

from typing import Any, Self

from beartype import BeartypeConf, FrozenDict, beartype

checked = beartype(
    conf=BeartypeConf(is_pep484_tower=True, hint_overrides=FrozenDict({Self: Any}))
)
