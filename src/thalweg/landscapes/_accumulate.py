"""The one weighted mean over batches, for losses, gradients and products alike."""

import torch
from torch import Tensor

from thalweg.errors import DataError


class WeightedMean:
    """Accumulate sum_b w_b v_b / sum_b w_b, or sum_b v_b for `reduction="sum"`.

    The first batch is kept as it came: data of one batch costs no second copy and no
    rounding. A batch of weight zero does not count, whatever its value.

    Args:
        reduction: "mean" or "sum".
        dtype: dtype of the running sum from the second batch on.
    """

    def __init__(self, reduction: str, dtype: torch.dtype = torch.float64) -> None:
        self.reduction, self.dtype = reduction, dtype
        self.weight = 0.0
        self._total: Tensor | None = None
        self._batches = 0

    def add(self, value: Tensor, weight: Tensor | float) -> None:
        """Add the value of one batch; the tensor may be kept and is never changed."""
        factor = 1.0 if self.reduction == "sum" else float(weight)
        if factor == 0:
            return
        self.weight += factor
        self._batches += 1
        if self._total is None:
            self._total, self._first = value, factor
            return
        if self._batches == 2:
            self._total = self._total.to(self.dtype) * self._first
        if value.requires_grad or self._total.requires_grad or value.ndim == 0:
            self._total = self._total + factor * value.to(self.dtype)
        else:
            self._total.add_(value, alpha=factor)

    def result(self) -> Tensor:
        """Return the mean (or sum).

        Raises:
            DataError: Nothing of positive weight was added.
        """
        if self._total is None:
            raise DataError(
                "the total weight of the data is zero: no batch, or `weight=` gave 0 "
                "for each"
            )
        if self._batches == 1 or self.reduction == "sum":
            return self._total
        return self._total / self.weight
