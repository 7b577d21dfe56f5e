"""The loss of one example over its input, the network being fixed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thalweg.errors import DataError, InputError, LossError, StructureError
from thalweg.landscapes._batches import rows_per_batch
from thalweg.landscapes._state import (
    current,
    install,
    math_kernels,
    preserved,
    swapped,
    tensor_slots,
)
from thalweg.landscapes.base import Landscape
from thalweg.landscapes.layout import Block, Layout
from thalweg.provenance import fingerprint

LossName = Literal["cross_entropy", "margin"]
Loss = Callable[[Any, Any], Tensor]


class InputLandscape(Landscape):
    """x -> loss(model(x), y) for one example; its points are flattened inputs.

    Many points go through the model in one call, cut into chunks of about 2 MiB of
    input. The model is evaluated in eval mode with its parameters constant, and given
    back as it was. It stands at `x`.

    Args:
        model: A module that takes a batch of inputs.
        x: The input, without batch axis.
        y: Its target; for the named losses the class.
        loss: "cross_entropy"; "margin", the largest other score less that of the class
            (negative where the class is predicted); or a function (output, target) of
            a batch of one, or that gives a batch's values row by row.

    Raises:
        InputError: An unknown loss, or an input that is not real and floating.
        DataError: The class is no class of the model (at the first call).
    """

    def __init__(
        self,
        model: nn.Module,
        x: Float[Tensor, "*shape"],
        y: Tensor | int,
        loss: LossName | Loss = "cross_entropy",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(
                f"model must be a torch module, got {type(model).__name__}"
            )
        if not x.is_floating_point():
            raise InputError(f"x must be real and floating, got {x.dtype}")
        if not callable(loss) and loss not in ("cross_entropy", "margin"):
            raise InputError(
                f'loss must be "cross_entropy", "margin" or a callable, got {loss!r}'
            )
        shape = tuple(x.shape)
        super().__init__(
            x.numel(),
            origin=x.detach().reshape(-1).clone(),
            layout=Layout((Block("x", shape, 0),)),
        )
        self.model, self.shape = model, shape
        self.y = torch.as_tensor(y, device=self.device).detach()
        self.loss_function = loss
        self._chunk = rows_per_batch(x)
        self._fits = False

    @classmethod
    def each(
        cls,
        model: nn.Module,
        xs: Float[Tensor, "rows *shape"],
        ys: Tensor,
        loss: LossName | Loss = "cross_entropy",
    ) -> list[Self]:
        """Return the landscapes of several examples of one model."""
        if len(xs) != len(ys):
            raise StructureError(f"{len(xs)} inputs and {len(ys)} targets")
        if not len(xs):
            raise DataError("xs is empty")
        return [cls(model, x, y, loss) for x, y in zip(xs, ys, strict=True)]

    def loss(self, points: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        """Return the loss at each point; differentiable where `points` are."""
        flat = points.reshape(-1, self.dim)
        if not len(flat):
            return flat.new_empty(points.shape[:-1])
        with self._evaluating(second_order=True):
            values = [self._values(rows) for rows in flat.split(self._chunk)]
        return torch.cat(values).reshape(points.shape[:-1])

    def value_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and gradient at each point, one chunk's activations at a time."""
        flat = points.detach().reshape(-1, self.dim)
        values, gradients = [], []
        with self._evaluating(second_order=False), torch.enable_grad():
            for rows in flat.split(self._chunk):
                rows = rows.clone().requires_grad_()
                value = self._values(rows)
                if not value.requires_grad:
                    raise LossError("the loss has no graph to the input")
                (slope,) = torch.autograd.grad(
                    value.sum(), rows, materialize_grads=True
                )
                values.append(value.detach())
                gradients.append(slope)
        return (
            torch.cat(values).reshape(points.shape[:-1]),
            torch.cat(gradients).reshape(points.shape),
        )

    def output(self, points: Float[Tensor, "*batch dim"]) -> Tensor:
        """Return the model's outputs (*batch, ...) at each point, without a graph."""
        flat = points.detach().reshape(-1, self.dim)
        with self._evaluating(second_order=False), torch.no_grad():
            outputs = [self._output(rows) for rows in flat.split(self._chunk)]
        joined = torch.cat(outputs)
        return joined.reshape(*points.shape[:-1], *joined.shape[1:])

    def describe(self) -> dict[str, object]:
        """Return model, loss and a fingerprint of the example."""
        loss = self.loss_function
        name = (
            loss if isinstance(loss, str) else getattr(loss, "__qualname__", "custom")
        )
        return super().describe() | {
            "model": type(self.model).__name__,
            "loss": name,
            "shape": list(self.shape),
            "data": fingerprint(self.origin, self.y),
            "parameters": fingerprint(dict(self.model.state_dict())),
        }

    def _output(self, rows: Tensor) -> Tensor:
        return self.model(rows.reshape(-1, *self.shape))

    def _values(self, rows: Tensor) -> Tensor:
        output = self._output(rows)
        if isinstance(self.loss_function, str):
            return self._named(output)
        return _by_rows(self.loss_function, output, self.y)

    def _named(self, scores: Tensor) -> Tensor:
        if not self._fits:
            self._check(scores)
            self._fits = True
        target = int(self.y)
        own = scores[:, target]
        if self.loss_function == "cross_entropy":
            return scores.logsumexp(1) - own
        others = torch.cat([scores[:, :target], scores[:, target + 1 :]], dim=1)
        return others.amax(1) - own

    def _check(self, scores: Tensor) -> None:
        if scores.ndim != 2 or scores.shape[1] < 2:
            raise LossError(
                f"loss={self.loss_function!r} needs scores (points, classes), but the "
                f"model returned {tuple(scores.shape)}"
            )
        whole = self.y.numel() == 1 and not self.y.is_floating_point()
        if not whole or not 0 <= int(self.y) < scores.shape[1]:
            raise DataError(
                f"y must be a class from 0 to {scores.shape[1] - 1}, "
                f"got {self.y.tolist()}"
            )

    @contextmanager
    def _evaluating(self, *, second_order: bool) -> Iterator[None]:
        parameters = tensor_slots(self.model, "_parameters")
        buffers = tensor_slots(self.model, "_buffers")
        constants = {
            n: p.detach() for n, p in current(parameters, "_parameters").items()
        }
        working = {
            n: b.detach().clone() for n, b in current(buffers, "_buffers").items()
        }
        with (
            preserved(self.model, training=False),
            swapped(parameters, constants),
            math_kernels(second_order),
        ):
            install(buffers, working, "_buffers")
            yield


def _by_rows(loss: Loss, output: Tensor, target: Tensor) -> Tensor:
    """Return the loss of each row of an output as a batch of one."""

    def row(single: Tensor) -> Tensor:
        value = loss(single[None], target[None])
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise LossError(
                "the loss must return one value a row, got "
                f"{tuple(value.shape) if isinstance(value, Tensor) else value!r}"
            )
        return value.reshape(())

    try:
        return torch.func.vmap(row)(output)
    except LossError:
        raise
    except (RuntimeError, NotImplementedError):
        return torch.stack([row(single) for single in output])
