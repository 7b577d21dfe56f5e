"""Balls of the three norms: projection, steepest direction, uniform draws.

Rows are independent everywhere; a ball may be cut by a box that holds its center.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError
from thalweg.seeding import generator

Norm = Literal["Linf", "L2", "L1"]
Bound = float | Tensor
NORMS: tuple[Norm, ...] = ("Linf", "L2", "L1")


def read_norm(norm: str) -> Norm:
    """Return "Linf", "L2" or "L1", read without regard to case.

    Raises:
        InputError: It is none of the three.
    """
    for known in NORMS:
        if isinstance(norm, str) and norm.lower() == known.lower():
            return known
    raise InputError(f"norm must be 'Linf', 'L2' or 'L1', got {norm!r}")


def project_ball(
    x: Float[Tensor, "n *shape"],
    center: Float[Tensor, "n *shape"],
    norm: str,
    radius: float | Float[Tensor, " n"],
    box: tuple[Bound, Bound] | None = None,
) -> Float[Tensor, "n *shape"]:
    """Return the point of ball ∩ box that is nearest to x in Euclidean distance.

    Row by row; exact up to rounding, the L2 and L1 cases with a box too. With
    u = x - center the L2 solution is clip(t u) and the L1 solution
    sign(u) clip(|u| - λ, 0, room), where t and λ solve a monotone piecewise equation
    between sorted breakpoints. O(D log D) a row, in float64.

    Args:
        x: Points.
        center: Centers of the balls, inside the box.
        norm: "Linf", "L2" or "L1".
        radius: One radius, or one a row; at least 0.
        box: Lower and upper bound, numbers or tensors that broadcast to a row.

    Raises:
        InputError: The norm is unknown, a radius is negative or NaN, the shapes differ
            or the center is outside of the box.

    Sources: Duchi, Shalev-Shwartz, Singer, Chandra, "Efficient projections onto the
    l1-ball", 2008; Croce and Hein, "Mind the box", 2021.
    """
    norm = read_norm(norm)
    if x.shape != center.shape:
        raise InputError(
            f"x and center must have one shape, got {tuple(x.shape)} and "
            f"{tuple(center.shape)}"
        )
    radii = read_radius(radius, center)
    limits = read_box(box, center)
    return _project(x, center, norm, radii, limits)


def read_radius(radius: float | Tensor, x: Tensor) -> Float[Tensor, " n"]:
    """Return one radius a row, in float64.

    Raises:
        InputError: A radius is negative or NaN, or their number differs.
    """
    radii = torch.as_tensor(radius, dtype=torch.float64, device=x.device)
    if radii.ndim > 1 or (radii.ndim == 1 and radii.shape[0] != x.shape[0]):
        raise InputError(
            f"radius must be a number or of shape ({x.shape[0]},), got shape "
            f"{tuple(radii.shape)}"
        )
    if not bool((radii >= 0).all()):
        raise InputError(f"radius must be at least 0, got {float(radii.min())}")
    return radii.expand(x.shape[0])


def read_box(
    box: tuple[Bound, Bound] | None, center: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Return the bounds as tensors that broadcast to `center`.

    Raises:
        InputError: The center is not inside of the box.
    """
    if box is None:
        return None
    low, high = (torch.as_tensor(b, dtype=center.dtype).to(center.device) for b in box)
    if not bool(((center >= low) & (center <= high)).all()):
        outside = int((~((center >= low) & (center <= high))).sum())
        raise InputError(
            f"{outside} entries of the center lie outside of the box: the points "
            "given must satisfy its bounds"
        )
    return low, high


def _project(
    x: Tensor,
    center: Tensor,
    norm: Norm,
    radii: Float[Tensor, " n"],
    box: tuple[Tensor, Tensor] | None,
) -> Tensor:
    if x.numel() == 0:
        return x
    if norm == "Linf":
        shape = (-1,) + (1,) * (x.ndim - 1)
        reach = radii.to(x.dtype).reshape(shape)
        inside = torch.minimum(torch.maximum(x, center - reach), center + reach)
    else:
        u = (x.double() - center.double()).flatten(1)
        size = u.abs()
        room = size
        if box is not None:
            ends = torch.where(
                x > center, box[1].double() - center, center - box[0].double()
            )
            room = torch.minimum(ends.flatten(1), size)
        shrink = _shrink_l2 if norm == "L2" else _shrink_l1
        moved = torch.sign(u) * shrink(size, room, radii)
        inside = (center.double() + moved.reshape(x.shape)).to(x.dtype)
    if box is None:
        return inside
    return torch.minimum(torch.maximum(inside, box[0]), box[1])


