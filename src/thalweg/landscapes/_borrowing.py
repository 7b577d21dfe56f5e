"""A model lent for evaluation: the seam between a network and its operators.

`NetworkLandscape` adds what is asked of a loss; here is how parameters, buffers, modes
and generators are set for a pass over the data and given back after it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thalweg.errors import InputError, LossError, NondeterministicLossError
from thalweg.landscapes import _examples
from thalweg.landscapes._batches import Batch, Batches
from thalweg.landscapes._objective import Objective, check_labels, is_classification
from thalweg.landscapes._shards import Shards
from thalweg.landscapes._state import (
    Slot,
    current,
    install,
    math_kernels,
    preserved,
    seed_all,
    swapped,
    tensor_slots,
)
from thalweg.landscapes._trees import take_rows
from thalweg.landscapes.base import Landscape
from thalweg.landscapes.batch_norm import has_batch_norm, recalibrate
from thalweg.landscapes.parameters import (
    Parameters,
    Selection,
    Workspace,
    all_names,
    matches,
)


class Borrowing(Landscape):
    """A landscape that borrows a model for each call; base of `NetworkLandscape`."""

    model: nn.Module
    objective: Objective
    mode: str
    buffers: str
    stochastic: str
    seed: int
    reduction: str
    accumulate: torch.dtype
    weight_decay: float
    calibration_batches: int | None
    shards: Shards | None
    _parameter_map: Parameters
    _data: Batches
    _calibration: Batches
    _decay_mask: Tensor | None
    _constants: dict[str, Tensor]
    _constant_slots: dict[str, list[Slot]]
    _buffer_slots: dict[str, list[Slot]]
    _held: dict[str, Tensor]
    _aliases: dict[str, tuple[str, ...]]
    _workspace: Workspace | None
    _prepared: bool
    _rows_checked: bool
    _graph_checked: bool
    _moving: bool
    _gradless: bool

    # The seam that the curvature operators use --------------------------------------

    def _batches(self) -> Iterator[Batch]:
        """Return the batches, the same each time; draws of a fixed model begin anew."""
        if self.stochastic == "fix":
            seed_all(self.seed, "model")
        return iter(self._data)

    def _parameters(self, point: Float[Tensor, " dim"]) -> dict[str, Tensor]:
        """Return the parameters at a point, differentiable in it."""
        return self._parameter_map.split(point)

    def _batch_loss(
        self, parameters: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor | float]:
        """Return loss and weight of a batch; inside `_evaluating`."""
        with swapped(self._parameter_map.slots, parameters):
            return self._weighted(self.objective.value(batch.data, batch.size))

    def _batch_output(self, parameters: Mapping[str, Tensor], batch: Batch) -> Any:
        """Return the model's output for a batch; inside `_evaluating`."""
        with swapped(self._parameter_map.slots, parameters):
            return self.objective.output(batch.data)

    def _output_loss(self, output: Any, batch: Batch) -> tuple[Tensor, Tensor | float]:
        """Return loss and weight of an output alone."""
        result = self.objective.of_output(output, batch.data, batch.size)
        return self._weighted(result)

    def _batch_size(self, batch: Batch) -> int:
        """Return the number of rows of a batch."""
        return batch.size

    def _example(self, batch: Batch, i: int) -> Batch:
        """Return row i as a batch of one."""
        return Batch(take_rows(batch.data, torch.tensor([i])), batch.index, 1)

    def _example_gradients(
        self, point: Tensor, chunk: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (gradients (rows, dim), weights (rows,)) in the order of the data."""
        return _examples.gradients(self, point, chunk)

    @contextmanager
    def _evaluating(
        self, point: Tensor | None = None, *, second_order: bool = False
    ) -> Iterator[None]:
        """Borrow the model: modes, buffers and generators set, all restored after.

        Args:
            point: Where buffers are recalibrated, under that policy.
            second_order: Use kernels that can be differentiated twice.
        """
        self._prepare()
        with (
            preserved(self.model, training=self.mode == "train"),
            math_kernels(second_order),
        ):
            install(self._constant_slots, self._constants, "_parameters")
            self._hang_buffers()
            self._begin(0)
            if point is not None:
                self._settle_buffers(self._parameters(point.detach()))
            yield

    def _batch_slopes(
        self, variables: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor | float, list[Tensor | None]]:
        """Return loss, weight and the gradients in `variables`; inside `_evaluating`.

        The backward pass, too, finds the variables in the model: activation
        checkpointing runs the forward pass again in it.
        """
        with swapped(self._parameter_map.slots, variables):
            value, weight = self._weighted(self.objective.value(batch.data, batch.size))
            return value, weight, self._slopes(value, list(variables.values()))

    def _slopes(self, value: Tensor, variables: list[Tensor]) -> list[Tensor | None]:
        if not value.requires_grad:
            raise LossError(
                "the loss has no graph: it was detached (`.item()`, `.detach()`, "
                "no_grad), or reads weights that are not those of the model it is given"
            )
        slopes: list[Tensor | None] = list(
            torch.autograd.grad(value, variables, allow_unused=True)
        )
        if all(slope is None for slope in slopes):
            raise LossError(
                "the loss depends on none of the selected parameters: a loss of form "
                '"model" must read the weights from the model that it is given'
            )
        return slopes

    def _begin(self, draw: int) -> None:
        if self.stochastic == "fix":
            seed_all(self.seed, "model")
        elif self.stochastic == "average":
            seed_all(self.seed, "model", draw)

    def _weighted(
        self, result: tuple[Tensor, Tensor | float]
    ) -> tuple[Tensor, Tensor | float]:
        value, weight = result
        return value, weight.detach() if isinstance(weight, Tensor) else weight

    # Set-up -------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Evaluate the first batch twice at the origin, before anything else."""
        if self._prepared:
            return
        if self.buffers == "interpolate":
            raise InputError(
                'buffers="interpolate" needs checkpoints with buffers: use '
                "`land.between(state_0, state_1, ...)` with state dicts or modules"
            )
        if self.mode == "train" and self.buffers == "recalibrate":
            raise InputError('buffers="recalibrate" goes with mode="eval"')
        self._prepared = True
        try:
            self._check_in_a_loan()
        except BaseException:
            self._prepared = False
            raise

    def _check_in_a_loan(self) -> None:
        failure = None
        try:
            with self._evaluating():
                self._check_first_batch()
        except Exception as error:
            if self.shards is None:
                raise
            failure = error
        if self.shards is not None:
            self.shards.agree(failure)

    def _shared(self, tensor: Tensor) -> Tensor:
        """Return the tensor of rank 0, where there are several."""
        return tensor if self.shards is None else self.shards.share(tensor)

    def _check_first_batch(self) -> None:
        parameters = self._parameters(self.point())
        with self._without_graph():
            first = self._first_value(parameters, next(self._batches()))
        self._moving = self._buffers_moved()
        if self.stochastic != "raise":
            return
        self._hang_buffers()
        with self._without_graph():
            batch = next(self._batches())
            second = float(self._batch_loss(parameters, batch)[0].detach())
        same = first == second or (first != first and second != second)
        if not same and not abs(first - second) <= 1e-6 * max(1.0, abs(first)):
            raise NondeterministicLossError(self._difference(first, second))

    def _first_value(self, parameters: Mapping[str, Tensor], batch: Batch) -> float:
        form = self.objective.form
        try:
            with swapped(self._parameter_map.slots, parameters):
                value = self._first_call(batch)
        except LossError:
            raise
        except TypeError as error:
            other = (
                'for a loss of (model, batch) give form="model"'
                if form == "output"
                else 'for a loss of (output, target) give form="output"'
            )
            raise LossError(
                f"the first call of the loss (form {form!r}) raised TypeError: "
                f"{error}; {other}"
            ) from error
        if form == "output" and is_classification(self.objective.loss):
            self._check_all_labels(parameters, batch)
        return float(value)

    def _first_call(self, batch: Batch) -> Tensor:
        """Call the loss without autograd at all, or with it where it needs it."""
        try:
            return self.objective.value(batch.data, batch.size)[0]
        except RuntimeError as error:
            # A loss that differentiates inside (an attack, a gradient penalty) cannot
            # run in inference mode; it runs with autograd on, the weights constant.
            if "inference" not in str(error).lower() and "grad" not in str(error):
                raise
            self._gradless = False
            with torch.inference_mode(False), torch.enable_grad():
                return self.objective.value(batch.data, batch.size)[0].detach()

    def _check_all_labels(self, parameters: Mapping[str, Tensor], first: Batch) -> None:
        output = self._batch_output(parameters, first)
        if not isinstance(output, Tensor):
            return
        for batch in self._data:
            target = self.objective.target(batch.data)
            check_labels(output, target, self.objective.loss)

    def _difference(self, first: float, second: float) -> str:
        random = [
            name or type(module).__name__
            for name, module in self.model.named_modules()
            if module.training and not any(module.children())
        ]
        where = f"; modules in train mode: {random[:8]}" if random else ""
        return (
            f"two evaluations of the loss at one point differ: {first:.9g} and "
            f'{second:.9g}{where}. Give stochastic="fix" to fix the draws, or '
            'stochastic="average" with `repeats=`'
        )

    def _without_graph(self) -> Any:
        return torch.inference_mode() if self._gradless else nullcontext()

    def _space(self) -> Workspace:
        if self._workspace is None:
            with torch.inference_mode(False):
                self._workspace = Workspace(self._parameter_map)
        return self._workspace

    def _mask(self, decay: Selection) -> Tensor | None:
        if decay is None:
            return None
        mask = torch.zeros(self.dim, dtype=self.dtype, device=self.device)
        for block in self.layout.blocks:
            slot = self._parameter_map.slots[block.name][0]
            if matches(decay, block.name, slot):
                mask[block.slice] = 1
        if not bool(mask.any()):
            raise InputError(
                f"decay={decay!r} selects no parameter; the first names are "
                f"{list(self.layout.names[:8])}"
            )
        return mask

    def _read_model(self, dtype: torch.dtype | None) -> None:
        """Keep the buffers as they are now; constants stay the model's own tensors."""

        def cast(tensor: Tensor) -> torch.dtype | None:
            return dtype if tensor.is_floating_point() else None

        slots = tensor_slots(self.model, "_parameters")
        self._constant_slots = {
            name: places
            for name, places in slots.items()
            if name not in self._parameter_map.slots
        }
        constants = current(self._constant_slots, "_parameters")
        self._constants = {
            name: tensor.detach().to(self.device, cast(tensor))
            for name, tensor in constants.items()
        }
        self._buffer_slots = tensor_slots(self.model, "_buffers")
        buffers = current(self._buffer_slots, "_buffers")
        self._held = {
            name: tensor.detach().to(self.device, cast(tensor), copy=True)
            for name, tensor in buffers.items()
        }
        names = all_names(self.model)
        self._aliases = self._parameter_map.aliases | {
            name: names[id(tensor)] for name, tensor in (constants | buffers).items()
        }
        self._workspace = None
        self._prepared = self._rows_checked = self._moving = False
        self._graph_checked = False
        self._gradless = True

    def _hang_buffers(self) -> None:
        with torch.inference_mode(False):
            working = {name: held.clone() for name, held in self._held.items()}
        install(self._buffer_slots, working, "_buffers")

    def _buffers_moved(self) -> bool:
        """Say whether a forward pass changed a buffer (train mode, counters)."""
        now_all = current(self._buffer_slots, "_buffers")
        for name, held in self._held.items():
            now = now_all[name]
            if now.shape != held.shape:
                return True
            if not torch.equal(now.nan_to_num(), held.nan_to_num()):
                return True
        return False

    def _settle_buffers(self, parameters: Mapping[str, Tensor]) -> None:
        """Set buffers to those of a new point, as the policy says."""
        if self._moving:
            self._hang_buffers()
        if self.buffers != "recalibrate" or not has_batch_norm(self.model):
            return

        def limited() -> Iterator[Batch]:
            for batch in self._calibration:
                if self.calibration_batches is not None and (
                    batch.index >= self.calibration_batches
                ):
                    return
                yield batch

        with swapped(self._parameter_map.slots, parameters):
            recalibrate(self.model, limited(), self._run)

    def _run(self, batch: Batch) -> None:
        if self.objective.form == "output":
            self.objective.output(batch.data)
        else:
            self.objective.value(batch.data, batch.size)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what the model holds already, and the working buffer."""
        own = current(self._constant_slots, "_parameters")
        copies = {
            name: constant
            for name, constant in self._constants.items()
            if constant.data_ptr() != own[name].data_ptr()
        }
        return self.__dict__ | {"_workspace": None, "_constants": copies}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        own = current(self._constant_slots, "_parameters")
        self._constants = {n: p.detach() for n, p in own.items()} | self._constants
