"""The user's loss in its three forms, called on one batch of the model as it stands."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from thalweg.errors import DataError, InputError, LossError
from thalweg.landscapes._trees import leaves

Form = Literal["output", "model", "auto"]
TARGET_KEYS = ("labels", "label", "targets", "target", "y")


@dataclass(frozen=True)
class Objective:
    """A loss on batches.

    Args:
        model: The model.
        loss: Called as `form` says.
        form: "output": loss(output, target); "model": loss(model, batch); "auto":
            model(**batch).loss, or its entry "loss".
        forward: (model, batch) -> output, for batches that are no (inputs, target).
        weight: batch -> what the batch counts; None: its rows, or what torch's
            cross-entropies average over.
    """

    model: nn.Module
    loss: Callable[..., Any] | str
    form: Form
    forward: Callable[[nn.Module, Any], Any] | None = None
    weight: Callable[[Any], Any] | None = None

    def value(self, data: Any, size: int) -> tuple[Tensor, Tensor | float]:
        """Return the loss of a batch and its weight, the model being as it stands."""
        if self.form == "output":
            return self.of_output(self.output(data), data, size)
        if self.form == "model":
            assert callable(self.loss)
            return self._checked(self.loss(self.model, data), data, size)
        result = self.model(**_mapping(data))
        named = isinstance(result, Mapping)
        value = result.get("loss") if named else getattr(result, "loss", None)
        if value is None:
            raise LossError(
                'loss="auto" takes `.loss` of model(**batch), but the result of '
                f"{type(self.model).__name__} has none: does the batch hold labels?"
            )
        return self._checked(value, data, size)

    def output(self, data: Any) -> Any:
        """Return the model's output for a batch.

        Raises:
            LossError: The form of the loss knows no output.
        """
        if self.forward is not None:
            return self.forward(self.model, data)
        if self.form != "output":
            raise LossError(
                "GGN needs a separable loss: loss(output, target), where needed with "
                f"`forward=`; form={self.form!r} shows no output"
            )
        inputs, _ = pair(data)
        if isinstance(inputs, Mapping):
            return self.model(**inputs)
        if isinstance(inputs, tuple | list):
            return self.model(*inputs)
        return self.model(inputs)

    def of_output(
        self, output: Any, data: Any, size: int
    ) -> tuple[Tensor, Tensor | float]:
        """Return the loss of an output and the batch's weight."""
        if self.form != "output":
            raise LossError(
                "GGN needs a separable loss: loss(output, target), where needed with "
                f"`forward=`; form={self.form!r} shows no output"
            )
        assert callable(self.loss)
        target = self.target(data)
        try:
            result = self.loss(output, target)
        except (IndexError, RuntimeError) as error:
            check_labels(output, target, self.loss)
            raise error
        if self.weight is None and isinstance(result, Tensor):
            return scalar(result, size), averaged_over(self.loss, target, size)
        return self._checked(result, data, size)

    def target(self, data: Any) -> Any:
        """Return the target of a batch."""
        return pair(data)[1] if self.forward is None else target_of(data)

    def _checked(
        self, result: Any, data: Any, size: int
    ) -> tuple[Tensor, Tensor | float]:
        weight: Tensor | float = float(size)
        if isinstance(result, tuple) and len(result) == 2:
            result, weight = result
        elif self.weight is not None:
            weight = self.weight(data)
        return scalar(result, size), weight


def resolve_form(loss: Callable[..., Any] | str, form: str | None) -> Form:
    """Return the form of a loss: as given, by its attribute `form`, else "output"."""
    if isinstance(loss, str) and loss != "auto":
        raise InputError(f'loss must be a callable or "auto", got {loss!r}')
    if not callable(loss) and not isinstance(loss, str):
        raise InputError(
            f'loss must be a callable or "auto", got a {type(loss).__name__}'
        )
    if form is None:
        form = "auto" if loss == "auto" else getattr(loss, "form", "output")
    if form not in ("output", "model", "auto"):
        raise InputError(f'form must be "output", "model" or "auto", got {form!r}')
    if (form == "auto") != (loss == "auto"):
        raise InputError(
            f'form={form!r} does not go with loss={loss!r}: "auto" is both'
        )
    return form  # type: ignore[return-value]  # one of the three, checked above


