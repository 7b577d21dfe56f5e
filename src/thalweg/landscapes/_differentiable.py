"""The loss of a network as a function that autograd and torch.func differentiate."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from thalweg.errors import InputError, LossError
from thalweg.landscapes._accumulate import WeightedMean
from thalweg.landscapes.curvature.graphs import (
    NoSecondDerivative,
    recomputation_refused,
)

if TYPE_CHECKING:
    from thalweg.landscapes.network import NetworkLandscape


def differentiated(points: Tensor) -> bool:
    """Return whether a graph is wanted: points require gradients or are transformed."""
    return _transformed(points) or (points.requires_grad and torch.is_grad_enabled())


def loss_with_graph(land: "NetworkLandscape", points: Tensor) -> Tensor:
    """Return the loss at each point with a graph over the points.

    Raises:
        InputError: vmap over points whose buffers are recalibrated.
        LossError: The model checkpoints its activations, or the rows are spread over
            processes.
    """
    if land.shards is not None:
        raise LossError(
            "the loss over a process group has no graph: use `value_and_gradient`, "
            "`gradient` or `hessian`"
        )
    if not _transformed(points):  # torch.func refuses checkpointing by itself
        _refuse_recomputation(land)
    values = [_with_graph(land, point) for point in points.reshape(-1, land.dim)]
    return land._stacked(values, points).reshape(points.shape[:-1])


def _with_graph(land: "NetworkLandscape", point: Tensor) -> Tensor:
    plain = _plain(point)
    if plain.ndim == 1:
        center: Tensor | None = plain
    elif land.buffers != "recalibrate":
        center = None  # under vmap no point needs buffers of its own
    else:
        raise InputError(
            'buffers="recalibrate" runs the data through the model at each '
            "point, which vmap cannot: evaluate points (n, dim) without vmap"
        )
    with land._evaluating(center, second_order=True):
        draws = []
        for draw in range(land.repeats):
            mean = WeightedMean(land.reduction, land.accumulate)
            land._begin(draw)
            for batch in land._data:
                mean.add(*land._batch_loss(land._parameters(point), batch))
            draws.append(mean.result().to(land.accumulate))
        return torch.stack(draws).mean() + land._decay(point)


def _refuse_recomputation(land: "NetworkLandscape") -> None:
    """Raise where the backward pass runs the model again, once its loan has ended.

    It would then be run at the model's own weights: the slope would be wrong.
    """
    if land._graph_checked:
        return
    try:
        with land._evaluating(second_order=True), torch.enable_grad():
            leaf = land.point().clone().requires_grad_()
            batch = next(land._batches())
            value, _ = land._batch_loss(land._parameters(leaf), batch)
            if not value.requires_grad:
                return
            with recomputation_refused():
                torch.autograd.grad(value, leaf, allow_unused=True)
    except NoSecondDerivative as error:
        raise LossError(
            f"{error}; for the gradient use `value_and_gradient` or `gradient`, which "
            "keep the weights in place until the backward pass has ended"
        ) from error
    land._graph_checked = True


def _transformed(points: Tensor) -> bool:
    return torch._C._functorch.is_functorch_wrapped_tensor(points)


def _plain(point: Tensor) -> Tensor:
    """Return the values under any torch.func transforms."""
    while torch._C._functorch.is_functorch_wrapped_tensor(point):
        point = torch._C._functorch.get_unwrapped(point)
    return point.detach()
