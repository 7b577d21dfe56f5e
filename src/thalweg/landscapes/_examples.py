"""Losses and gradients of single rows: each row as a batch of one."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from thalweg.errors import InputError, LossError
from thalweg.landscapes._batches import Batch
from thalweg.landscapes._trees import leaves, take_rows, transform

if TYPE_CHECKING:
    from thalweg.landscapes._borrowing import Borrowing

GRADIENT_BYTES = 64 * 2**20
_UNVECTORIZED = (RuntimeError, NotImplementedError, ValueError, TypeError)


def losses(land: "Borrowing", point: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows' losses and weights, (N,) each, in the order of the data.

    Raises:
        LossError: They do not combine to the loss: it couples rows.
    """
    losses, counts, whole = [], [], []
    point = land._shared(point)
    with land._evaluating(point), land._without_graph():
        parameters = land._parameters(point.detach())
        for batch in land._batches():
            rows, batch_loss = batch_rows(land, parameters, batch)
            losses.append(rows[0].detach().to(land.accumulate))
            counts.append(rows[1].detach().to(land.accumulate))
            whole.append(batch_loss)
    table = torch.stack([torch.cat(losses), torch.cat(counts)], dim=1)
    if land.shards is not None:
        table = land.shards.concatenate(table)
        own = [(value.detach().cpu(), float(weight)) for value, weight in whole]
        whole = [pair for part in land.shards.gather(own) for pair in part]
    values, weights = table.unbind(1)
    if not land._rows_checked:
        _check(land, values, weights, whole)
        land._rows_checked = True
    return values, weights


def stderr(land: "Borrowing", point: Tensor, reference: Tensor | None = None) -> float:
    """Return the standard error of the loss at `point`, or of its difference.

    For weights w_i and l_i the rows' losses (or paired differences) with weighted mean
    m: sqrt(n / (n - 1) sum w_i^2 (l_i - m)^2) / sum w_i; for a sum over rows without
    the denominator, all w_i = 1.
    """
    values, weights = losses(land, point)
    if reference is not None:
        values = values - losses(land, land._checked(reference))[0]
    if land.reduction == "sum":
        weights = torch.ones_like(weights)
    counted = weights > 0
    values, weights = values[counted], weights[counted]
    n = len(values)
    if n < 2:
        return float("nan")
    mean = (weights * values).sum() / weights.sum()
    spread = (n / (n - 1) * (weights**2 * (values - mean) ** 2).sum()).sqrt()
    return float(spread if land.reduction == "sum" else spread / weights.sum())


