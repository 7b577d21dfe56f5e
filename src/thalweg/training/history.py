"""What a training run reports: columns by step and by epoch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True, eq=False, repr=False)
class History:
    """Columns of a run, one entry a step or an epoch; NaN where nothing was recorded.

    Attributes:
        steps: `epoch`, `loss` (at the weights before the step), `evaluations` (calls of
            the loss that the optimizer made), `examples`, every schedule, every part of
            a dict loss, and what was logged.
        epochs: Means over the epoch of the losses and of what was logged in its steps,
            weighted by examples (NaN where a step has none), and what `after_epoch`
            hooks logged.
        status: "finished", or "stopped" by `stop`; "running" where a hook looks.
        attributes: Versions, seed, arguments; time in `cost`.
    """

    steps: Mapping[str, np.ndarray]
    epochs: Mapping[str, np.ndarray]
    status: str = "running"
    attributes: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of whole epochs."""
        return len(self.epochs["loss"]) if self.epochs else 0

    def __repr__(self) -> str:
        loss = self.epochs["loss"][-1] if len(self) else float("nan")
        count = len(self.steps["loss"]) if self.steps else 0
        done = f"{len(self)} epochs, {count} steps"
        return f"History({self.status}: {done}, loss {loss:.4g})"

    @property
    def last(self) -> dict[str, float]:
        """The last epoch's record."""
        return {name: float(column[-1]) for name, column in self.epochs.items()}

    def to_dataset(self) -> "xarray.Dataset":
        """Return a Dataset of dims `step`, `epoch`; epoch columns are `epoch_NAME`."""
        import xarray

        variables = {name: ("step", column) for name, column in self.steps.items()}
        variables |= {
            f"epoch_{name}": ("epoch", column) for name, column in self.epochs.items()
        }
        count = len(self.steps["loss"]) if self.steps else 0
        # the step's own column `epoch` would be taken for the coordinate
        if "epoch" in variables:
            variables["epoch_of_step"] = variables.pop("epoch")
        return xarray.Dataset(
            variables,
            coords={"step": np.arange(count), "epoch": np.arange(len(self))},
            attrs={"status": self.status, **self.attributes},
        )


class Columns:
    """Rows of floats kept as columns; a column that begins late is NaN before."""

    def __init__(self) -> None:
        self.rows = 0
        self._columns: dict[str, list[float]] = {}

    def append(self, row: Mapping[str, float]) -> None:
        """Add one row."""
        for name in row:
            self._columns.setdefault(name, [float("nan")] * self.rows)
        for name, column in self._columns.items():
            column.append(float(row.get(name, float("nan"))))
        self.rows += 1

    def tail(self, rows: int) -> dict[str, np.ndarray]:
        """Return the last `rows` rows."""
        start = self.rows - rows
        return {n: np.asarray(c[start:], np.float64) for n, c in self._columns.items()}

    def frozen(self) -> dict[str, np.ndarray]:
        """Return all rows as read-only arrays."""
        columns = self.tail(self.rows)
        for column in columns.values():
            column.flags.writeable = False
        return columns

    def state_dict(self) -> dict[str, list[float]]:
        """Return the columns, for a checkpoint."""
        return self._columns

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        """Take the columns of a checkpoint."""
        self._columns = {name: list(column) for name, column in state.items()}
        self.rows = max((len(c) for c in self._columns.values()), default=0)
