"""Lines: a landscape along the segment from one point to another."""

from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg.errors import InputError
from thalweg.instruments.planes import PointLike, between
from thalweg.instruments.sampling import losses
from thalweg.instruments.surfaces import measure_grid
from thalweg.landscapes import Landscape

if TYPE_CHECKING:
    import xarray


def line(
    land: Landscape, a: PointLike, b: PointLike, points: int = 25, **settings: Any
) -> "xarray.Dataset":
    """Evaluate the loss at a + t (b - a) for `points` values of t from 0 to 1.

    With state dicts or modules the floating buffers move too, as the landscape's
    `buffers` says. Costs one evaluation a point.

    Args:
        land: The landscape.
        a: Point, state dict or module at t = 0.
        b: The same at t = 1.
        points: How many, both ends included, at least 2.
        settings: As of `surface`: store, executor, progress, on_error, threads.

    Returns:
        Dim `t`; variables and attributes as of `surface`.

    Raises:
        InputError: `points` is below 2, or a and b are the same point.
        CheckpointError: a or b is not finite.
    """
    if points < 2:
        raise InputError(f"points must be at least 2, both ends, got {points}")
    axis = {"t": np.linspace(0.0, 1.0, points)}
    return measure_grid(
        "line", losses, land, between(land, a, b), axis, None, **settings
    )
