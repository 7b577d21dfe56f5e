"""Train the few coefficients of a curve or a subspace on minibatches of a landscape."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from thalweg.errors import InputError
from thalweg.execution import Progress, ProgressName, as_progress
from thalweg.landscapes import Landscape, NetworkLandscape
from thalweg.seeding import generator
from thalweg.training import fit

MakeOptimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
BatchSize = int | Literal["auto"] | None
Hook = Callable[[Tensor, int], None]
Display = ProgressName | Progress | None
ROWS = 128
KEEP_EVERY = 100  # steps


class _Coefficients(nn.Module):
    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values)


def minimize(
    start: Tensor,
    objective: Callable[[Tensor, Landscape, int], Tensor],
    pieces: Sequence[Landscape],
    *,
    steps: int,
    rate: float,
    optimizer: MakeOptimizer | None,
    seed: int,
    after_step: Hook | None = None,
    checkpoint: Path | None = None,
    progress: Display = None,
) -> tuple[Tensor, Float[np.ndarray, " steps"]]:
    """Minimize an objective over coefficients, one piece of the data a step.

    The pieces come in a new seeded order each time around; the learning rate falls
    along half a cosine to zero.

    Args:
        start: Coefficients to begin with, of any shape.
        objective: (coefficients, piece, number of the step) -> scalar with a graph.
        pieces: Landscapes of parts of the data.
        steps: How many.
        rate: Learning rate of the default, Adam.
        optimizer: Makes another from the list of parameters; its own rate counts.
        seed: Seed of the order.
        after_step: Called with the coefficients, to change in place, and the number.
        checkpoint: File in which the training is kept, and from which it goes on.
        progress: See `as_progress`.

    Returns:
        The coefficients, and the objective in each step.
    """
    model = _Coefficients(start.clone())
    descent = (
        torch.optim.Adam(model.parameters(), lr=rate)
        if optimizer is None
        else optimizer(list(model.parameters()))
    )
    first = float(descent.param_groups[0]["lr"])
    order: list[int] = []
    while len(order) < steps:
        draws = generator(seed, "pieces", len(order) // len(pieces))
        order += torch.randperm(len(pieces), generator=draws).tolist()

    def loss(model: nn.Module, batch: tuple[Tensor], state: object) -> Tensor:
        assert isinstance(model, _Coefficients)
        step = int(batch[0])
        return objective(model.values, pieces[order[step]], step)

    display = as_progress(progress)

    def hook(model: nn.Module, state: object) -> None:
        assert isinstance(model, _Coefficients)
        if after_step is not None:
            with torch.no_grad():
                after_step(model.values, int(state.step))  # type: ignore[attr-defined]  # of `fit`
        display.advance(1, {})

    display.start(steps, 0)
    try:
        history = fit(
            model,
            loss,
            (torch.arange(steps),),
            descent,
            epochs=1,
            batch_size=1,
            shuffle=False,
            schedules={"lr": lambda done: first * (1 + math.cos(math.pi * done)) / 2},
            after_step=(hook,),
            seed=seed,
            checkpoint=checkpoint,
            checkpoint_every=None if checkpoint is None else KEEP_EVERY,
            resume=checkpoint is not None,
        )
    finally:
        display.close()
    return model.values.detach(), history.steps["loss"]


def linear_model(
    land: Landscape, point: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return L(point), and x -> L + g · (x - point), with L's value and slope there.

    It carries one gradient of the landscape into any coefficients that x depends on.
    """
    value, gradient = land.value_and_gradient(point.detach())

    def model(x: Tensor) -> Tensor:
        return value.to(x) + (gradient * (x - point.detach())).sum()

    return value.detach(), model


def name_of(thing: object) -> str:
    """Return what a plan calls a function: its name, or the text of an object."""
    return str(getattr(thing, "__qualname__", thing))


def cut(land: Landscape, batch_size: BatchSize) -> list[Landscape]:
    """Return the landscapes of minibatches; the whole one where there are none.

    Args:
        land: The landscape.
        batch_size: Rows; "auto" is 128 where the landscape has rows, all where batches
            do not add up to it or the rows are spread over a process group; None takes
            all.

    Raises:
        InputError: It is not positive, or the landscape has no rows.
    """
    if batch_size is None:
        return [land]
    if not isinstance(land, NetworkLandscape):
        if batch_size == "auto":
            return [land]
        raise InputError(
            f"batch_size={batch_size}: this {type(land).__name__} has no rows to take "
            "batches of; leave it out"
        )
    uneven = land.reduction == "sum" and land.weight_decay > 0
    if batch_size == "auto" and (uneven or land.shards is not None):
        return [land]
    if isinstance(batch_size, int) and batch_size < 1:
        raise InputError(
            f"batch_size must be at least 1, None or 'auto', got {batch_size}"
        )
    if uneven:
        raise InputError(
            'batches of a landscape with reduction="sum" and weight decay do not add '
            "up to it: leave batch_size out"
        )
    return [*land.batches(ROWS if batch_size == "auto" else batch_size)]
