"""The one way in which batches add up: a weighted mean or a sum, kept in float64."""

from typing import Literal

import torch
from torch import Tensor

from thalweg.errors import DataError

Reduction = Literal["mean", "sum"]


class Accumulator:
    """Σ_b w_b x_b / Σ_b w_b (`"mean"`) or Σ_b x_b (`"sum"`) over batches b.

    Not the mean of batch means: with batches of 140 and 10 rows that would give each
    of the ten 14 times its weight. A single batch is handed through as it is; more
    are summed in float64.
    """

    def __init__(self, reduction: Reduction = "mean") -> None:
        self.reduction = reduction
        self.weight = 0.0
        self.batches = 0
        self._first: tuple[Tensor, float] | None = None
        self._sum: Tensor | None = None
        self._dtype: torch.dtype | None = None

    def add(self, value: Tensor, weight: float) -> None:
        """Add one batch; `value` is not kept longer than to the next one."""
        self.batches += 1
        self.weight += weight
        if self.batches == 1:
            self._first, self._dtype = (value, weight), value.dtype
            return
        if self._first is not None:
            self._sum = self._scaled(*self._first)
            self._first = None
        assert self._sum is not None
        self._sum.add_(value, alpha=weight if self.reduction == "mean" else 1.0)

    def result(self) -> Tensor:
        """Return the total, in the dtype of the values that were added.

        Raises:
            DataError: Nothing was added, or the total weight is zero.
        """
        if self.batches == 0:
            raise DataError("there is no batch in the data")
        if self.reduction == "mean" and self.weight == 0:
            raise DataError("the total weight of the data is zero")
        if self._first is not None:
            return self._first[0]
        assert self._sum is not None
        total = self._sum / self.weight if self.reduction == "mean" else self._sum
        return total.to(self._dtype)

    def _scaled(self, value: Tensor, weight: float) -> Tensor:
        # A copy: the caller's value must not change when later ones are added.
        copied = value.to(torch.float64, copy=True)
        return copied.mul_(weight) if self.reduction == "mean" else copied