def scalar(value: Any, size: int) -> Tensor:
    """Return a loss as a tensor without axes.

    Raises:
        LossError: It is no real floating scalar tensor.
    """
    if not isinstance(value, Tensor):
        raise LossError(
            f"the loss returned a {type(value).__name__}, not a tensor: without a "
            "graph there is no gradient; drop `.item()` or float()"
        )
    if value.numel() != 1 or (value.ndim and size > 1):
        raise LossError(
            f"the loss returned a tensor of shape {tuple(value.shape)}, expected a "
            'scalar: average over the batch (reduction="mean")'
        )
    if not value.is_floating_point():
        raise LossError(f"the loss is {value.dtype}, expected a real floating dtype")
    return value.reshape(())


def pair(data: Any) -> tuple[Any, Any]:
    """Return (inputs, target) of a batch.

    Raises:
        DataError: The batch is no pair.
    """
    if isinstance(data, tuple | list) and len(data) == 2:
        return data[0], data[1]
    kind = type(data).__name__
    length = f" of {len(data)}" if isinstance(data, tuple | list | Mapping) else ""
    raise DataError(
        f"a loss of form (output, target) needs batches (inputs, target), got a {kind}"
        f'{length}: give `forward=` (model, batch) -> output, or form="model"'
    )


def target_of(data: Any) -> Any:
    """Return the target of any batch: the last item, the labels, or the batch."""
    if isinstance(data, tuple | list):
        return data[-1]
    if isinstance(data, Mapping):
        for key in TARGET_KEYS:
            if key in data:
                return data[key]
    return data


def _mapping(data: Any) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise DataError(
            f'loss="auto" calls model(**batch); the batch is a {type(data).__name__}, '
            "expected a dict"
        )
    return data


def is_classification(loss: object) -> bool:
    """Say whether a loss is one of torch's for integer class labels."""
    known = (nn.CrossEntropyLoss, nn.NLLLoss)
    functions = (nn.functional.cross_entropy, nn.functional.nll_loss)
    return isinstance(loss, known) or loss in functions


def averaged_over(loss: object, target: Any, size: int) -> Tensor | float:
    """Return what the mean of a loss divides by: its rows, if not known better.

    torch's cross-entropies with class labels divide by the summed class weights of the
    labels that are not ignored. No branch on values: it runs under `vmap`.
    """
    if not is_classification(loss) or not isinstance(target, Tensor):
        return float(size)
    reduction = getattr(loss, "reduction", "mean")
    if reduction != "mean" or target.is_floating_point():
        return float(size)
    counted = target != getattr(loss, "ignore_index", -100)
    weight = getattr(loss, "weight", None)
    if weight is None:
        return counted.sum()
    return (weight[torch.where(counted, target, 0)] * counted).sum()


def check_labels(output: Any, target: Any, loss: object) -> None:
    """Raise where integer labels do not fit the number of outputs.

    Raises:
        DataError: The labels found and those possible.
    """
    if not isinstance(output, Tensor) or not isinstance(target, Tensor):
        return
    if target.is_floating_point() or target.is_complex() or output.ndim == 0:
        return
    if target.ndim != output.ndim - 1 or target.numel() == 0:
        return
    classes = output.shape[1] if output.ndim > 1 else output.shape[0]
    counted = target[target != getattr(loss, "ignore_index", -100)]
    if counted.numel() == 0:
        return
    low, high = int(counted.min()), int(counted.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"labels out of range: found {low} to {high}, but the model has {classes} "
            f"outputs, so labels are 0 to {classes - 1}"
        ) from None


def accuracy(output: Tensor, target: Tensor, ignore_index: int = -100) -> Tensor:
    """Return 1.0 where the largest output is the target, else 0.0."""
    counted = target != ignore_index
    hits = output.argmax(1) == target
    if not bool(counted.all()):  # selecting is slow, and mostly nothing is ignored
        hits = hits[counted]
    return hits.to(torch.float64)


def has_accuracy(output: Any, target: Any) -> bool:
    """Say whether accuracy makes sense: class scores against integer labels."""
    return (
        isinstance(output, Tensor)
        and isinstance(target, Tensor)
        and not target.is_floating_point()
        and not target.is_complex()
        and output.ndim >= 2
        and target.ndim == output.ndim - 1
        and output.shape[1] > 1
    )


def first_tensor(output: Any) -> Tensor | None:
    """Return the first tensor of an output."""
    return next(leaves(output), None)
