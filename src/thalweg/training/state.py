"""Where a run stands: what a loss, a hook and a schedule may read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from thalweg.seeding import derive

Loss: TypeAlias = Callable[
    [nn.Module, Any, "State"], Tensor | Mapping[str, Tensor | None]
]
Schedule: TypeAlias = Callable[[float], float]
# called after a step or an epoch; may carry `state_dict` and `load_state_dict`
Hook: TypeAlias = Callable[[nn.Module, "State"], None]


@dataclass(eq=False)
class State:
    """Where the run stands. `state["eps"]` is the schedule's value at this step.

    Attributes:
        optimizer: The optimizer.
        epochs: Number of epochs of the whole run.
        steps_per_epoch: Number of batches of an epoch.
        seed: Seed of the run.
        epoch: Current epoch, from 0.
        step: Current step of the whole run, from 0; after the last step of an epoch
            (in `after_epoch` hooks) still that step.
        evaluations: How often the loss was already called in this step; 0 in the first
            call.
        values: The schedules' values at this step.
    """

    optimizer: torch.optim.Optimizer
    epochs: int
    steps_per_epoch: int
    seed: int
    epoch: int = 0
    step: int = 0
    evaluations: int = 0
    values: dict[str, float] = field(default_factory=dict)
    _logged: dict[str, float] = field(default_factory=dict)

    def __getitem__(self, schedule: str) -> float:
        return self.values[schedule]

    @property
    def fraction(self) -> float:
        """Steps done over steps of the whole run, in [0, 1)."""
        return self.step / (self.epochs * self.steps_per_epoch)

    def derive(self, *key: int | str) -> int:
        """Return a seed that belongs to the run's seed, this step and `key`.

        It is the same in every evaluation of the step.
        """
        return derive(self.seed, "state", self.epoch, self.step, *key)

    def log(self, **numbers: float | Tensor) -> None:
        """Record numbers in the row of this step, or of the epoch in its hooks.

        A loss may call it; of several evaluations in one step the first is kept.
        """
        for name, number in numbers.items():
            self._logged[name] = float(number)

    def take_logged(self) -> dict[str, float]:
        """Return what was logged since the last call."""
        logged, self._logged = self._logged, {}
        return logged
