"""The one form of a labeled data set: two tensors, class names, a name."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from thalweg.errors import DataError


@dataclass(frozen=True, eq=False, repr=False)
class LabeledData(Dataset[tuple[Tensor, Tensor]]):
    """Inputs and integer targets, row by row; a map-style torch data set.

    Landscapes, `fit` and a `DataLoader` take it as it is; `data.tensors` is the tuple
    `(inputs, targets)`.

    Args:
        inputs: Floating tensor of shape (n, ...).
        targets: Integer tensor of shape (n,), values in [0, len(classes)).
        classes: Names of the classes.
        name: What results and reports call the data.

    Raises:
        DataError: Empty data, different lengths, labels out of range.
    """

    inputs: Tensor
    targets: Tensor
    classes: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        if self.inputs.ndim < 1 or len(self.inputs) == 0:
            raise DataError(f"{self.name}: the data is empty")
        if self.targets.ndim != 1 or len(self.targets) != len(self.inputs):
            raise DataError(
                f"{self.name}: {len(self.inputs)} inputs need targets of shape "
                f"({len(self.inputs)},), got {tuple(self.targets.shape)}"
            )
        if self.targets.is_floating_point() or self.targets.is_complex():
            raise DataError(
                f"{self.name}: targets must be integers, got {self.targets.dtype}"
            )
        low, high = int(self.targets.min()), int(self.targets.max())
        if low < 0 or high >= len(self.classes):
            raise DataError(
                f"{self.name}: labels must lie in [0, {len(self.classes)}), got "
                f"{low} to {high}"
            )

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """The pair (inputs, targets)."""
        return self.inputs, self.targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int | slice | Tensor) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]

    def __repr__(self) -> str:
        return (
            f"LabeledData({self.name!r}, inputs {tuple(self.inputs.shape)} "
            f"{self.inputs.dtype}, {len(self.classes)} classes)"
        )

    def subset(
        self, indices: Tensor | Sequence[int], *, name: str = ""
    ) -> "LabeledData":
        """Return the rows at `indices`, in that order.

        Args:
            indices: Row numbers.
            name: Name of the part; the data's own by default.
        """
        rows = torch.as_tensor(indices, dtype=torch.long)
        return replace(
            self,
            inputs=self.inputs[rows],
            targets=self.targets[rows],
            name=name or self.name,
        )

    def to(
        self,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "LabeledData":
        """Return the data with inputs of another dtype, or all on another device."""
        return replace(
            self,
            inputs=self.inputs.to(dtype=dtype, device=device),
            targets=self.targets.to(device=device),
        )
