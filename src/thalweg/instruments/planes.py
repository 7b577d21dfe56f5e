"""Lines and planes through checkpoints: points, state dicts or modules."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from thalweg.errors import CheckpointError, InputError, StructureError
from thalweg.instruments.directions import Directions
from thalweg.landscapes import Landscape

PointLike = Tensor | Mapping[str, Tensor] | nn.Module


class Checkpoint(NamedTuple):
    """A flat point and the floating buffers that came with it (None with a tensor)."""

    point: Tensor
    buffers: dict[str, Tensor] | None


def read_point(land: Landscape, given: PointLike, name: str = "a") -> Checkpoint:
    """Read a point, a state dict or a module as a finite point of `land`.

    Args:
        land: The landscape; a network's own `flatten` reads state dicts, the layout of
            any other.
        given: Point of shape (dim,), state dict, or module.
        name: What messages call it.

    Raises:
        StructureError: It does not fit the landscape.
        CheckpointError: An entry is NaN or infinite.
        InputError: It is none of the three.
    """
    buffers = None
    if isinstance(given, nn.Module):
        given = given.state_dict()
    if not isinstance(given, Mapping | Tensor):
        raise InputError(
            f"{name} must be a point, a state dict or a module, got "
            f"{type(given).__name__}"
        )
    try:
        point = _flat(land, given)
    except StructureError as error:
        raise StructureError(f"{name}: {error}") from None
    if isinstance(given, Mapping):
        model = getattr(land, "model", None)
        named = [] if model is None else list(model.named_buffers())
        buffers = {
            key: given[key].detach().clone()
            for key, buffer in named
            if key in given and buffer.is_floating_point()
        }
    if not bool(torch.isfinite(point).all()):
        bad = int((~torch.isfinite(point)).sum())
        raise CheckpointError(f"{name} has {bad} entries that are NaN or infinite")
    return Checkpoint(point, buffers)


def _flat(land: Landscape, given: Tensor | Mapping[str, Tensor]) -> Tensor:
    """Return a point or the point of a state dict, where and as `land` has its own."""
    if isinstance(given, Mapping):
        network = getattr(land, "model", None) is not None
        join = land.flatten if network else land.layout.join  # type: ignore[attr-defined]  # a network has it
        given = join(given).to(dtype=land.dtype, device=land.device)
    return land.point(given).to(dtype=land.dtype, device=land.device)


def read_ends(
    land: Landscape, a: PointLike, b: PointLike
) -> tuple[Checkpoint, Checkpoint]:
    """Read two different points.

    Raises:
        InputError: a and b are the same point.
    """
    first, second = read_point(land, a, "a"), read_point(land, b, "b")
    if torch.equal(first.point, second.point):
        raise InputError("a and b are the same point: there is no line between them")
    return first, second


def between(land: Landscape, a: PointLike, b: PointLike) -> Directions:
    """Return the direction from a to b; a is at coordinate 0 and b at 1.

    Args:
        land: The landscape.
        a: Point, state dict or module.
        b: The same.

    Raises:
        InputError: a and b are the same point.
    """
    first, second = read_ends(land, a, b)
    step = second.point - first.point
    length = float(step.double().norm())
    coordinates = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    return Directions(
        step[:, None],
        origin=first.point,
        layout=land.layout,
        kind="between",
        labels=(f"b - a, length {length:.3g}",),
        values=torch.tensor([length], dtype=torch.float64),
        anchors={"a": coordinates[0], "b": coordinates[1]},
        buffers=common_buffers(first, second),
    )


def plane_through(
    land: Landscape, a: PointLike, b: PointLike, c: PointLike
) -> Directions:
    """Return the plane through three points: u = b - a, v = (c - a) orthogonal to u.

    `.anchors` holds the coordinates: a at (0, 0), b at (1, 0), c at (s, 1) with
    s = <c - a, u> / |u|². Buffers of state dicts and modules are kept and move by the
    affine coordinates, `Directions.affine`.

    Args:
        land: The landscape.
        a: Point, state dict or module; the plane's origin.
        b: The same.
        c: The same.

    Raises:
        InputError: The three are collinear: |v| < 1e-6 |c - a|, or no larger than the
            rounding of the points in the landscape's dtype makes it.
    """
    corners = [
        read_point(land, given, name)
        for given, name in zip((a, b, c), "abc", strict=True)
    ]
    origin = corners[0].point
    u, w = (corner.point.double() - origin.double() for corner in corners[1:])
    if not (u.any() and w.any()):
        raise InputError("two of a, b, c are the same point: they span no plane")
    s = w.dot(u) / u.dot(u)
    v = w - s * u
    # What the rounding of the three points alone could put between c and the line.
    sizes = torch.stack([c.point.double().norm() for c in corners])
    rounding = 2 * torch.finfo(land.dtype).eps * sizes.dot(_spread(s))
    if v.norm() < max(1e-6 * w.norm(), rounding):
        raise InputError(
            f"a, b, c are collinear: c lies at {float(s):.6g} on the line from a to b"
        )
    lengths = torch.stack([u.norm(), v.norm()])
    anchors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    anchors[2, 0] = s
    return Directions(
        torch.stack([u, v], dim=1).to(land.dtype),
        origin=origin,
        layout=land.layout,
        kind="plane",
        labels=tuple(
            f"{name}, length {float(length):.3g}"
            for name, length in zip(("b - a", "c off the line"), lengths, strict=True)
        ),
        values=lengths.cpu(),
        anchors=dict(zip("abc", anchors, strict=True)),
        buffers=common_buffers(*corners),
    )


def _spread(s: Tensor) -> Tensor:
    """Return how errors of a, b and c show in c - a - s (b - a)."""
    return torch.stack([(1 - s).abs(), s.abs(), torch.ones_like(s)])


def common_buffers(*corners: Checkpoint) -> tuple[dict[str, Tensor], ...] | None:
    """Return the buffers of all corners, or None where none came with any.

    Raises:
        InputError: They came with some of the corners only.
    """
    kept = tuple(corner.buffers for corner in corners if corner.buffers)
    if not kept:
        return None
    if len(kept) < len(corners):
        raise InputError(
            "buffers came with some of the checkpoints only: give all of them as "
            "state dicts or modules, or all as points"
        )
    return kept
