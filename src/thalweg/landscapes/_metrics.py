"""Loss and metrics of a point from one forward pass."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from thalweg.errors import InputError
from thalweg.landscapes._batches import Batch
from thalweg.landscapes._objective import Objective, accuracy, has_accuracy
from thalweg.landscapes._shards import Shards


@dataclass(frozen=True)
class Totals:
    """What one point gave: the loss of each draw, and the metrics by name."""

    draws: Tensor
    metrics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def failed(cls, names: tuple[str, ...]) -> "Totals":
        """Return the totals of a point whose evaluation raised: NaN throughout."""
        nan = float("nan")
        return cls(torch.tensor([nan], dtype=torch.float64), dict.fromkeys(names, nan))

    @property
    def loss(self) -> Tensor:
        """The mean over draws."""
        return self.draws[0] if len(self.draws) == 1 else self.draws.mean()

    def named(self) -> dict[str, float]:
        """Return "loss", the metrics, and "loss_stderr" where there are draws."""
        result = {"loss": float(self.loss)} | self.metrics
        if len(self.draws) > 1:
            spread = self.draws.std() / len(self.draws) ** 0.5
            result["loss_stderr"] = float(spread)
        return result


class Metrics:
    """The metrics of a landscape.

    Args:
        metrics: Name -> function of (output, target), or of (model, batch) where the
            loss has another form; "auto": accuracy for integer targets; None: none.
        objective: The loss they go with.

    Raises:
        InputError: A name is taken, or a metric cannot be called.
    """

    def __init__(
        self,
        metrics: Mapping[str, Callable[..., Any]] | str | None,
        objective: Objective,
    ) -> None:
        self.objective = objective
        self.auto = metrics == "auto"
        if isinstance(metrics, str) and not self.auto:
            raise InputError(f'metrics must be a mapping, "auto" or None: {metrics!r}')
        self.functions: dict[str, Callable[..., Any]] = (
            dict(metrics) if isinstance(metrics, Mapping) else {}
        )
        for name, function in self.functions.items():
            if name in ("loss", "loss_stderr", "status") or not callable(function):
                raise InputError(
                    f"metrics[{name!r}] must be callable and not be named loss, "
                    "loss_stderr or status"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Names known before the first evaluation."""
        return tuple(self.functions)

    def start(self) -> "Gathered":
        """Return an empty sum over batches."""
        return Gathered(self)


class Gathered:
    """Running sums of the metrics; `add` also gives the batch's loss and weight."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}

    def add(self, batch: Batch) -> tuple[Tensor, Tensor | float]:
        """Run the model on a batch once; return loss and weight."""
        objective = self._metrics.objective
        if objective.form != "output":
            for name, function in self._metrics.functions.items():
                self._count(name, function(objective.model, batch.data), batch.size)
            return objective.value(batch.data, batch.size)
        output = objective.output(batch.data)
        target = objective.target(batch.data)
        if self._metrics.auto and has_accuracy(output, target):
            ignored = getattr(objective.loss, "ignore_index", -100)
            self._count("accuracy", accuracy(output, target, ignored), batch.size)
        for name, function in self._metrics.functions.items():
            self._count(name, function(output, target), batch.size)
        return objective.of_output(output, batch.data, batch.size)

    def result(self, shards: Shards | None = None) -> dict[str, float]:
        """Return the mean of each metric over all its values, on all ranks."""
        names = list(self._sums)
        table = torch.tensor(
            [[self._sums[name], self._counts[name]] for name in names],
            dtype=torch.float64,
        ).reshape(-1, 2)
        if shards is not None:
            table, _ = shards.sum(table)
        means = (table[:, 0] / table[:, 1]).tolist()  # no value at all gives NaN
        return dict(zip(names, means, strict=True))

    def _count(self, name: str, values: Any, rows: int) -> None:
        if isinstance(values, Tensor) and values.ndim:
            total, count = float(values.sum(dtype=torch.float64)), values.numel()
        else:
            total, count = float(values) * rows, rows
        self._sums[name] = self._sums.get(name, 0.0) + total
        self._counts[name] = self._counts.get(name, 0.0) + count
