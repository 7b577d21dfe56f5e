"""Seeded parts of a data set: train, validation, test."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg.data.labeled import LabeledData
from thalweg.errors import InputError
from thalweg.seeding import generator

_NAMES = {2: ("train", "test"), 3: ("train", "validation", "test")}


def split(
    data: LabeledData,
    fractions: Sequence[float] = (0.8, 0.2),
    *,
    stratified: bool = True,
    seed: int = 0,
) -> tuple[LabeledData, ...]:
    """Split into disjoint parts that together hold every row once.

    Two parts are named train and test, three train, validation and test. Sizes follow
    the fractions by largest remainder, within each class where `stratified`: a class's
    share of a part is off by less than one row.

    Args:
        data: What is split.
        fractions: Positive shares that add up to 1.
        stratified: Whether each class is split by itself.
        seed: The same seed gives the same parts.

    Raises:
        InputError: Shares that are not positive or do not add up to 1, or a part that
            would be empty.
    """
    if len(fractions) < 1 or any(not f > 0 for f in fractions):
        raise InputError(f"fractions must be positive, got {tuple(fractions)}")
    if not math.isclose(sum(fractions), 1.0, abs_tol=1e-9):
        raise InputError(f"fractions must add up to 1, got {tuple(fractions)}")
    parts: list[list[Tensor]] = [[] for _ in fractions]
    for key, rows in _groups(data, stratified):
        shuffled = rows[torch.randperm(len(rows), generator=generator(seed, key))]
        sizes = _sizes(len(rows), fractions)
        for part, piece in zip(parts, shuffled.split(sizes), strict=True):
            part.append(piece)
    names = _NAMES.get(len(fractions), tuple(f"part {i}" for i in range(len(parts))))
    result = []
    for name, part in zip(names, parts, strict=True):
        rows = torch.cat(part).sort().values
        if len(rows) == 0:
            raise InputError(
                f"fractions {tuple(fractions)} leave the part '{name}' of "
                f"{data.name} ({len(data)} rows) empty"
            )
        result.append(data.subset(rows, name=f"{data.name} {name}"))
    return tuple(result)


def _groups(data: LabeledData, stratified: bool) -> list[tuple[str, Tensor]]:
    if not stratified:
        return [("all", torch.arange(len(data)))]
    targets = data.targets.cpu()
    return [
        (f"class {int(c)}", (targets == c).nonzero()[:, 0]) for c in targets.unique()
    ]


def _sizes(rows: int, fractions: Sequence[float]) -> list[int]:
    exact = [rows * f for f in fractions]
    sizes = [math.floor(x + 1e-9) for x in exact]
    by_remainder = sorted(
        range(len(exact)), key=lambda i: exact[i] - sizes[i], reverse=True
    )
    for i in by_remainder[: rows - sum(sizes)]:
        sizes[i] += 1
    return sizes
