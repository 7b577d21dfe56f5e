"""The one training loop: epochs, schedules, hooks, checkpoints, history."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, reduce
from operator import add
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.errors import (
    CheckpointError,
    InputError,
    LossError,
    NonFiniteLossError,
)
from thalweg.execution import deferred_interrupt
from thalweg.provenance import attributes, to_json
from thalweg.training.batches import Batches, batch_rows, to_device
from thalweg.training.checkpoint import read_checkpoint, write_checkpoint
from thalweg.training.history import Columns, History
from thalweg.training.randomness import SeededGlobals
from thalweg.training.state import Hook, Loss, Schedule, State

_RESERVED = frozenset({"epoch", "loss", "evaluations", "examples"})


def fit(
    model: nn.Module,
    loss: Loss,
    data: Any,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    batch_size: int | None = 64,
    shuffle: bool = True,
    schedules: Mapping[str, Schedule] | None = None,
    before_step: Sequence[Hook] = (),
    after_step: Sequence[Hook] = (),
    after_epoch: Sequence[Hook] = (),
    stop: Callable[[History], bool] | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
) -> History:
    """Train a model in place and return the history; a run is a function of its seed.

    The order of batches is a function of (seed, epoch), and what dropout and
    augmentations draw from the global generators one of (seed, epoch, step): these are
    seeded at each step and put back at the end. A run that is resumed from its
    checkpoint, after Ctrl-C or a kill at any moment, equals an uninterrupted one to the
    bit (on one machine with the same number of threads).

    In each step the optimizer gets a closure that clears the gradients, calls `loss`,
    and back-propagates; it may call it as often as it likes (L-BFGS, SAM). The history
    keeps what the first call, at the weights before the step, gave.

    Args:
        model: Trained in train mode (set at the start of each epoch; a module that must
            stay in eval mode overrides `train`). The modes are put back at the end and
            no gradient is left.
        loss: `loss(model, batch, state)` gives a differentiable scalar tensor, or a
            dict of them that are added up (None is passed over) and recorded by name.
            It must not change anything.
        data: Tensors (a tuple or a mapping; anything with `.tensors`, such as
            `LabeledData`), a map-style data set, or a sized iterable of ready batches
            (a `DataLoader`, a list), which then decides size and order itself, its
            draws from the global generators seeded by the epoch.
        optimizer: Any torch optimizer over the model's parameters.
        epochs: Passes over the data.
        batch_size: Rows of a batch; the last one may be smaller; None for all.
        shuffle: Whether rows come in a new order each epoch.
        schedules: Name -> function of the fraction of steps done, in [0, 1); the value
            is in `state[name]` and in the history. `"lr"` is set in every parameter
            group; no other name is.
        before_step: Hooks called with the final gradients in `.grad`, before the
            weights move (clipping, projection): by `optimizer.prepare` where it has
            one, with the one gradient otherwise, and after each evaluation of L-BFGS.
        after_step: Hooks called after the weights moved.
        after_epoch: Hooks called at the end of an epoch.
        stop: Called with the history after each epoch; true ends the run.
        seed: Seed of everything random.
        checkpoint: A file, written at the end of each epoch, at Ctrl-C, and whole or
            not at all. Model, optimizer, history, and the state of every hook that has
            `state_dict` and `load_state_dict` are in it.
        checkpoint_every: Also write it every so many steps.
        resume: Go on from `checkpoint` where it exists, else begin.

    Raises:
        InputError: Arguments that cannot be used; an optimizer of another model.
        DataError: Empty or one-shot data, tensors of different lengths.
        LossError: The loss is no scalar tensor with a graph.
        NonFiniteLossError: The loss is NaN or infinite; the model keeps the weights
            before that step, the checkpoint the last state that was written.
        CheckpointError: A checkpoint exists and `resume` is false, it cannot be read,
            or it belongs to a run with other arguments or data.

    Examples:
        >>> def squared_error(model, batch, state):
        ...     inputs, targets = batch
        ...     return (model(inputs) - targets).square().mean()
        >>> model = nn.Linear(1, 1)
        >>> x = torch.linspace(-1, 1, 8)[:, None]
        >>> history = fit(
        ...     model,
        ...     squared_error,
        ...     (x, 3 * x),
        ...     torch.optim.SGD(model.parameters(), lr=0.1),
        ...     epochs=50,
        ...     batch_size=4,
        ... )
        >>> round(model.weight.item(), 2), history.status
        (3.0, 'finished')
    """
    if epochs < 1:
        raise InputError(f"epochs must be at least 1, got {epochs}")
    if checkpoint_every is not None and checkpoint_every < 1:
        raise InputError(f"checkpoint_every must be at least 1, got {checkpoint_every}")
    if checkpoint is None and (resume or checkpoint_every is not None):
        raise InputError("resume and checkpoint_every need a checkpoint file")
    schedules = dict(schedules or {})
    if clash := _RESERVED & schedules.keys():
        raise InputError(f"schedules cannot be named {sorted(clash)}")
    _check_optimizer(model, optimizer)
    batches = Batches(data, batch_size, shuffle=shuffle, seed=seed)
    run = _Run(
        model=model,
        loss=loss,
        optimizer=optimizer,
        batches=batches,
        schedules=schedules,
        hooks=(tuple(before_step), tuple(after_step), tuple(after_epoch)),
        stop=stop,
        state=State(optimizer, epochs, batches.per_epoch, seed),
        path=None if checkpoint is None else Path(checkpoint),
        every=checkpoint_every,
    )
    if run.path is not None and run.path.exists():
        if not resume:
            raise CheckpointError(
                f"{run.path} exists: give resume=True to go on with it, or another file"
            )
        run.load(run.path)
    return run.finish()


class _Run:
    """One run: what `fit` was given and how far it is."""

    def __init__(
        self,
        *,
        model: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        batches: Batches,
        schedules: dict[str, Schedule],
        hooks: tuple[tuple[Hook, ...], tuple[Hook, ...], tuple[Hook, ...]],
        stop: Callable[[History], bool] | None,
        state: State,
        path: Path | None,
        every: int | None,
    ) -> None:
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.batches, self.schedules, self.state = batches, schedules, state
        self.before_step, self.after_step, self.after_epoch = hooks
        self.stop, self.path, self.every = stop, path, every
        self.steps, self.epochs = Columns(), Columns()
        self.status, self.seconds, self.saved = "running", 0.0, False
        first = next(model.parameters())
        self.device = first.device
        self.random = SeededGlobals(state.seed, {p.device for p in model.parameters()})

    # --- the run -----------------------------------------------------------------

    def finish(self) -> History:
        """Run all epochs that are left."""
        self.started = time.perf_counter()
        with (
            _restored_modes(self.model, self.optimizer),
            self.random,
            deferred_interrupt() as interrupt,
        ):
            while self.status == "running":
                self.state.epoch = self.epochs.rows
                self.model.train()
                for _ in self.run_steps():
                    due = self.every and self.steps.rows % self.every == 0
                    if due or interrupt.is_set():
                        self.save()
                    if interrupt.is_set():
                        raise KeyboardInterrupt
                self.end_epoch()
                self.save()
                if interrupt.is_set():
                    raise KeyboardInterrupt
        return self.history()

    def run_steps(self) -> Iterator[None]:
        """Do the steps that are left of this epoch, one at a time."""
        state, epoch = self.state, self.state.epoch
        done = self.steps.rows - epoch * self.batches.per_epoch

        def seed(number: int) -> None:
            self.random.reseed("step", epoch, number)

        for number, batch in self.batches.epoch(epoch, done, seed):
            state.step, state.evaluations = epoch * self.batches.per_epoch + number, 0
            self.schedule()
            record = self.step(to_device(batch, self.device))
            self.call(self.after_step)
            record |= {"epoch": epoch, "evaluations": state.evaluations}
            self.steps.append(record | state.values | state.take_logged())
            yield

    def schedule(self) -> None:
        """Set the schedules' values of this step."""
        state = self.state
        for name, function in self.schedules.items():
            value = float(function(state.fraction))
            if not math.isfinite(value):
                raise InputError(
                    f"the schedule {name!r} gave {value} at fraction {state.fraction}"
                )
            state.values[name] = value
        if "lr" in state.values:
            for group in self.optimizer.param_groups:
                group["lr"] = state.values["lr"]

    def step(self, batch: Any) -> dict[str, float]:
        """Let the optimizer do one step; return the record of its first evaluation."""
        state = self.state
        record = {"examples": float(batch_rows(batch))}

        def closure() -> Tensor:
            with torch.enable_grad():
                self.optimizer.zero_grad()
                first = state.take_logged() if state.evaluations else None
                parts = _parts(self.loss(self.model, batch, state))
                total = reduce(add, parts.values())
                _check_graph(total)
                if first is None:
                    value = float(total.detach())
                    if not math.isfinite(value):
                        raise self.non_finite(value)
                    record["loss"] = value
                    if "" not in parts:
                        record.update({k: float(v.detach()) for k, v in parts.items()})
                else:  # what later evaluations log is not that of the weights
                    state.take_logged()
                    state.log(**first)
                state.evaluations += 1
                total.backward()
            return total.detach()

        self.advance(closure)
        return record

    def advance(self, closure: Callable[[], Tensor]) -> None:
        """Step the optimizer, with the hooks that want the final gradient before."""
        if not self.before_step:
            self.optimizer.step(closure)  # type: ignore[arg-type]  # typed as float
        elif hasattr(self.optimizer, "prepare"):
            self.optimizer.prepare(closure)
            self.call(self.before_step)
            self.optimizer.step()
        elif isinstance(self.optimizer, torch.optim.LBFGS):

            def hooked() -> Tensor:
                value = closure()
                self.call(self.before_step)
                return value

            self.optimizer.step(hooked)
        else:
            closure()
            self.call(self.before_step)
            self.optimizer.step()

    def call(self, hooks: Sequence[Hook]) -> None:
        """Call hooks in their order."""
        for hook in hooks:
            hook(self.model, self.state)

    def end_epoch(self) -> None:
        """Record the epoch, call its hooks, see whether the run is over."""
        columns = self.steps.tail(self.batches.per_epoch)
        weights = columns.pop("examples")
        skipped = {"epoch", "evaluations", *self.schedules}
        means = {
            name: float((column * weights).sum() / weights.sum())
            for name, column in columns.items()
            if name not in skipped
        }
        self.random.reseed("epoch", self.state.epoch)
        self.call(self.after_epoch)
        self.epochs.append(means | self.state.take_logged())
        if self.epochs.rows == self.state.epochs:
            self.status = "finished"
        elif self.stop is not None and self.stop(self.history()):
            self.status = "stopped"

    def history(self) -> History:
        """Return the history so far."""
        cost = {"seconds": self.seconds + time.perf_counter() - self.started}
        return History(
            self.steps.frozen(),
            self.epochs.frozen(),
            self.status,
            attributes(seed=self.state.seed, plan=self.plan) | {"cost": to_json(cost)},
        )

    def non_finite(self, value: float) -> NonFiniteLossError:
        """Return the error that says where."""
        state = self.state
        values = "".join(f", {name} = {v:g}" for name, v in state.values.items())
        number = state.step - state.epoch * state.steps_per_epoch
        return NonFiniteLossError(
            f"the loss is {value} in epoch {state.epoch}, step {number}{values}; the "
            "model has the weights before this step"
        )

    # --- checkpoints -------------------------------------------------------------

    @cached_property
    def plan(self) -> dict[str, object]:
        """Return what a resumed run must share with the interrupted one."""
        return {
            "epochs": self.state.epochs,
            "seed": self.state.seed,
            "optimizer": type(self.optimizer).__name__,
            "schedules": sorted(self.schedules),
            "hooks": [type(hook).__name__ for hook in self.stateful()],
            **self.batches.describe(),
        }

    def stateful(self) -> list[Any]:
        """Return the hooks that carry a state, each once, in the order of the calls."""
        every = (*self.before_step, *self.after_step, *self.after_epoch, self.stop)
        unique = {id(hook): hook for hook in every}.values()
        return [h for h in unique if hasattr(h, "state_dict")]

    def save(self) -> None:
        """Write the checkpoint, where there is one."""
        if self.path is None:
            return
        now = time.perf_counter()
        self.seconds, self.started = self.seconds + now - self.started, now
        content = {
            "thalweg": "training",
            "plan": to_json(self.plan),
            "status": self.status,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "hooks": [hook.state_dict() for hook in self.stateful()],
            "steps": self.steps.state_dict(),
            "epochs": self.epochs.state_dict(),
        }
        write_checkpoint(self.path, content, verify=not self.saved)
        self.saved = True

    def load(self, path: Path) -> None:
        """Take up the state of the checkpoint.

        Raises:
            CheckpointError: It belongs to another run, or does not fit the model.
        """
        content = read_checkpoint(path)
        if content["plan"] != to_json(self.plan):
            raise CheckpointError(
                f"{path} belongs to another run: {content['plan']}, this one is "
                f"{to_json(self.plan)}"
            )
        try:
            self.model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path} does not fit: {error}") from None
        for hook, state in zip(self.stateful(), content["hooks"], strict=True):
            hook.load_state_dict(state)
        self.steps.load_state_dict(content["steps"])
        self.epochs.load_state_dict(content["epochs"])
        self.status, self.seconds = content["status"], content["seconds"]