def _shrink_l2(size: Tensor, room: Tensor, radii: Tensor) -> Tensor:
    """Return min(t |u|, room) with the largest t <= 1 of norm <= radius."""
    t = torch.where(size > 0, room / size, torch.ones_like(size))
    t, order = t.sort(dim=1)
    filled = room.gather(1, order).square()
    free = size.gather(1, order).square()
    filled = filled.cumsum(1) - filled  # of the entries before this one
    free = free.flip(1).cumsum(1).flip(1)  # of this one and those after it
    square = radii[:, None].square()
    reached = filled + t.square() * free >= square
    first = reached.to(torch.uint8).argmax(1, keepdim=True)
    rest = (square - filled.gather(1, first)).clamp(min=0)
    scale = (rest / free.gather(1, first)).sqrt()
    scale = torch.where(reached.any(1, keepdim=True), scale, torch.ones_like(scale))
    scale = torch.nan_to_num(scale, nan=1.0).clamp(max=1.0)
    return torch.minimum(scale * size, room)


def _shrink_l1(size: Tensor, room: Tensor, radii: Tensor) -> Tensor:
    """Return clip(|u| - λ, 0, room) with the smallest λ >= 0 of sum <= radius."""
    events = torch.cat([size, size - room], dim=1)
    slopes = torch.cat([torch.ones_like(size), -torch.ones_like(size)], dim=1)
    events, order = events.sort(dim=1, descending=True)
    active = slopes.gather(1, order).cumsum(1)
    gaps = -events.diff(dim=1)
    sums = torch.nn.functional.pad((active[:, :-1] * gaps).cumsum(1), (1, 0))
    reached = sums >= radii[:, None]
    first = reached.to(torch.uint8).argmax(1, keepdim=True)
    before = (first - 1).clamp(min=0)
    missing = radii[:, None] - sums.gather(1, before)
    level = events.gather(1, before) - missing / active.gather(1, before).clamp(min=1)
    outside = room.sum(1, keepdim=True) > radii[:, None]
    level = torch.where(
        outside & reached.any(1, keepdim=True), level, torch.zeros_like(level)
    )
    return torch.minimum((size - level).clamp(min=0), room)


def ball_norm(v: Float[Tensor, "n *shape"], norm: Norm) -> Float[Tensor, " n"]:
    """Return the norm of each row, in float64."""
    order = {"Linf": math.inf, "L2": 2.0, "L1": 1.0}[norm]
    return torch.linalg.vector_norm(v.flatten(1), order, dim=1, dtype=torch.float64)


def dual_norm(norm: Norm) -> Norm:
    """Return the norm that bounds <g, δ> by dual(g) |δ|."""
    duals: dict[Norm, Norm] = {"Linf": "L1", "L2": "L2", "L1": "Linf"}
    return duals[norm]


def steepest(
    g: Float[Tensor, "n *shape"],
    norm: Norm,
    x: Float[Tensor, "n *shape"] | None = None,
    box: tuple[Tensor, Tensor] | None = None,
) -> Float[Tensor, "n *shape"]:
    """Return the direction of norm 1 along which <g, δ> grows most, 0 where g is.

    sign(g) for Linf, g / |g| for L2, the entry of largest magnitude for L1 (of those
    that the box lets move, where it is given).
    """
    if norm == "Linf":
        return g.sign()
    flat = g.flatten(1)
    if norm == "L2":
        length = ball_norm(g, norm)[:, None]
        unit = torch.where(length > 0, flat / length, torch.zeros_like(length))
        return unit.to(g.dtype).reshape(g.shape)
    size = flat.abs()
    if box is not None and x is not None:
        stuck = ((x >= box[1]) & (g > 0)) | ((x <= box[0]) & (g < 0))
        size = size.masked_fill(stuck.flatten(1), 0)
    largest = size.argmax(1, keepdim=True)
    chosen = flat.gather(1, largest).sign() * (size.gather(1, largest) > 0)
    return torch.zeros_like(flat).scatter(1, largest, chosen).reshape(g.shape)


def uniform_in_ball(
    like: Float[Tensor, "n *shape"],
    norm: Norm,
    radii: Float[Tensor, " n"],
    seed: int,
    *key: int | str,
) -> Float[Tensor, "n *shape"]:
    """Draw one point a row, uniform in the ball around zero."""
    n, size = like.shape[0], max(1, like[:1].numel())
    draws = generator(seed, *key)
    if norm == "Linf":
        flat = 2 * torch.rand(n, size, generator=draws, dtype=torch.float64) - 1
    else:
        if norm == "L2":
            flat = torch.randn(n, size, generator=draws, dtype=torch.float64)
        else:
            uniform = torch.rand(n, size, generator=draws, dtype=torch.float64)
            signs = 2 * torch.randint(0, 2, (n, size), generator=draws) - 1
            flat = -torch.log1p(-uniform) * signs
        reach = torch.rand(n, generator=draws, dtype=torch.float64) ** (1 / size)
        flat = flat * (reach / ball_norm(flat, norm).clamp(min=1e-300))[:, None]
    flat = flat.to(like.device) * radii[:, None]
    return flat.to(like.dtype).reshape(like.shape)
