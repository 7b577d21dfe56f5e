"""The loss of a network on data, over its parameters."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thalweg.errors import InputError
from thalweg.landscapes import _examples
from thalweg.landscapes._accumulate import WeightedMean
from thalweg.landscapes._batches import Batch, Batches
from thalweg.landscapes._borrowing import Borrowing
from thalweg.landscapes._differentiable import differentiated, loss_with_graph
from thalweg.landscapes._half_precision import kept_share, warn_of_lost_step
from thalweg.landscapes._metrics import Metrics, Totals
from thalweg.landscapes._objective import Objective, resolve_form
from thalweg.landscapes._shards import join
from thalweg.landscapes._state import install
from thalweg.landscapes.between import BetweenLandscape
from thalweg.landscapes.curvature import CurvatureMethods
from thalweg.landscapes.parameters import (
    Parameters,
    Selection,
    Workspace,
    match_state,
)
from thalweg.provenance import fingerprint

BUFFERS = ("freeze", "recalibrate", "interpolate")


class NetworkLandscape(CurvatureMethods, Borrowing):
    """L(theta) = sum_b w_b L_b(theta) / sum_b w_b + (lambda / 2) |theta|^2.

    L_b is the loss of batch b, w_b its weight (its rows, or what torch's own
    cross-entropies average over, unless `weight` says otherwise), lambda the weight
    decay. It stands at the model's parameters of the time it is made; the model itself
    is borrowed for each call and given back bit for bit (parameters, buffers, `.grad`,
    `requires_grad`, the mode of each submodule, random generators), also after an
    exception or an interrupt. Unselected and frozen parameters are constants.

    Args:
        model: A module, evaluated in eval mode.
        loss: (output, target) -> scalar; with `form="model"` (model, batch) -> scalar,
            which must read the weights from the model it is given; "auto" takes
            model(**batch).loss. May return (value, weight).
        data: Tuple of tensors (inputs, targets), Dataset, DataLoader, list of batches,
            or a function that returns an iterable of batches.
        form: "output", "model" or "auto"; by default the loss's attribute `form`, else
            "output". Nothing is inferred from signatures.
        forward: (model, batch) -> output, lets an (output, target) loss work with any
            batch.
        metrics: Name -> (output, target) -> (n,) values, or (model, batch) where the
            loss has that form; "auto" is accuracy for integer targets.
        include: Shell patterns on parameter names or a predicate
            (name, parameter, owner module) -> bool.
        exclude: Likewise, taken away again.
        buffers: "freeze" holds them at the values of the time of making;
            "recalibrate" finds batch-norm statistics anew at each point, by one
            more forward pass over the calibration data; "interpolate" belongs to
            `between`. Derivatives hold the buffers found at the point constant.
        calibration_data: Data of that pass; the loss's by default.
        calibration_batches: At most so many batches of it.
        mode: "eval", or explicitly "train".
        reduction: "mean" weights batches as above; "sum" adds their losses.
        weight: Batch -> what it counts, where the loss does not average over rows
            (tokens, class weights). Known of nn.CrossEntropyLoss, nn.NLLLoss and their
            functions: the class weights, summed over the labels not ignored.
        weight_decay: lambda; enters loss, gradient and Hessian, nothing else.
        decay: Names (patterns or predicate) that decay; all by default.
        stochastic: "raise" where two evaluations differ, "fix" the random generators
            at each evaluation, or "average" over `repeats` fixed draws.
        repeats: Draws of "average".
        on_error: "raise", or "record": a point whose evaluation raises is NaN, its
            message in `failures`.
        max_batches: Use the first so many batches.
        subsample: Use so many rows, the same at all points.
        seed: Seed of the rows and of a stochastic model.
        materialize: Keep the batches; "auto" below 256 MiB.
        device: Where to evaluate; the parameters' device by default.
        dtype: Real dtype to evaluate in; the parameters' by default.
        accumulate: dtype of sums over batches, and of the loss returned.
        process_group: "world", or a group of `torch.distributed`: `data` are the rows
            of this rank, and everything is that of all rows, identical on every rank.
            Then making it and each of its methods are collective; points and vectors
            are those of rank 0. A product costs one all-reduce of dim + 1 numbers.
            With nccl, call `torch.cuda.set_device` first.

    Raises:
        InputError: An option is not one of those accepted, or selects nothing.
        DataError: Empty, one-shot or unreadable data.
        StructureError: The ranks hold different models.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Any] | str,
        data: Any,
        *,
        form: Literal["output", "model", "auto"] | None = None,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        metrics: Mapping[str, Callable[..., Any]] | Literal["auto"] | None = "auto",
        include: Selection = None,
        exclude: Selection = None,
        buffers: Literal["freeze", "recalibrate", "interpolate"] = "freeze",
        calibration_data: Any = None,
        calibration_batches: int | None = None,
        mode: Literal["eval", "train"] = "eval",
        reduction: Literal["mean", "sum"] = "mean",
        weight: Callable[[Any], Any] | None = None,
        weight_decay: float = 0.0,
        decay: Selection = None,
        stochastic: Literal["raise", "fix", "average"] = "raise",
        repeats: int = 1,
        on_error: Literal["raise", "record"] = "raise",
        max_batches: int | None = None,
        subsample: int | None = None,
        seed: int = 0,
        materialize: bool | Literal["auto"] = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        accumulate: torch.dtype = torch.float64,
        process_group: Any = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(
                f"model must be a torch module, got {type(model).__name__}"
            )
        if any(isinstance(part, torch.jit.ScriptModule) for part in model.modules()):
            raise InputError(
                "model must be an eager module: the parameters of a TorchScript module "
                "cannot be replaced; give the module that it was made from"
            )
        _one_of("buffers", buffers, BUFFERS)
        _one_of("mode", mode, ("eval", "train"))
        _one_of("reduction", reduction, ("mean", "sum"))
        _one_of("stochastic", stochastic, ("raise", "fix", "average"))
        _one_of("on_error", on_error, ("raise", "record"))
        if repeats < 1 or (repeats > 1 and stochastic != "average"):
            raise InputError(
                'repeats must be at least 1, and above 1 goes with stochastic="average"'
                f", got {repeats} with {stochastic!r}"
            )
        if not weight_decay >= 0:
            raise InputError(f"weight_decay must not be negative, got {weight_decay}")
        place = None if device is None else torch.device(device)
        self._parameter_map = Parameters(
            model, include, exclude, dtype=dtype, device=place
        )
        super().__init__(
            self._parameter_map.layout.dim,
            origin=self._parameter_map.read(),
            layout=self._parameter_map.layout,
        )
        self.model, self.data = model, data
        self.objective = Objective(
            model, loss, resolve_form(loss, form), forward, weight
        )
        self._metrics = Metrics(metrics, self.objective)
        self.buffers, self.mode, self.reduction = buffers, mode, reduction
        self.calibration_batches = calibration_batches
        self.weight_decay = float(weight_decay)
        self.stochastic, self.repeats = stochastic, repeats
        self.on_error, self.seed, self.accumulate = on_error, seed, accumulate
        self.failures: list[str] = []
        self.training_modules = tuple(
            name or type(model).__name__
            for name, m in model.named_modules()
            if m.training
        )
        self._data = Batches(
            data,
            device=self.device,
            dtype=dtype,
            max_batches=max_batches,
            subsample=subsample,
            seed=seed,
            materialize=materialize,
        )
        self._calibration = self._data
        if calibration_data is not None:
            self._calibration = Batches(
                calibration_data, device=self.device, dtype=dtype, seed=seed
            )
        self._decay_mask = self._mask(decay) if weight_decay else None
        self._read_model(dtype)
        self.shards = join(self, process_group)

    # What is evaluated --------------------------------------------------------------

    def loss(self, points: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        """Return the loss at each point, in the dtype of accumulation.

        Points are evaluated in place, one after the other, without a graph. Where
        `points` require gradients (or torch.func transforms them) the result has a
        graph, which holds the activations of all batches: `value_and_gradient` needs
        those of one batch only.

        Raises:
            LossError: A graph is asked for, and the model checkpoints its activations.
        """
        if differentiated(points):
            return loss_with_graph(self, points)
        values = [total.loss for total in self._totals(points, metrics=False)]
        return self._stacked(values, points).reshape(points.shape[:-1])

    def value_and_gradient(
        self, points: Float[Tensor, "*batch dim"]
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch dim"]]:
        """Return loss and gradient at each point from one pass per point."""
        values, gradients = [], []
        with self._evaluating():
            space = self._space()
            for point in self._rows(points):
                space.write(point)
                self._settle_buffers(space.tensors)
                value, gradient = self._value_and_gradient(point, space)
                values.append(value)
                gradients.append(gradient)
        stacked = torch.stack(gradients) if gradients else points.new_empty(0, self.dim)
        return (
            self._stacked(values, points).reshape(points.shape[:-1]),
            stacked.reshape(points.shape),
        )

    def evaluate(self, point: Float[Tensor, " dim"] | None = None) -> dict[str, float]:
        """Return loss and metrics at a point from one forward pass.

        Keys are "loss", then the metrics, and "loss_stderr" over the draws of a model
        averaged over its randomness.
        """
        (found,) = self.evaluate_each([self.point(point)])
        return found

    def evaluate_each(
        self, points: Iterable[Float[Tensor, " dim"]]
    ) -> list[dict[str, float]]:
        """Return loss and metrics at each point; the model is borrowed once for all.

        The points may come from a generator: one is held at a time.
        """
        return [total.named() for total in self._totals(points, metrics=True)]

    def metrics(self, point: Float[Tensor, " dim"] | None = None) -> dict[str, float]:
        """Return the metrics at a point, each the mean over all its values."""
        result = self.evaluate(point)
        return {n: v for n, v in result.items() if n not in ("loss", "loss_stderr")}

    def example_losses(
        self, point: Float[Tensor, " dim"] | None = None
    ) -> Float[Tensor, " rows"]:
        """Return the loss of each row as a batch of one, without weight decay.

        From one forward pass where the loss is (output, target), else from one a row.
        sum_i w_i l_i / sum_i w_i is the loss; this is checked at the first call.

        Raises:
            LossError: The loss couples the rows of a batch.
        """
        return _examples.losses(self, self.point(point))[0]

    def loss_stderr(
        self,
        point: Float[Tensor, " dim"] | None = None,
        reference: Float[Tensor, " dim"] | None = None,
    ) -> float:
        """Return the standard error of the mean loss, from the spread over rows.

        With a `reference` that of L(point) - L(reference), from paired differences.
        """
        return _examples.stderr(self, self.point(point), reference)

    def example_gradients(
        self,
        point: Float[Tensor, " dim"] | None = None,
        chunk: int | None = None,
    ) -> Float[Tensor, "rows dim"]:
        """Return the gradient of each row's loss, without weight decay.

        Under `process_group` those of this rank's rows.

        Args:
            point: Where; the origin by default.
            chunk: Rows at once; by default what fits 64 MiB of gradients.
        """
        point = self._shared(self.point(point))
        return torch.cat([g for g, _ in self._example_gradients(point, chunk)])

    # Landscapes of the same model ---------------------------------------------------

    def subset(self, indices: Tensor | Sequence[int]) -> "NetworkLandscape":
        """Return the landscape of some rows of the data; rows keep their order."""
        return self._on(self._data.select(indices))

    def batches(self, size: int) -> "list[NetworkLandscape]":
        """Return the landscapes of consecutive pieces of `size` rows."""
        return [self._on(piece) for piece in self._data.chunks(size)]

    def with_loss(
        self,
        loss: Callable[..., Any] | str,
        *,
        form: Literal["output", "model", "auto"] | None = None,
        metrics: Mapping[str, Callable[..., Any]] | Literal["auto"] | None = "auto",
    ) -> Self:
        """Return the landscape of another loss on the same model and data."""
        other = copy.copy(self)
        other.objective = replace(
            self.objective, loss=loss, form=resolve_form(loss, form)
        )
        other._metrics = Metrics(metrics, other.objective)
        other._prepared = other._rows_checked = other._graph_checked = False
        other.failures = []
        return other

    def with_buffers(self, buffers: Mapping[str, Tensor]) -> Self:
        """Return the landscape with buffers held at other values, by dotted name."""
        unknown = sorted(set(buffers) - set(self._held))
        if unknown:
            raise InputError(f"the model has no buffers {unknown[:8]}")
        other = copy.copy(self)
        moved = {
            name: value.detach().to(self._held[name], copy=True)
            for name, value in buffers.items()
        }
        other._held = self._held | moved
        if other.buffers == "interpolate":
            other.buffers = "freeze"
        return other

    def with_state(self, state: Mapping[str, Tensor] | nn.Module) -> Self:
        """Return the landscape of a checkpoint: standing at it, its buffers, constants.

        The model is not changed; the state's frozen entries and buffers are used in its
        place.

        Raises:
            StructureError: Names missing or unexpected (listed), or shapes that differ.
        """
        if isinstance(state, nn.Module):
            state = state.state_dict()
        own = self.model.state_dict()
        fixed = {n: v for n, v in (self._constants | self._held).items() if n in own}
        optional = {n for n in fixed if n.endswith("num_batches_tracked")}
        fixed = {n: v for n, v in fixed.items() if n in state or n not in optional}
        wanted = {n: tuple(own[n].shape) for n in self.layout.names} | {
            n: tuple(v.shape)
            for n, v in fixed.items()
            if n in state or n not in optional
        }
        taken = match_state(state, wanted, self._aliases, optional)
        other = self.with_buffers({n: taken[n] for n in self._held if n in taken})
        other._constants = self._constants | {
            name: taken[name].detach().to(constant)
            for name, constant in self._constants.items()
        }
        other.origin = self._parameter_map.join(
            {n: taken[n] for n in self.layout.names}
        )
        other._prepared = False
        return other

    def between(
        self, *states: "nn.Module | Mapping[str, Tensor] | Tensor"
    ) -> BetweenLandscape:
        """Return the landscape c -> loss(s_0 + sum_j c_j (s_j - s_0)), standing at 0.

        Args:
            states: Modules or state dicts, whose floating buffers move likewise (or
                are found anew at each point, under `buffers="recalibrate"`), or points.

        Raises:
            InputError: Fewer than two, or bare points where buffers must move.
        """
        return BetweenLandscape(self, states)

    # Points and state dicts ---------------------------------------------------------

    def flatten(self, state: "Mapping[str, Tensor] | nn.Module") -> Tensor:
        """Return the point of a state dict or module.

        Entries that are no coordinates (buffers, frozen parameters) are passed over.

        Raises:
            StructureError: Names missing or unexpected (listed), shapes that differ, or
                tied entries that disagree.
        """
        if isinstance(state, nn.Module):
            state = state.state_dict()
        return self._parameter_map.from_state(state, set(self.model.state_dict()))

    def unflatten(self, point: Float[Tensor, " dim"]) -> dict[str, Any]:
        """Return the full state dict at a point: buffers and frozen entries included.

        Tensors are copies; a tied parameter stands under all its names.
        """
        state = {
            name: value.detach().clone() if isinstance(value, Tensor) else value
            for name, value in self.model.state_dict().items()
        }
        for name, value in (self._held | self._constants).items():
            for alias in self._aliases[name]:
                if alias in state:
                    state[alias] = value.clone()
        for name, tensor in self._parameters(self._checked(point)).items():
            for alias in self._aliases[name]:
                state[alias] = tensor.clone()
        return state

    def effective_step(self, point: Float[Tensor, " dim"]) -> float:
        """Return |cast(x) - cast(origin)| / |x - origin|, what half precision keeps.

        1 where the parameters' dtype holds the point exactly, NaN at the origin.
        """
        return kept_share(self, point)

    @property
    def buffer_names(self) -> tuple[str, ...]:
        """Dotted names of the model's buffers."""
        return tuple(self._held)

    @property
    def rows(self) -> int:
        """Number of rows of the data in use, on all ranks."""
        return self._data.rows if self.shards is None else sum(self.shards.rows)

    def describe(self) -> dict[str, object]:
        """Return what identifies this landscape: model, data, loss, policies."""
        constants = {
            name: p
            for name, p in self.model.named_parameters()
            if name not in self._parameter_map.slots
        }
        loss, shards = self.objective.loss, self.shards
        spread = {} if shards is None else {"shards": list(shards.rows)}
        return (
            super().describe()
            | spread
            | {
                "model": type(self.model).__name__,
                "loss": loss if isinstance(loss, str) else _name(loss),
                "form": self.objective.form,
                "rows": self.rows,
                "batches": len(self._data.sizes),
                "data": self._data.fingerprint if shards is None else shards.data,
                "parameters": fingerprint(self.origin),
                "constants": fingerprint(constants, self._held),
                "buffers": self.buffers,
                "mode": self.mode,
                "reduction": self.reduction,
                "weight_decay": self.weight_decay,
                "stochastic": self.stochastic,
                "repeats": self.repeats,
                "seed": self.seed,
            }
        )

    # Evaluation ---------------------------------------------------------------------

    def _totals(
        self, points: Tensor | Iterable[Tensor], *, metrics: bool
    ) -> list[Totals]:
        """Evaluate each point in place, in one working buffer, without a graph."""
        results = []
        with self._evaluating(), self._without_graph():
            space = self._space()
            install(self._parameter_map.slots, space.tensors, "_parameters")
            for point in self._rows(points):
                space.write(point)
                self._settle_buffers(space.tensors)
                try:
                    results.append(self._total(point, metrics=metrics))
                except Exception as error:
                    if self.on_error == "raise":
                        raise
                    self.failures.append(f"{type(error).__name__}: {error}")
                    results.append(Totals.failed(self._metrics.names))
        return results

    def _total(self, point: Tensor, *, metrics: bool) -> Totals:
        draws, gathered = [], self._metrics.start() if metrics else None
        for draw in range(self.repeats):
            mean = WeightedMean(self.reduction, self.accumulate, self.shards)
            self._begin(draw)
            for batch in self._data:
                value, weight = self._weighted(
                    self.objective.value(batch.data, batch.size)
                    if gathered is None
                    else gathered.add(batch)
                )
                mean.add(value, weight)
            draws.append(mean.result().detach().to(self.accumulate))
        decay = self._decay(point)
        found = gathered.result(self.shards) if gathered else {}
        return Totals(torch.stack(draws) + decay, found)

    def _value_and_gradient(
        self, point: Tensor, space: Workspace
    ) -> tuple[Tensor, Tensor]:
        value = WeightedMean("mean", self.accumulate)
        gradient = WeightedMean("mean", self.accumulate)
        for draw in range(self.repeats):
            draw_value, draw_gradient = (
                WeightedMean(self.reduction, self.accumulate, self.shards)
                for _ in range(2)
            )
            self._begin(draw)
            for batch in self._data:
                loss, weight, slope = self._batch_gradient(batch, space)
                draw_value.add(loss, weight)
                draw_gradient.add(slope, weight)
            value.add(draw_value.result(), 1.0)
            gradient.add(draw_gradient.result(), 1.0)
        total = value.result().to(self.accumulate) + self._decay(point)
        slope = gradient.result().to(self.dtype)
        if self.weight_decay:
            slope = slope + self.weight_decay * self._decaying(point)
        return total, slope

    def _batch_gradient(
        self, batch: Batch, space: Workspace
    ) -> tuple[Tensor, Tensor | float, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            variables = {
                name: tensor.detach().requires_grad_()
                for name, tensor in space.tensors.items()
            }
            value, weight, slopes = self._batch_slopes(variables, batch)
        return value.detach(), weight, self._parameter_map.flat(slopes)

    def _decaying(self, point: Tensor) -> Tensor:
        return point if self._decay_mask is None else point * self._decay_mask

    def _decay(self, point: Tensor) -> Tensor | float:
        if not self.weight_decay:
            return 0.0
        wide = self._decaying(point).to(self.accumulate)
        return self.weight_decay / 2 * (wide @ wide)

    def _rows(self, points: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
        if isinstance(points, Tensor):
            points = points.detach().reshape(-1, self.dim).unbind(0)
        warned = False
        for point in points:
            point = self._checked(point)
            if self._parameter_map.half and not warned:
                warned = warn_of_lost_step(self, point)
            yield self._shared(point.to(dtype=self.dtype, device=self.device))

    def _stacked(self, values: list[Tensor], like: Tensor) -> Tensor:
        if not values:
            return torch.empty(0, dtype=self.accumulate, device=like.device)
        return torch.stack(values)

    def _on(self, data: Batches) -> "NetworkLandscape":
        if self.shards is not None:
            raise InputError(
                "rows cannot be picked under process_group: give each rank the rows "
                "that it is to hold"
            )
        other = copy.copy(self)
        other._data, other.failures = data, []
        return other


def _one_of(name: str, value: object, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise InputError(f"{name} must be one of {accepted}, got {value!r}")


def _name(loss: Callable[..., Any]) -> str:
    return getattr(loss, "__qualname__", type(loss).__name__)