@contextmanager
def _restored_modes(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[None]:
    """Put the modes of all modules back and drop the gradients at the end."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        optimizer.zero_grad(set_to_none=True)
        model.zero_grad(set_to_none=True)


def _check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    own = {id(p) for p in model.parameters()}
    if not own:
        raise InputError("the model has no parameters")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not own & held:
        raise InputError("the optimizer holds no parameter of the model")


def _parts(value: object) -> dict[str, Tensor]:
    """Return the loss by parts; a bare tensor has the empty name."""
    items = value if isinstance(value, Mapping) else {"": value}
    parts: dict[str, Tensor] = {}
    for name, part in items.items():
        if part is None:
            continue
        what = f"the part {name!r} of the loss" if name else "the loss"
        if not isinstance(part, Tensor):
            raise LossError(
                f"{what} must be a tensor with a graph, got {type(part).__name__}"
            )
        if part.ndim:
            raise LossError(
                f"{what} must be a scalar, got shape {tuple(part.shape)}: take its mean"
            )
        parts[name] = part
    if not parts:
        raise LossError("the loss returned a dict without any loss")
    if clash := _RESERVED & parts.keys():
        raise LossError(f"parts of the loss cannot be named {sorted(clash)}")
    return parts


def _check_graph(total: Tensor) -> None:
    if not total.requires_grad:
        raise LossError(
            "the loss has no graph: it does not depend on the model's parameters, or "
            "was computed under no_grad or detached"
        )
