"""Curves through a landscape, and the landscape of one dimension along a curve."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import comb
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError, StructureError
from thalweg.landscapes.base import Landscape
from thalweg.landscapes.between import BetweenLandscape
from thalweg.landscapes.inner_products import gram
from thalweg.provenance import fingerprint

if TYPE_CHECKING:
    from thalweg.landscapes.network import NetworkLandscape

Shape = Literal["bezier", "polyline"]
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_PANELS = np.linspace(0.0, 1.0, 17)


@dataclass(frozen=True)
class Curve:
    """A curve φ: [0, 1] -> R^dim, φ(t) = sum_k c_k(t) p_k, from p_0 to p_n.

    - "bezier": c_k(t) = C(n, k) (1 - t)^(n - k) t^k;
    - "polyline": straight from pivot to pivot, φ(knots_k) = p_k.

    The coefficients add up to 1; they are exact at both ends, so that φ(0) = p_0 and
    φ(1) = p_n to the bit.

    Args:
        shape: One of the two.
        pivots: p_0, ..., p_n, two or more.
        knots: Where a polyline has its pivots, increasing from 0 to 1; evenly by
            default. A Bézier curve has none.

    Raises:
        InputError: The shape is unknown, a pivot is not finite, or the knots are not
            such.
        StructureError: The pivots are not two points or more.

    Examples:
        >>> bend = Curve("bezier", torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, 0.0]]))
        >>> bend(0.5).tolist(), bend.derivative(0.0).tolist()
        ([1.0, 1.0], [2.0, 4.0])
    """

    shape: Shape
    pivots: Float[Tensor, "pivots dim"]
    knots: Float[Tensor, " pivots"] | None = None

    def __post_init__(self) -> None:
        if self.shape not in ("bezier", "polyline"):
            raise InputError(
                f"shape must be 'bezier' or 'polyline', got {self.shape!r}"
            )
        if self.pivots.ndim != 2 or len(self.pivots) < 2:
            raise StructureError(
                f"pivots must have shape (two or more, dim), got "
                f"{tuple(self.pivots.shape)}"
            )
        if not bool(torch.isfinite(self.pivots).all()):
            raise InputError("pivots must be finite, an entry is NaN or infinite")
        if self.shape == "bezier":
            if self.knots is not None:
                raise InputError("knots belong to a polyline, a Bézier curve has none")
            return
        knots = self.knots
        if knots is None:
            knots = torch.linspace(0, 1, len(self.pivots), dtype=torch.float64)
        knots = knots.detach().double().cpu()
        increasing = knots.shape == (len(self.pivots),) and bool(
            (knots.diff() > 0).all() and knots[0] == 0 and knots[-1] == 1
        )
        if not increasing:
            raise InputError(
                f"knots must increase from 0 to 1, one a pivot, got {knots.tolist()}"
            )
        object.__setattr__(self, "knots", knots)

    @property
    def dim(self) -> int:
        """Dimension of the space."""
        return self.pivots.shape[1]

    def coefficients(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch n"]:
        """Return c_k(t), in the dtype of t."""
        if self.shape == "bezier":
            return _bernstein(t, len(self.pivots) - 1)
        i, share = self._segment(t)
        low, high = _one_hot(i, share, self.pivots), _one_hot(i + 1, share, self.pivots)
        return low * (1 - share)[..., None] + high * share[..., None]

    def slopes(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch n"]:
        """Return c_k'(t); at a knot of a polyline that of the segment after it."""
        if self.shape == "bezier":
            n = len(self.pivots) - 1
            lower = _bernstein(t, n - 1)
            pad = torch.nn.functional.pad
            return n * (pad(lower, (1, 0)) - pad(lower, (0, 1)))
        i, share = self._segment(t)
        assert self.knots is not None
        width = self.knots.diff().to(t)[i]
        ends = [_one_hot(j, share, self.pivots) for j in (i + 1, i)]
        return (ends[0] - ends[1]) / width[..., None]

    def __call__(self, t: float | Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        """Return the points φ(t)."""
        return self.coefficients(self._position(t)).to(self.pivots) @ self.pivots

    def derivative(
        self, t: float | Float[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch d"]:
        """Return φ'(t)."""
        return self.slopes(self._position(t)).to(self.pivots) @ self.pivots

    def speed(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Return |φ'(t)|, in float64, from the pivots' inner products alone.

        Differentiable in the pivots.
        """
        slopes = self.slopes(t.detach().double().cpu())
        squared = ((slopes @ self._gram) * slopes).sum(-1)
        return squared.clamp(min=torch.finfo(squared.dtype).tiny).sqrt()

    def lengths(self, t: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Return the length of the curve from t = 0 to each t.

        By Gauss-Legendre quadrature between the t and the knots: exact for a polyline.
        """
        cuts = np.union1d(_PANELS if self.knots is None else self.knots.numpy(), t)
        total = np.pad(self._pieces(cuts).detach().numpy().cumsum(), (1, 0))
        return total[np.searchsorted(cuts, t)]

    @property
    def length(self) -> float:
        """Length of the whole curve."""
        return float(self.lengths(np.ones(1))[0])

    def relative_speed(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Return |φ'(t)| over the length, whose mean over t is 1; differentiable."""
        cuts = _PANELS if self.knots is None else self.knots.numpy()
        return self.speed(t) / self._pieces(cuts).sum()

    def describe(self) -> dict[str, object]:
        """Return what identifies the curve."""
        return {
            "shape": self.shape,
            "pivots": len(self.pivots),
            "knots": self.knots,
            "fingerprint": fingerprint(self.pivots, self.knots),
        }

    @cached_property
    def _gram(self) -> Tensor:
        centered = self.pivots - self.pivots[0]  # the slopes add up to 0
        return gram(centered, centered).cpu()

    def _pieces(self, cuts: np.ndarray) -> Tensor:
        """Return the lengths between neighboring cuts."""
        half = torch.from_numpy(np.diff(cuts) / 2)
        middle = torch.from_numpy((cuts[1:] + cuts[:-1]) / 2)
        nodes = middle[:, None] + half[:, None] * torch.from_numpy(_NODES)
        return (self.speed(nodes) @ torch.from_numpy(_WEIGHTS)) * half

    def _position(self, t: float | Tensor) -> Tensor:
        if isinstance(t, Tensor):
            return t
        return torch.tensor(t, dtype=torch.float64)

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the number of the segment of each t, and the share of it passed."""
        assert self.knots is not None
        knots = self.knots.to(t)
        i = torch.searchsorted(knots, t.detach().contiguous(), right=True) - 1
        i = i.clamp(0, len(knots) - 2)
        return i, (t - knots[i]) / (knots[i + 1] - knots[i])


def _bernstein(t: Tensor, n: int) -> Tensor:
    columns = [comb(n, k) * (1 - t) ** (n - k) * t**k for k in range(n + 1)]
    return torch.stack(columns, dim=-1)


def _one_hot(i: Tensor, like: Tensor, pivots: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(i, len(pivots)).to(like)


class CurveLandscape(Landscape):
    """t -> L(φ(t)), of dimension 1, standing at t = 0.

    Args:
        full: L.
        curve: φ.

    Raises:
        StructureError: The curve belongs to another dimension.
    """

    def __init__(self, full: Landscape, curve: Curve) -> None:
        if curve.dim != full.dim:
            raise StructureError(
                f"a curve in {curve.dim} dimensions does not fit a landscape of "
                f"dimension {full.dim}"
            )
        origin = torch.zeros(1, dtype=full.dtype, device=full.device)
        super().__init__(1, origin=origin)
        self.full, self.curve = full, curve

    def loss(self, points: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch"]:
        """Return L(φ(t))."""
        return self.full.loss(self.curve(points[..., 0]))

    def value_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return L and dL/dt = g(φ(t)) · φ'(t)."""
        t = points[..., 0]
        values, gradients = self.full.value_and_gradient(self.curve(t))
        slopes = (gradients * self.curve.derivative(t)).sum(-1, keepdim=True)
        return values, slopes.to(points)

    def describe(self) -> dict[str, object]:
        """Return the full landscape's description and the curve's."""
        return super().describe() | {
            "full": self.full.describe(),
            "curve": self.curve.describe(),
        }


class NetworkCurve(CurveLandscape):
    """t -> L(φ(t)) of a network whose buffers move along with t.

    They are those of the point t of the segment between the curve's ends (see
    `BetweenLandscape`), constant for derivatives.

    Args:
        ends: The landscape between both ends.
        curve: φ.
    """

    def __init__(self, ends: BetweenLandscape, curve: Curve) -> None:
        super().__init__(ends.full, curve)
        self.ends = ends

    @property
    def failures(self) -> list[str]:
        """Messages of the points that failed, under `on_error="record"`."""
        return self.ends.full.failures

    def placed(self, t: Float[Tensor, ""]) -> "NetworkLandscape":
        """Return the full landscape with the buffers that belong to t."""
        return self.ends.placed(t.detach().reshape(1))

    def loss(self, points: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch"]:
        """Return L(φ(t))."""
        t = points[..., 0]
        values = [self.placed(s).loss(self.curve(s)) for s in t.reshape(-1).unbind(0)]
        if not values:
            return torch.empty(t.shape, dtype=self.ends.full.accumulate)
        return torch.stack(values).reshape(t.shape)

    def value_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return L and dL/dt, the buffers at each point constant."""
        t = points[..., 0]
        pairs = [
            self.placed(s).value_and_gradient(self.curve(s))
            for s in t.reshape(-1).unbind(0)
        ]
        values = torch.stack([value for value, _ in pairs]).reshape(t.shape)
        gradients = torch.stack([g for _, g in pairs]).reshape(*t.shape, self.full.dim)
        slopes = (gradients * self.curve.derivative(t)).sum(-1, keepdim=True)
        return values, slopes.to(points)

    def evaluate_each(
        self, points: Iterable[Float[Tensor, " 1"]]
    ) -> list[dict[str, float]]:
        """Return loss and metrics at each t, from one forward pass each."""
        placed = ((self.placed(c[0]), self.curve(c[0])) for c in points)
        return [land.evaluate(point) for land, point in placed]
