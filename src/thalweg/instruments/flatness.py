"""Flatness of a landscape at a point, by every measure in use, on one footing."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError
from thalweg.instruments.average_case import mean_loss, tolerated_noise
from thalweg.instruments.curvature_measures import (
    EXACT,
    Measured,
    fisher_rao,
    hessian_trace,
    largest_eigenvalue,
    relative_flatness,
)
from thalweg.instruments.neighborhood import (
    Adaptive,
    Neighborhood,
    adaptive_scale,
    gaussian_radius,
)
from thalweg.instruments.projections import read_norm
from thalweg.instruments.worst_case import (
    Search,
    largest_gradient,
    largest_increase,
)
from thalweg.landscapes import Landscape

Kind = Literal[
    "zeroth",
    "first",
    "average",
    "lpf",
    "trace",
    "lambda_max",
    "pac_bayes",
    "fisher_rao",
    "relative",
    "keskar",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
TABLE: tuple[Kind, ...] = ("zeroth", "first", "average", "trace", "lambda_max")


@dataclass(frozen=True)
class SharpnessResult:
    """One measure of sharpness, and everything needed to read it.

    Args:
        kind: Which measure.
        value: Its value.
        stderr: Standard error of a Monte Carlo value or over batches, the residual of
            an eigenvalue; 0.0 where there is none.
        radius: Radius of the ball, E|ξ| of Gaussian kinds, None where it has none.
        per_batch: The value on each batch of size m, in order.
        evaluations: Losses, gradients and products spent, each over the whole data
            (of its batch).
        settings: Ball, norm, scale T, ρ, σ, m, data and loss at the point: measures
            are comparable at equal settings and matching training loss only.
        note: What a reader should know, or "".
        per_layer: The parts of a layerwise measure by name.
    """

    kind: Kind
    value: float
    stderr: float
    radius: float | None
    per_batch: Float[Tensor, " batches"] | None
    evaluations: int
    settings: dict[str, object] = field(default_factory=dict)
    note: str = ""
    per_layer: dict[str, float] | None = None


def sharpness(
    land: Landscape,
    kind: Kind = "zeroth",
    rho: float = 0.05,
    *,
    at: Float[Tensor, " dim"] | None = None,
    sigma: float | None = None,
    method: Literal["pgd", "one_step"] = "pgd",
    m: int | None = None,
    adaptive: bool | Adaptive = False,
    eta: float | None = None,
    norm: str = "L2",
    steps: int = 20,
    momentum: float = 0.0,
    restarts: int = 1,
    samples: int = 32,
    rise: float = 0.1,
    fisher: Literal["true", "mc", "empirical"] = "true",
    layers: str | Iterable[str] = "*",
    exact: int = EXACT,
    seed: int = 0,
) -> SharpnessResult:
    """Measure how sharp the landscape is at a point.

    With L(θ + Tu), T the identity or adaptive, and g its gradient in u:

    - `"zeroth"`: max L - L(θ) over |u| <= ρ (Foret, Kleiner, Mobahi, Neyshabur 2021);
    - `"first"`: ρ max |g|* over |u| <= ρ, in the dual norm (Zhang, Xu, Yu, Zou, Cui
      2023);
    - `"average"`: E L(θ + Tξ) - L(θ), ξ ~ N(0, σ² I); `"lpf"` the mean itself (Bisla,
      Wang, Choromanska 2022);
    - `"trace"`, `"lambda_max"`: of T H T, the latter signed;
    - `"pac_bayes"`: 1/σ² for the σ at which E L(θ + σTξ) - L(θ) reaches `rise` (Jiang,
      Neyshabur, Mobahi, Krishnan, Bengio 2020; `adaptive="magnitude"` for theirs
      that knows the magnitudes);
    - `"fisher_rao"`: <θ, F θ>; `"relative"`: relative flatness, a sum over layers;
    - `"keskar"`: 100 (max L - L) / (1 + L) over |u_i| <= ρ, T = |θ| + 1 (Keskar,
      Mudigere, Nocedal, Smelyanskiy, Tang 2017).

    Computed maxima are lower bounds of the true ones. Promised of them: zeroth >= 0,
    pgd >= one_step, first >= ρ |g(θ)|. On a quadratic in the L2 ball they are exact.
    Sharpness correlates with hyper-parameters rather than generalization in many
    modern settings, and logit scale changes it (Andriushchenko, Croce, Müller, Hein,
    Flammarion, "A modern look at the relationship between sharpness and
    generalization", 2023).

    Args:
        land: Any landscape; m needs `batches`, "fisher_rao" needs `fisher`.
        kind: See above.
        rho: Radius of the ball.
        at: The point; the landscape's origin by default.
        sigma: Noise per coordinate of Gaussian kinds; ρ / sqrt(dim) by default, so
            that E|ξ|² = ρ².
        method: "one_step" (δ of length ρ along the gradient; along ∇|g| for "first"),
            or "pgd" (ascents from there, from the maximum of the quadratic model, from
            ± the top eigenvector and from random points).
        m: Average the measure over consecutive batches of m examples (m-sharpness); a
            last batch of fewer counts by its examples.
        adaptive: T: "elementwise" |θ| + η (also True), "magnitude" sqrt(θ² + η²),
            "filter" or "layer" norms + η; False for the identity.
        eta: η; 0 by default, 1e-3 for "magnitude".
        norm: Norm of the ball, "L2", "Linf" or "L1".
        steps: Steps of each ascent.
        momentum: Momentum of the ascents.
        restarts: Random starts.
        samples: Antithetic pairs of Gaussian kinds, probes of "relative".
        rise: Tolerated rise of the loss, for "pac_bayes".
        fisher: Which Fisher, for "fisher_rao".
        layers: Names or shell patterns, for "relative".
        exact: Most products for an exact value of "relative".
        seed: Seed of all draws.

    Raises:
        InputError: An option is unknown or out of range, or the landscape lacks what
            the kind needs.

    Cost: zeroth pgd (4 + restarts) · steps gradients and up to 40 products; first the
    same with a product beside each gradient; Gaussian kinds 2 · samples losses.
    """
    scheme = "elementwise" if adaptive is True else adaptive or None
    eta = (1e-3 if scheme == "magnitude" else 0.0) if eta is None else eta
    sigma = rho / math.sqrt(land.dim) if sigma is None else sigma
    _check(kind, rho, sigma, method, steps, restarts, samples, rise)
    search = Search(read_norm(norm), rho, method, steps, momentum, restarts, seed)
    point = land.point(at)
    if not bool(torch.isfinite(point).all()):
        raise InputError("the point has entries that are NaN or infinite")
    if kind == "keskar":
        scheme, eta = "elementwise", 1.0
        search = Search("Linf", rho, method, steps, momentum, restarts, seed)

    def measure(piece: Landscape) -> tuple[Measured, float, int]:
        area = Neighborhood(piece, point, adaptive_scale(piece, point, scheme, eta))
        base = float(area.losses(point.new_zeros(1, area.dim)))
        if kind == "fisher_rao":
            return fisher_rao(piece, point, fisher), base, area.evaluations + 1
        if kind == "relative":
            found = relative_flatness(piece, area, layers, samples, seed, exact)
        else:
            found = _measure(area, base, kind, search, sigma, samples, rise)
        if area.undefined:
            nan = f"the loss is NaN at {area.undefined} of the points looked at"
            found = found._replace(note="; ".join(filter(None, [found.note, nan])))
        return found, base, area.evaluations

    pieces = [land] if m is None else _batches(land, m)
    measured = [measure(piece) for piece in pieces]
    found, per_batch = measured[0][0], None
    shares = _shares(pieces)
    if m is not None:
        found, per_batch = _over_batches([one for one, _, _ in measured], shares)
    return SharpnessResult(
        kind=kind,
        value=found.value,
        stderr=found.stderr,
        radius=_radius(kind, rho, sigma, land.dim, found.value),
        per_batch=per_batch,
        evaluations=sum(spent for _, _, spent in measured),
        settings={
            "loss": sum(
                share * base
                for share, (_, base, _) in zip(shares.tolist(), measured, strict=True)
            ),
            "rho": rho,
            "sigma": sigma,
            "norm": search.norm,
            "adaptive": scheme,
            "eta": eta,
            "method": method,
            "m": m,
            "steps": steps,
            "restarts": restarts,
            "samples": samples,
            "rise": rise,
            "fisher": fisher,
            "seed": seed,
            "landscape": land.describe(),
        },
        note=found.note,
        per_layer=found.per_layer,
    )


def sharpness_table(
    land: Landscape,
    kinds: Sequence[Kind] = TABLE,
    rho: float = 0.05,
    *,
    at: Float[Tensor, " dim"] | None = None,
    seed: int = 0,
    **options: object,
) -> tuple[SharpnessResult, ...]:
    """Measure several kinds at one point, one result a row, each with its radius.

    Args:
        land: The landscape.
        kinds: Kinds of `ti.sharpness`.
        rho: Radius.
        at: The point; the landscape's origin by default.
        seed: Seed of all draws.
        **options: Further arguments of `ti.sharpness`.
    """
    return tuple(
        sharpness(land, kind, rho, at=at, seed=seed, **options)  # type: ignore[arg-type]  # checked there
        for kind in kinds
    )


def _measure(
    area: Neighborhood,
    base: float,
    kind: Kind,
    search: Search,
    sigma: float,
    samples: int,
    rise: float,
) -> Measured:
    if kind in ("zeroth", "keskar"):
        worst = largest_increase(area, search)
        factor = 100 / (1 + base) if kind == "keskar" else 1.0
        return Measured(factor * worst.value, 0.0, worst.note)
    if kind == "first":
        worst = largest_gradient(area, search)
        return Measured(search.rho * worst.value, 0.0, worst.note)
    if kind == "trace":
        return hessian_trace(area, search.seed)
    if kind == "lambda_max":
        return largest_eigenvalue(area, search.seed)
    if kind == "pac_bayes":
        tolerance = tolerated_noise(area, base, rise, sigma, samples, search.seed)
        value = tolerance.sigma**-2
        error = 2 * value * tolerance.stderr / tolerance.sigma
        return Measured(value, error, tolerance.note)
    mean = mean_loss(area, sigma, samples, search.seed)
    return Measured(mean.value - (base if kind == "average" else 0.0), mean.stderr)


def _check(
    kind: str,
    rho: float,
    sigma: float,
    method: str,
    steps: int,
    restarts: int,
    samples: int,
    rise: float,
) -> None:
    if kind not in KINDS:
        raise InputError(f"kind must be one of {KINDS}, got {kind!r}")
    if method not in ("pgd", "one_step"):
        raise InputError(f"method must be 'pgd' or 'one_step', got {method!r}")
    for name, number in (("rho", rho), ("sigma", sigma), ("rise", rise)):
        if not 0 < number < math.inf:
            raise InputError(f"{name} must be positive and finite, got {number}")
    for name, count, least in (
        ("steps", steps, 1),
        ("restarts", restarts, 0),
        ("samples", samples, 1),
    ):
        if count < least:
            raise InputError(f"{name} must be at least {least}, got {count}")


def _batches(land: Landscape, m: int) -> list[Landscape]:
    batches = getattr(land, "batches", None)
    if batches is None:
        raise InputError(
            f"m-sharpness needs a landscape with batches; a {type(land).__name__} "
            "has none"
        )
    if m < 1:
        raise InputError(f"m must be at least 1, got {m}")
    return list(batches(m))


def _shares(pieces: list[Landscape]) -> Float[Tensor, " pieces"]:
    """Return what share of the examples each batch has; equal where none says."""
    rows = torch.tensor([float(getattr(piece, "rows", 1)) for piece in pieces])
    return rows.double() / rows.double().sum()


def _over_batches(
    measured: list[Measured], shares: Float[Tensor, " pieces"]
) -> tuple[Measured, Tensor]:
    """Return the weighted mean over batches and its standard error."""
    values = torch.tensor([one.value for one in measured], dtype=torch.float64)
    count, mean = len(values), shares @ values
    spread = (shares * (values - mean)).square().sum()
    error = math.sqrt(count / (count - 1) * spread) if count > 1 else math.nan
    notes = "; ".join(sorted({one.note for one in measured if one.note}))
    per_layer = None
    if measured[0].per_layer is not None:
        tables = [one.per_layer or {} for one in measured]
        per_layer = {
            name: sum(
                share * table[name]
                for share, table in zip(shares.tolist(), tables, strict=True)
            )
            for name in tables[0]
        }
    return Measured(float(mean), error, notes, per_layer), values


def _radius(
    kind: Kind, rho: float, sigma: float, dim: int, value: float
) -> float | None:
    if kind in ("zeroth", "first", "keskar"):
        return rho
    if kind in ("average", "lpf"):
        return gaussian_radius(dim, sigma)
    if kind == "pac_bayes":
        return gaussian_radius(dim, value**-0.5) if value > 0 else math.inf
    return None