def gradients(
    land: "Borrowing", point: Tensor, chunk: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (gradients (rows, dim), weights (rows,)), at most `chunk` rows at once.

    Vectorized over rows, or row by row where the model cannot be.
    """
    if chunk is not None and chunk < 1:
        raise InputError(f"chunk must be at least 1, got {chunk}")
    if land.mode == "train":
        raise InputError('gradients of single rows need mode="eval"')
    if chunk is None:
        itemsize = torch.finfo(land.dtype).bits // 8
        chunk = max(1, GRADIENT_BYTES // (land.dim * itemsize))
    vectorized = True
    # The kernels with second derivatives are those that vectorize well, too.
    with land._evaluating(point, second_order=True):
        parameters = {n: t.detach() for n, t in land._parameters(point).items()}
        for batch in land._batches():
            for start in range(0, batch.size, chunk):
                rows = torch.arange(start, min(start + chunk, batch.size))
                piece = Batch(take_rows(batch.data, rows), batch.index, len(rows))
                result = None
                if vectorized:
                    result = _vectorized_gradients(land, parameters, piece)
                    vectorized = result is not None
                yield result or _looped_gradients(land, parameters, piece)


def batch_rows(
    land: "Borrowing", parameters: Mapping[str, Tensor], batch: Batch
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Any]]:
    """Return (losses, weights) of a batch's rows, and of the batch; differentiable."""
    if land.objective.form == "output":
        output = land._batch_output(parameters, batch)
        whole = land._output_loss(output, batch)
        rows = _vectorized_rows(land, output, batch)
        if rows is None:
            rows = _loop(
                lambda row, i: land._output_loss(
                    take_rows(output, torch.tensor([i])), row
                ),
                land,
                batch,
            )
        return rows, whole
    whole = land._batch_loss(parameters, batch)
    return _loop(lambda row, i: land._batch_loss(parameters, row), land, batch), whole


def _loop(
    evaluate: Callable[[Batch, int], tuple[Tensor, Any]],
    land: "Borrowing",
    batch: Batch,
) -> tuple[Tensor, Tensor]:
    results = [evaluate(land._example(batch, i), i) for i in range(batch.size)]
    values = torch.stack([value for value, _ in results])
    return values, _weights([weight for _, weight in results], values)


def _weights(weights: list[Any], like: Tensor) -> Tensor:
    return torch.tensor(
        [float(w) for w in weights], dtype=torch.float64, device=like.device
    )


def _vectorized_rows(
    land: "Borrowing", output: Any, batch: Batch
) -> tuple[Tensor, Tensor] | None:
    def row(tensors: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> Any:
        data = _rebuilt(batch.data, batch.size, tensors)
        value, weight = land.objective.of_output(
            _rebuilt(output, batch.size, outputs), data, 1
        )
        return value, torch.as_tensor(weight, dtype=torch.float64)

    try:
        return torch.func.vmap(row, randomness="different")(
            _mapped(batch.data, batch.size), _mapped(output, batch.size)
        )
    except _UNVECTORIZED:
        return None


def _vectorized_gradients(
    land: "Borrowing", parameters: Mapping[str, Tensor], batch: Batch
) -> tuple[Tensor, Tensor] | None:
    def loss(variables: dict[str, Tensor], tensors: tuple[Tensor, ...]) -> Any:
        data = _rebuilt(batch.data, batch.size, tensors)
        value, weight = land._batch_loss(variables, Batch(data, batch.index, 1))
        return value, torch.as_tensor(weight, dtype=torch.float64)

    one = torch.func.grad(loss, has_aux=True)
    try:
        slopes, weights = torch.func.vmap(one, (None, 0), randomness="different")(
            dict(parameters), _mapped(batch.data, batch.size)
        )
    except _UNVECTORIZED:
        return None
    rows = []
    for name in land.layout.names:
        slope = slopes[name]
        real = torch.view_as_real(slope.resolve_conj()) if slope.is_complex() else slope
        rows.append(real.reshape(batch.size, -1).to(land.dtype))
    return torch.cat(rows, dim=1), weights


def _looped_gradients(
    land: "Borrowing", parameters: Mapping[str, Tensor], batch: Batch
) -> tuple[Tensor, Tensor]:
    rows, weights = [], []
    for i in range(batch.size):
        variables = {n: t.detach().requires_grad_() for n, t in parameters.items()}
        _, weight, slopes = land._batch_slopes(variables, land._example(batch, i))
        rows.append(land._parameter_map.flat(slopes))
        weights.append(weight)
    return torch.stack(rows), _weights(weights, rows[0])


def _is_row_axis(tensor: Any, size: int) -> bool:
    return isinstance(tensor, Tensor) and tensor.ndim > 0 and tensor.shape[0] == size


def _mapped(data: Any, size: int) -> tuple[Tensor, ...]:
    return tuple(t for t in leaves(data) if _is_row_axis(t, size))


def _rebuilt(data: Any, size: int, rows: tuple[Tensor, ...]) -> Any:
    """Return the batch of one whose tensors are single rows."""
    remaining = iter(rows)
    return transform(
        data, lambda x: next(remaining)[None] if _is_row_axis(x, size) else x
    )


def _check(
    land: "Borrowing",
    values: Tensor,
    weights: Tensor,
    whole: list[tuple[Tensor, Any]],
) -> None:
    batch_values = torch.stack([v for v, _ in whole]).to(land.accumulate)
    if land.reduction == "sum":
        combined, loss = values.sum(), batch_values.sum()
    else:
        batch_weights = _weights([w for _, w in whole], batch_values)
        counted, filled = weights > 0, batch_weights > 0
        combined = (weights * values)[counted].sum() / weights.sum()
        loss = (batch_weights * batch_values)[filled].sum() / batch_weights.sum()
    if not bool(combined.isfinite() & loss.isfinite()):
        return
    tolerance = 1e-9 if land.dtype == torch.float64 else 1e-4
    if land._parameter_map.half:
        tolerance = 3e-2
    if abs(float(combined - loss)) > tolerance * max(1.0, abs(float(loss))):
        raise LossError(
            f"the rows' losses average to {float(combined):.6g}, but the loss is "
            f"{float(loss):.6g}: the loss couples the rows of a batch, or does not "
            "average over rows (then say what a batch counts with `weight=`)"
        )
