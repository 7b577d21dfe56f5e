"""What half-precision parameters keep of a step from the origin."""

import warnings
from typing import TYPE_CHECKING

from torch import Tensor

from thalweg.errors import PrecisionWarning

if TYPE_CHECKING:
    from thalweg.landscapes.network import NetworkLandscape


def kept_share(land: "NetworkLandscape", point: Tensor) -> float:
    """Return |cast(x) - cast(origin)| / |x - origin|; NaN at the origin."""
    x, origin = land._checked(point), land.point()
    kept = _cast(land, x) - _cast(land, origin)
    return float(kept.double().norm() / (x - origin).double().norm())


def warn_of_lost_step(land: "NetworkLandscape", point: Tensor) -> bool:
    """Warn, and return True, if the cast loses the step in most entries that moved."""
    origin = land.point()
    point = point.to(origin)
    moved = point != origin
    changed = int(((_cast(land, point) != _cast(land, origin)) & moved).sum())
    lost = 2 * changed < int(moved.sum())
    if lost:
        warnings.warn(
            f"the step from the origin changes {changed} of "
            f"{int(moved.sum())} entries in the parameters' half precision; "
            "give `dtype=torch.float32` to evaluate there",
            PrecisionWarning,
            stacklevel=5,
        )
    return lost


def _cast(land: "NetworkLandscape", point: Tensor) -> Tensor:
    return land._parameter_map.join(land._parameters(point))
