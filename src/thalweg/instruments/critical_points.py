"""Critical points of any landscape: minima and saddles, found, classified, grouped."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError, StructureError
from thalweg.instruments.curvature_frames import DENSE, dense_hessians, eigenframes
from thalweg.instruments.eigenpairs import Eigenpairs, top_eigenpairs
from thalweg.instruments.saddle_searches import (
    Follow,
    Newton,
    minimize_gradient_norm,
    search,
)
from thalweg.landscapes import Landscape, LinearOperator

Method = Literal["newton", "gradient_norm", "follow"]
Status = Literal["critical", "gradient_flat", "not_converged"]

FLAT = 1e-3  # |H g| / |g| against the curvature at the start
ZERO = 1e-6  # an eigenvalue is zero against the largest in modulus
FEW, MOST = 4, 128  # negative eigenvalues counted, above dimension `DENSE`


@dataclass(frozen=True)
class CriticalPoint:
    """Where a search ended, and what that place is.

    Args:
        point: The end.
        value: Loss there.
        gradient_norm: |g| there.
        status: "critical" if |g| is within tolerance; "gradient_flat" if it is not, but
            H g vanishes, so that |g| is stationary with g ≠ 0; else "not_converged".
        index: Number of eigenvalues of the Hessian below -1e-6 of the largest modulus.
        counted: Whether that is all of them; False where more than were looked for are
            negative, and `index` is a lower bound: above dimension 500 more than 128,
            or 4 at an end that is not critical.
        nullity: Number within that of zero; None where only the lowest were computed.
        eigenvalues: Ascending in float64: all, or the lowest up to the first that is
            not negative.
        steps: Steps tried.
        cluster: Number of the group of ends that are the same, -1 if not critical.
    """

    point: Float[Tensor, " dim"]
    value: float
    gradient_norm: float
    status: Status
    index: int
    counted: bool
    nullity: int | None
    eigenvalues: Float[Tensor, " values"]
    steps: int
    cluster: int = -1

    @property
    def kind(self) -> str:
        """Return "minimum", "maximum", "saddle", or the status if not critical.

        To second order: a minimum of positive `nullity` may have a way down along it.
        """
        if self.status != "critical":
            return self.status
        if self.index == 0:
            return "minimum"
        return "maximum" if self.index == self.point.shape[0] else "saddle"


def find_critical_points(
    land: Landscape,
    starts: Float[Tensor, "*starts dim"],
    tol: float = 1e-6,
    *,
    method: Method = "newton",
    index: int | None = None,
    max_steps: int = 200,
    radius: float = 0.5,
    distance: float = 1e-4,
) -> tuple[CriticalPoint, ...]:
    """Search for a critical point from every start, classify the ends and group them.

    "newton" takes s = -(H² + μ I)⁻¹ H g with μ adapted so that |g| falls: critical
    points of any index. "gradient_norm" minimizes |g|²/2, whose gradient is H g, by
    L-BFGS. "follow" climbs the `index` lowest eigenvectors and descends the others
    within a trust radius: a critical point of that very index, unless symmetries make
    H singular there (the mode that is climbed may then be one of the zeros).

    A search ends where |g| <= tol |g at its start|, or where rounding of the point
    would make such a gradient: 4 eps |λ|_max |point|, both at the start. A small slope
    of |g|² proves nothing: ends where it vanishes with g ≠ 0 are told apart as
    "gradient_flat".

    Args:
        land: The landscape, best in float64.
        starts: Points (dim,) or (n, dim). Up to dimension 500 all of them go together,
            except with "gradient_norm".
        tol: Relative to the start's gradient.
        method: "newton", "gradient_norm" or "follow".
        index: Index wanted; for "follow" only, which needs it.
        max_steps: Most steps of a search.
        radius: First and largest step length of "follow".
        distance: Critical ends of equal index are grouped with the best converged end
            this near, relative to max(1, |point|). A continuous symmetry makes of one
            critical point a manifold, whose ends stay apart.

    Returns:
        One a start, in their order.

    Raises:
        StructureError: Starts of another dimension.
        InputError: Starts, or the gradient there, not finite; an argument out of range.

    Warns:
        ConvergenceWarning: Above dimension 500, an eigenvalue at an end did not
            converge.

    Cost: a step takes one gradient and, where the last one moved, a Hessian: `dim`
    products up to dimension 500; above it the 60 of a Krylov space of the gradient (and
    20 for every eigenvector followed), whose vectors are held. "gradient_norm" takes
    one product a step at any dimension.

    Source: "Critical Point-Finding Methods Reveal Gradient-Flat Regions of Deep Network
    Losses", C. G. Frye, J. Simon, N. S. Wadia, A. Ligeralde, M. R. DeWeese, K. E.
    Bouchard, 2021; "On finding transition states", C. J. Cerjan, W. H. Miller, 1981.

    Examples:
        >>> from thalweg import Quadratic
        >>> land = Quadratic(torch.diag(torch.tensor([2.0, -1.0])))
        >>> (found,) = find_critical_points(land, torch.tensor([1.0, 1.0]))
        >>> found.kind, found.index
        ('saddle', 1)
    """
    points = _starts(land, starts)
    _check(land, tol, method, index, max_steps, radius, distance)
    parts = [points] if land.dim <= DENSE else points.split(1)
    found: list[CriticalPoint] = []
    for part in parts:
        g = land.gradient(part)
        if not bool(torch.isfinite(g).all()):
            raise InputError("the gradient at one of starts is not finite")
        scales = eigenframes(land, part, g).values.abs().amax(1)
        lengths = torch.linalg.vector_norm(part.double(), dim=1)
        floors = 4 * torch.finfo(land.dtype).eps * scales * lengths
        targets = tol * torch.linalg.vector_norm(g.double(), dim=1)
        targets = torch.maximum(targets, floors)
        if method == "gradient_norm":
            ends, steps = minimize_gradient_norm(land, part, targets, max_steps)
        else:
            rule = Newton() if index is None else Follow(index, radius)
            ends, steps = search(land, part, targets, rule, max_steps)
        found += _classify(land, ends, targets, scales, steps)
    return _grouped(found, distance)


def _classify(
    land: Landscape, ends: Tensor, targets: Tensor, scales: Tensor, steps: Tensor
) -> list[CriticalPoint]:
    """Return what the ends of searches are."""
    values, gradients = land.value_and_gradient(ends)
    norms = torch.linalg.vector_norm(gradients.double(), dim=1)
    critical = norms <= targets
    if land.dim <= DENSE:
        H = dense_hessians(land, ends)
        slopes = (H @ gradients.double()[..., None])[..., 0]
        spectra = [_whole(row.cpu()) for row in torch.linalg.eigvalsh(H)]
    else:
        with land.hessian(ends[0]) as operator:
            slopes = (operator @ gradients[0])[None].double()
            spectra = [_lowest(operator, MOST if critical[0] else FEW)]
    flat = torch.linalg.vector_norm(slopes, dim=1) <= FLAT * scales * norms
    found = []
    for i, (eigenvalues, size, nullity, counted) in enumerate(spectra):
        status: Status = "gradient_flat" if flat[i] else "not_converged"
        found.append(
            CriticalPoint(
                point=ends[i].clone(),
                value=float(values[i]),
                gradient_norm=float(norms[i]),
                status="critical" if critical[i] else status,
                index=int((eigenvalues < -ZERO * size).sum()),
                counted=counted,
                nullity=nullity,
                eigenvalues=eigenvalues,
                steps=int(steps[i]),
            )
        )
    return found


def _whole(eigenvalues: Tensor) -> tuple[Tensor, float, int | None, bool]:
    """Return all eigenvalues, the largest modulus, the nullity, and that is all."""
    size = float(eigenvalues.abs().max())
    return eigenvalues, size, int((eigenvalues.abs() <= ZERO * size).sum()), True


def _lowest(H: LinearOperator, most: int) -> tuple[Tensor, float, int | None, bool]:
    """Return the lowest eigenvalues up to the first not negative.

    A block of b starts finds at most b copies of a multiple eigenvalue, so both it and
    the number of pairs are doubled while they are exhausted.
    """
    size = float(top_eigenpairs(H, 1, which="LM", tol=1e-3).values.abs()[0])
    k, block = FEW, 2
    while True:
        pairs = top_eigenpairs(H, k, which="SA", tol=1e-4, block=block)
        negative = int((pairs.values < -ZERO * size).sum())
        hidden = _copies(pairs, negative, size) >= block
        if negative == k < most:
            k *= 2
        elif hidden and block < most:
            block *= 2
        else:
            break
    counted = negative < k and not hidden
    return pairs.values[: negative + 1].cpu(), size, None, counted


def _copies(pairs: Eigenpairs, negative: int, size: float) -> int:
    """Return how often the most frequent negative eigenvalue was found."""
    values = pairs.values[:negative]
    if negative == 0:
        return 0
    gaps = (values[:, None] - values).abs()
    return int((gaps <= ZERO * size).sum(1).max())


def _grouped(found: list[CriticalPoint], distance: float) -> tuple[CriticalPoint, ...]:
    """Number the groups; the best converged end of each is its center."""
    points = torch.stack([one.point for one in found]).double()
    indices = torch.tensor([one.index for one in found], device=points.device)
    labels = torch.tensor(
        [-1 if one.status == "critical" else -2 for one in found], device=points.device
    )
    groups = 0
    for i in sorted(range(len(found)), key=lambda i: found[i].gradient_norm):
        if labels[i] != -1:
            continue
        reach = distance * max(1.0, float(points[i].norm()))
        near = torch.linalg.vector_norm(points - points[i], dim=1) <= reach
        labels[near & (labels == -1) & (indices == indices[i])] = groups
        groups += 1
    return tuple(
        replace(one, cluster=max(label, -1))
        for one, label in zip(found, labels.tolist(), strict=True)
    )


def _starts(land: Landscape, starts: Tensor) -> Tensor:
    if starts.ndim not in (1, 2) or starts.shape[-1] != land.dim:
        raise StructureError(
            f"starts must have shape ({land.dim},) or (n, {land.dim}), got "
            f"{tuple(starts.shape)}"
        )
    if starts.numel() == 0:
        raise InputError("starts is empty; give at least one point")
    if not bool(torch.isfinite(starts).all()):
        raise InputError("starts has entries that are not finite")
    points = starts.detach().to(dtype=land.dtype, device=land.device)
    return points.reshape(-1, land.dim)


def _check(
    land: Landscape,
    tol: float,
    method: str,
    index: int | None,
    max_steps: int,
    radius: float,
    distance: float,
) -> None:
    if method not in get_args(Method):
        raise InputError(f"method must be one of {get_args(Method)}, got {method!r}")
    if (method == "follow") != (index is not None):
        raise InputError(
            f"index={index} with method={method!r}: method='follow' needs an index, "
            "the others take none"
        )
    if index is not None and not 0 <= index <= land.dim:
        raise InputError(f"index must be from 0 to {land.dim}, got {index}")
    for name, value in (
        ("tol", tol),
        ("radius", radius),
        ("distance", distance),
        ("max_steps", max_steps),
    ):
        if not value > 0:
            raise InputError(f"{name} must be positive, got {value}")
