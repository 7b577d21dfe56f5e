"""The one weighted mean over batches, for losses, gradients and products alike."""

import torch
from torch import Tensor

from thalweg.errors import DataError
from thalweg.landscapes._shards import Shards


class WeightedMean:
    """Accumulate sum_b w_b v_b / sum_b w_b, or sum_b v_b for `reduction="sum"`.

    The first batch is kept as it came: data of one batch costs no second copy and no
    rounding. A batch of weight zero does not count, whatever its value.

    Args:
        reduction: "mean" or "sum".
        dtype: dtype of the running sum from the second batch on.
        shards: The ranks whose sums are added up, if there are several.
    """

    def __init__(
        self,
        reduction: str,
        dtype: torch.dtype = torch.float64,
        shards: Shards | None = None,
    ) -> None:
        self.reduction, self.dtype, self._shards = reduction, dtype, shards
        self.weight = 0.0
        self._total: Tensor | None = None
        self._blank: Tensor | None = None  # what a shard of no weight adds
        self._batches = 0

    def add(self, value: Tensor, weight: Tensor | float) -> None:
        """Add the value of one batch; the tensor may be kept and is never changed."""
        factor = 1.0 if self.reduction == "sum" else float(weight)
        if factor == 0:
            if self._shards is not None and self._blank is None:
                self._blank = torch.zeros_like(value, dtype=self.dtype)
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
        if self._shards is not None:
            return self._over_ranks(self._shards)
        if self._total is None:
            raise _no_weight()
        if self._batches == 1 or self.reduction == "sum":
            return self._total
        return self._total / self.weight

    def _over_ranks(self, shards: Shards) -> Tensor:
        own = self._blank if self._total is None else self._total
        assert own is not None  # a pass gives one batch at least
        if self._batches == 1:
            own = own.to(self.dtype) * self._first
        total, weight = shards.sum(own, self.weight)
        if weight == 0:
            raise _no_weight()
        return total if self.reduction == "sum" else total / weight


def _no_weight() -> DataError:
    return DataError(
        "the total weight of the data is zero: no batch, or `weight=` gave 0 for each"
    )
