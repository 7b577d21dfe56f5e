"""Scaling directions to the weights of a point: by filter, layer, model or entry."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError
from thalweg.instruments.directions import Directions, as_directions
from thalweg.landscapes import Block, Landscape, Layout, LinearMap
from thalweg.provenance import fingerprint

Scheme = Literal["filter", "layer", "model", "weight", "unit", "none"]
Ignore = Literal["bias_norm"]


def normalize(
    directions: Directions | LinearMap,
    land: Landscape,
    scheme: Scheme | Literal["auto"] = "filter",
    *,
    ignore: Ignore | None = "bias_norm",
    at: Float[Tensor, " dim"] | None = None,
) -> Directions:
    """Scale every direction, group by group, to the norm of the weights there.

    For each group g: d_g <- d_g |θ_g| / |d_g|. The groups are

    - `"filter"`: the slices along the output axis of a weight (rows of a linear layer
      or an embedding, output channels of a convolution; of a grouped transposed
      convolution the output channels within each group);
    - `"layer"`: whole tensors;
    - `"model"`: the whole point;
    - `"weight"`: d <- d θ entrywise instead;
    - `"unit"`: |d| = 1 instead; `"none"`: as they are;
    - `"auto"`: `"filter"` where a block has filters, else `"unit"`.

    Tensors of fewer than two axes (biases, norm scales) are set to 0 under
    `ignore="bias_norm"`, the published protocol, by the schemes "filter", "layer" and
    "weight"; `ignore=None` takes each as one group. A group without direction or
    without weight (a dead filter) gets 0.

    Source: Li, Xu, Taylor, Studer, Goldstein, "Visualizing the Loss Landscape of
    Neural Nets", 2018.

    Args:
        directions: Directions, or a tensor (dim, k).
        land: The landscape they belong to; its layout names the groups.
        scheme: See above.
        ignore: "bias_norm" or None.
        at: The point whose weights count; the directions' origin, else the
            landscape's.

    Raises:
        InputError: The scheme is unknown, the point is not finite, every direction
            would vanish, or principal directions would be bent.
    """
    directions = as_directions(directions, land)
    scheme = resolve_scheme(scheme, land.layout)
    if ignore not in (None, *get_args(Ignore)):
        raise InputError(f"ignore must be 'bias_norm' or None, got {ignore!r}")
    if scheme == "none":
        return replace(directions, normalize="none")
    if not isinstance(directions.basis, Tensor):
        raise InputError("normalize needs a dense basis, a tensor (dim, k)")
    if scheme in ("filter", "layer", "weight") and directions.kind == "pca":
        raise InputError(
            f"{scheme!r} would bend principal directions, and projections on them "
            "would no longer be exact; use scheme='unit', or pass `directions.basis`"
        )
    rows = directions.basis.T
    if scheme == "unit":
        scaled = rows * _ratio(1.0, _norm(rows, (1,)))
        return _replaced(directions, scaled, "unit", directions.reference)
    point = land.point(directions.origin if at is None else at)
    if not bool(torch.isfinite(point).all()):
        bad = int((~torch.isfinite(point)).sum())
        raise InputError(f"the point has {bad} entries that are NaN or infinite")
    if scheme == "model":
        scaled = rows * _ratio(_norm(point, (0,)), _norm(rows, (1,)))
    else:
        scaled = _by_block(rows, point, land.layout, scheme, ignore)
    return _replaced(directions, scaled, scheme, fingerprint(point))


def resolve_scheme(scheme: str, layout: Layout) -> Scheme:
    """Return the scheme that "auto" stands for, and check every other.

    Raises:
        InputError: The scheme is unknown.
    """
    if scheme == "auto":
        filters = any(block.filter_axis is not None for block in layout.blocks)
        return "filter" if filters else "unit"
    for known in get_args(Scheme):
        if scheme == known:
            return known
    raise InputError(
        f"scheme must be 'auto' or one of {get_args(Scheme)}, got {scheme!r}"
    )


def group_norms(
    vectors: Float[Tensor, "*batch dim"], layout: Layout, scheme: str
) -> Iterator[tuple[Block, Tensor]]:
    """Yield, block by block, the norm of each entry's group, ready to broadcast.

    The norms have the axes of the block (of (groups, in / groups, out / groups, ...)
    for a grouped transposed convolution, see `grouped`) with size 1 where a group
    extends; they are summed in float64.
    """
    lead = vectors.ndim - 1
    for block, tensor in zip(
        layout.blocks, layout.split(vectors).values(), strict=True
    ):
        tensor = grouped(tensor, block, lead)
        axes = tuple(range(lead, tensor.ndim))
        yield block, _norm(tensor, _within(block, axes, scheme))


def grouped(tensor: Tensor, block: Block, lead: int) -> Tensor:
    """Return the block with the input axis of a transposed convolution split."""
    if block.groups == 1 or block.filter_axis != 1:
        return tensor
    return tensor.unflatten(lead, (block.groups, -1))


def _within(block: Block, axes: tuple[int, ...], scheme: str) -> tuple[int, ...]:
    """Return the axes over which one group extends."""
    if scheme == "layer" or block.filter_axis is None or len(block.shape) < 2:
        return axes
    if len(axes) > len(block.shape):  # (groups, in, out, ...): keep groups and out
        return axes[1:2] + axes[3:]
    return axes[: block.filter_axis] + axes[block.filter_axis + 1 :]


def _by_block(
    rows: Tensor, point: Tensor, layout: Layout, scheme: str, ignore: str | None
) -> Tensor:
    weights = layout.split(point)
    directions = layout.split(rows)
    norms = zip(
        group_norms(point, layout, scheme),
        group_norms(rows, layout, scheme),
        strict=True,
    )
    parts = []
    for (block, weight_norm), (_, direction_norm) in norms:
        d = directions[block.name]
        if ignore == "bias_norm" and len(block.shape) < 2:
            scaled = torch.zeros_like(d)
        elif scheme == "weight":
            scaled = d * weights[block.name]
        else:
            scaled = grouped(d, block, 1) * _ratio(weight_norm, direction_norm)
        parts.append(scaled.reshape(rows.shape[0], -1))
    result = torch.cat(parts, dim=1).to(rows.dtype)
    if result.numel() and not bool(result.any()):
        raise InputError(
            f"scheme={scheme!r} sets every direction to zero here (no weight of two "
            "or more axes, or all weights zero); use scheme='unit' or ignore=None"
        )
    return result


def _norm(tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
    if not axes:  # torch would take no axes for all axes
        return tensor.double().abs()
    return torch.linalg.vector_norm(tensor, dim=axes, keepdim=True, dtype=torch.float64)


def _ratio(target: Tensor | float, norm: Tensor) -> Tensor:
    return torch.where(norm > 0, target / norm, torch.zeros_like(norm))


def _replaced(
    directions: Directions, rows: Tensor, scheme: Scheme, reference: str | None
) -> Directions:
    basis = directions.basis
    assert isinstance(basis, Tensor)
    moved = directions.anchors or directions.buffers
    return replace(
        directions,
        basis=rows.T.to(basis.dtype),
        normalize=scheme,
        reference=reference,
        anchors={} if moved else directions.anchors,
        buffers=None,
    )
