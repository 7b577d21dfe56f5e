"""Batch-norm running statistics: found anew by one pass, and between checkpoints."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from thalweg.errors import DataError, StructureError


def has_batch_norm(model: nn.Module) -> bool:
    """Say whether the model keeps running statistics."""
    return bool(_tracking(model))


def _tracking(model: nn.Module) -> list[_BatchNorm]:
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]


def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[Any], object] | None = None,
) -> int:
    """Replace running means and variances by those of one pass over `batches`.

    Each statistic becomes the mean over batches of the batch's mean and unbiased
    variance (torch's cumulative average, `momentum=None`). Only the batch-norm modules
    are in train mode for the pass; modes and momenta are restored, the statistics and
    `num_batches_tracked` are written in place. Costs one forward pass without
    gradients; does nothing for a model without running statistics.

    Args:
        model: The model, in the mode in which the pass is wanted.
        batches: What `forward` takes; read once.
        forward: Runs the model on one batch; `model(batch)`, or `model(batch[0])` for
            a pair, by default.

    Returns:
        The number of batches read.

    Raises:
        DataError: There is no batch.

    Source: "Averaging Weights Leads to Wider Optima and Better Generalization",
    P. Izmailov, D. Podoprikhin, T. Garipov, D. Vetrov, A. G. Wilson, 2018, section 3.2.
    """
    modules = _tracking(model)
    if not modules:
        return 0
    call = forward if forward is not None else lambda batch: model(_inputs(batch))
    before = [(module.training, module.momentum) for module in modules]
    count = 0
    try:
        for module in modules:
            module.reset_running_stats()
            module.training, module.momentum = True, None
        with torch.no_grad():
            for batch in batches:
                call(batch)
                count += 1
    finally:
        for module, (training, momentum) in zip(modules, before, strict=True):
            module.training, module.momentum = training, momentum
    if not count:
        raise DataError("calibration data is empty: batch norm needs a batch")
    return count


def _inputs(batch: Any) -> Any:
    return batch[0] if isinstance(batch, tuple | list) else batch


def variance_names(model: nn.Module) -> frozenset[str]:
    """Return the dotted names of the running variances."""
    return frozenset(
        f"{prefix}.running_var" if prefix else "running_var"
        for prefix, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_var is not None
    )


def interpolate_buffers(
    buffers: Sequence[Mapping[str, Tensor]],
    coordinates: Float[Tensor, " k"],
    variances: Iterable[str] = (),
) -> tuple[dict[str, Tensor], int]:
    """Return the buffers at s_0 + sum_j c_j (s_j - s_0), and how many were held.

    Floating buffers move linearly, all others are those of the checkpoint with the
    largest coordinate (c_0 = 1 - sum c_j). Outside the simplex a running variance is
    held at the smallest of the checkpoints' (linear extrapolation may be negative, and
    a clamp at zero would divide by the root of the epsilon alone).

    Args:
        buffers: Those of s_0, ..., s_k.
        coordinates: c_1, ..., c_k.
        variances: Names of the running variances; names that end in "running_var" are
            by default.
    """
    if len(buffers) != len(coordinates) + 1:
        raise StructureError(
            f"{len(coordinates)} coordinates need {len(coordinates) + 1} sets of "
            f"buffers, got {len(buffers)}"
        )
    weights = torch.cat([1 - coordinates.sum(0, keepdim=True), coordinates]).double()
    nearest = buffers[int(weights.argmax())]
    positive = set(variances)
    result, held = {}, 0
    for name, first in buffers[0].items():
        if not first.is_floating_point():
            result[name] = nearest[name]
            continue
        stack = torch.stack([b[name] for b in buffers]).double()
        value = torch.tensordot(weights.to(stack.device), stack, dims=1)
        if name in positive or name.endswith("running_var"):
            least = stack.amin(0)
            below = value < least
            # Inside the simplex this is rounding alone, and no event.
            held += int(below.sum()) if bool((weights < 0).any()) else 0
            value = torch.where(below, least, value)
        result[name] = value.to(first.dtype)
    return result, held
