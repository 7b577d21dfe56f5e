"""The run-time type check of the test suite: beartype, an int serving as a float."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
