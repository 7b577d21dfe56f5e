"""One linearization a batch: built once, kept while memory lasts, summed with weights.

On the CPU a product through a retained graph costs little more than a gradient, a
rebuilt one twice as much; forward-mode and batched products are slower than both.
"""

import copy
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.module import register_module_forward_pre_hook

from thalweg.errors import LossError
from thalweg.landscapes._accumulate import WeightedMean
from thalweg.landscapes._batches import Batch
from thalweg.landscapes._state import RandomState
from thalweg.landscapes.curvature.output import OutputCurvature

if TYPE_CHECKING:
    from thalweg.landscapes.network import NetworkLandscape

Cache = bool | int | Literal["auto"]


class NoSecondDerivative(LossError):
    """An operation of the model has a backward that cannot be differentiated."""


def refuse_once_differentiable(gradient: Tensor) -> None:
    """Raise if a backward marked `once_differentiable` lies in the gradient's graph.

    Its own error node is cut off from the parameters, so that differentiating with
    `inputs=` never runs it: the derivative would silently come out without its part.
    """
    seen: set[object] = set()
    stack = [gradient.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::Error":
            raise NoSecondDerivative(
                "the backward of an operation is marked once_differentiable"
            )
        stack.extend(following for following, _ in node.next_functions)


@contextmanager
def recomputation_refused() -> Iterator[None]:
    """Raise if a module runs forward in the backward pass (`torch.utils.checkpoint`).

    The graph outlives the loan of the parameters: what is computed again would be
    computed at the model's own weights, and the curvature would silently be wrong.
    """

    def refuse(module: nn.Module, inputs: object) -> None:
        raise NoSecondDerivative(
            f"{type(module).__name__} is run again during the backward pass, as "
            "activation checkpointing does; turn that off for curvature"
        )

    hook = register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        hook.remove()


class GradientGraph:
    """The gradient of one batch's loss, differentiable once more.

    Args:
        leaf: The flat point, requiring grad.
        value: The batch's loss at it.
        weight: The batch's weight in the total.
    """

    def __init__(self, leaf: Tensor, value: Tensor, weight: Tensor | float) -> None:
        self._leaf, self.weight = leaf, float(weight)
        if not value.requires_grad:  # the batch does not depend on the leaf
            self._gradient = torch.zeros_like(leaf)
            return
        with recomputation_refused():
            (self._gradient,) = torch.autograd.grad(
                value, leaf, create_graph=True, materialize_grads=True
            )

    def check(self) -> None:
        """Raise NoSecondDerivative where the gradient cannot be differentiated."""
        refuse_once_differentiable(self._gradient)

    def product(self, v: Tensor) -> Tensor:
        """Return H v."""
        if not self._gradient.requires_grad:  # the loss is linear
            return torch.zeros_like(v)
        (product,) = torch.autograd.grad(
            self._gradient, self._leaf, v, retain_graph=True, materialize_grads=True
        )
        return product


class JacobianGraph:
    """The output of one batch with both of its Jacobian products.

    The pull-back u -> Jᵀu is linear in u, so its own derivative in u is v -> J v: one
    backward pass that touches nothing but what v reaches.

    Args:
        leaf: The flat point, requiring grad.
        output: The batch's output at it.
        weight: The batch's weight in the total.
        curvature: B of the batch.
    """

    def __init__(
        self,
        leaf: Tensor,
        output: Tensor,
        weight: Tensor | float,
        curvature: OutputCurvature,
    ) -> None:
        self._leaf, self._output = leaf, output
        self.weight, self.curvature = float(weight), curvature
        self._dual = torch.zeros_like(output, requires_grad=True)
        if not output.requires_grad:  # the batch does not depend on the leaf
            self._pullback = torch.zeros_like(leaf)
            return
        with recomputation_refused():
            (self._pullback,) = torch.autograd.grad(
                output, leaf, self._dual, create_graph=True, materialize_grads=True
            )

    def check(self) -> None:
        """Raise NoSecondDerivative where J v cannot be had from the pull-back."""
        refuse_once_differentiable(self._pullback)

    def jvp(self, v: Tensor) -> Tensor:
        """Return J v, shaped as the output."""
        if not self._pullback.requires_grad:
            return torch.zeros_like(self._dual)
        (image,) = torch.autograd.grad(
            self._pullback, self._dual, v, retain_graph=True, materialize_grads=True
        )
        return image

    def vjp(self, u: Tensor) -> Tensor:
        """Return Jᵀ u."""
        if not self._pullback.requires_grad:
            return torch.zeros_like(self._leaf)
        (image,) = torch.autograd.grad(
            self._output, self._leaf, u, retain_graph=True, materialize_grads=True
        )
        return image


G = TypeVar("G", GradientGraph, JacobianGraph)
Build = Callable[[Tensor, Batch, int], G]


class BatchGraphs(Generic[G]):
    """The graphs of all batches at one point, the first of them kept within a budget.

    A kept graph and a rebuilt one give the same bits.

    Args:
        land: The landscape whose batches are linearized.
        point: Where.
        cache: True keeps every graph, False none, a number as many bytes of them,
            "auto" a quarter of the memory that is free at the first pass.
        reduction: How batches add up; the landscape's by default.
    """

    def __init__(
        self,
        land: "NetworkLandscape",
        point: Tensor,
        cache: Cache,
        reduction: str | None = None,
    ) -> None:
        self._land: NetworkLandscape = land
        self.reduction = reduction or land.reduction
        self._point, self._cache = point, cache
        self._leaf = point.detach().requires_grad_()
        self.close()

    def at(self, leaf: Tensor) -> "BatchGraphs[G]":
        """Return new graphs at the same point, of a leaf that is a part of it."""
        other = copy.copy(self)
        other._leaf = leaf.detach().requires_grad_()
        other.close()
        return other

    def close(self) -> None:
        """Free all graphs; the next pass builds them again."""
        self._kept: list[G] = []
        self._complete = False
        self._budget: float | None = None
        self._random: RandomState | None = None  # after the last graph that is kept
        self._checked = False
        self.bytes = 0
        self.batches = 0

    @property
    def kept(self) -> int:
        """Number of batches whose graph is kept."""
        return len(self._kept)

    def mean(self, build: Build[G], apply: Callable[[G], Tensor]) -> Tensor:
        """Return the total over batches of apply(graph), by the landscape's weights.

        A model averaged over its randomness counts each draw as a pass over the data.

        Args:
            build: Makes the graph of (leaf, batch, index of the batch's first row);
                not kept, or an operator would wait for the garbage collector with its
                graphs.
            apply: What is summed.
        """
        total = WeightedMean(self.reduction, shards=self._land.shards)
        if self._complete:
            for graph in self._kept:
                total.add(apply(graph), graph.weight)
        else:
            self._pass(build, apply, total)
        result = total.result()
        draws = self._land.repeats
        return result / draws if self.reduction == "sum" and draws > 1 else result

    def _pass(
        self, build: Build[G], apply: Callable[[G], Tensor], total: WeightedMean
    ) -> None:
        land, index = self._land, 0
        with (
            land._evaluating(self._point, second_order=True),
            torch.enable_grad(),
        ):
            for draw in range(land.repeats):
                row, skipped = land.shards.first_row if land.shards else 0, False
                land._begin(draw)
                for batch in land._data:
                    if index < self.kept:
                        graph, skipped = self._kept[index], True
                    else:
                        if skipped and self._random is not None:
                            self._random.restore()
                        graph, skipped = self._built(build, batch, row, index), False
                    total.add(apply(graph), graph.weight)
                    del graph  # before the next one is built
                    row += batch.size
                    index += 1
        self.batches = index
        self._complete = self.kept == index

    def _built(self, build: Build[G], batch: Batch, row: int, index: int) -> G:
        if self._budget is None:
            self._budget = budget(self._cache, self._leaf.device)
        meter = SavedBytes()
        metered = index == self.kept and self.bytes < self._budget
        with meter if metered else nullcontext():
            graph = build(self._leaf, batch, row)
        if not self._checked:
            graph.check()
            self._checked = True
        if not metered:
            return graph
        if self.bytes + meter.total > self._budget:
            self._budget = self.bytes  # what does not fit once is not tried again
            return graph
        self._kept.append(graph)
        self.bytes += meter.total
        if self._land.stochastic != "raise":
            self._random = RandomState.capture()
        return graph


class SavedBytes:
    """Context that counts the bytes which autograd keeps for backward passes."""

    def __init__(self) -> None:
        self._storages: dict[int, int] = {}
        self._hooks = saved_tensors_hooks(self._pack, _identity)

    @property
    def total(self) -> int:
        """Bytes of the distinct storages saved so far."""
        return sum(self._storages.values())

    def __enter__(self) -> None:
        self._hooks.__enter__()

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would make a cycle that leaks


def _identity(tensor: Tensor) -> Tensor:
    return tensor


def budget(cache: Cache, device: torch.device) -> float:
    """Return the bytes that retained graphs may take."""
    if cache == "auto":
        return free_memory(device) / 4
    if cache is True:
        return math.inf
    return float(cache)


def free_memory(device: torch.device | str = "cpu") -> int:
    """Return the bytes that can still be allocated on a device."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    # Elsewhere no figure of free memory is to be had without a package for it.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
