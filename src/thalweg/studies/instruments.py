"""The instruments against closed forms, and against dense automatic differentiation.

Each claim bounds the worst error, over the seeds, of one instrument on a landscape
whose answer is known: a quadratic, linear and softmax regression (by algebra), and a
small tanh network on handwritten digits (its dense Hessian by `torch.func`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import xarray
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg import instruments as ti
from thalweg.data import LabeledData, digits
from thalweg.landscapes import NetworkLandscape, Quadratic
from thalweg.models import mlp
from thalweg.reporting import Section, Text
from thalweg.seeding import normal
from thalweg.studies.claims import Claim, Study, judge
from thalweg.studies.running import Size
from thalweg.studies.store import StudyStore
from thalweg.training import State, fit

NAME = "instruments"
PAPER = "The instruments of thalweg on landscapes that are solved exactly"

_F64 = torch.zeros((), dtype=torch.float64)
_ROWS = {"quick": 150, "default": 600, "full": 1797}


@dataclass(frozen=True)
class Check:
    """One instrument on one landscape: what is claimed, how large the error may be."""

    key: str
    claim: str
    bound: float
    error: Callable[[int, int], float]  # (seed, rows of digits) -> error


def run(size: Size, seeds: tuple[int, ...], store: StudyStore) -> Study:
    """Measure the errors of all checks and judge each by its worst seed."""
    errors = np.empty((len(CHECKS), len(seeds)))
    for i, check in enumerate(CHECKS):
        for j, seed in enumerate(seeds):
            measure = partial(_measure, check, seed, _ROWS[size])
            piece = store.once(f"{check.key}-seed{seed}", measure)
            errors[i, j] = piece["error"]
    claims = tuple(
        Claim(check.claim, worst, None, judge(worst, at_most=check.bound))
        for check, worst in zip(CHECKS, errors.max(1).tolist(), strict=True)
    )
    dataset = xarray.Dataset(
        {
            "error": (("check", "seed"), errors),
            "bound": ("check", np.array([check.bound for check in CHECKS])),
        },
        coords={"check": [check.key for check in CHECKS], "seed": list(seeds)},
    )
    text = Text(
        "Measured is the largest error over the seeds, relative to the exact answer "
        "where the claim says so. Exact answers come from algebra or from dense "
        "automatic differentiation in float64 and share no code with the instruments."
    )
    return Study(claims, {"errors": dataset}, (Section("How to read this", (text,)),))


def _measure(check: Check, seed: int, rows: int) -> dict[str, float]:
    return {"error": check.error(seed, rows)}


# --- a quadratic: everything is known ----------------------------------------------


def _spectrum(dim: int) -> Tensor:
    """Return a few large values, a decaying bulk and some negative ones."""
    bulk = 1.0 / torch.arange(1, dim - 7, dtype=torch.float64)
    ends = torch.tensor([9.0, 7.0, 5.0, 3.0, 2.0, -0.5, -0.2, -0.1]).double()
    return torch.cat([ends[:5], bulk, ends[5:]])


def _quadratic(seed: int, dim: int = 60) -> tuple[Quadratic, Tensor, Tensor]:
    """Return the landscape ½ xᵀ Q diag(values) Qᵀ x, its values and its Q."""
    values = _spectrum(dim)
    Q = torch.linalg.qr(normal((dim, dim), seed, "rotation", like=_F64)).Q
    A = Q @ torch.diag(values) @ Q.T
    return Quadratic((A + A.T) / 2), values.sort(descending=True).values, Q


def _relative(measured: Tensor | float, exact: Tensor | float) -> float:
    """Return max |measured - exact| / max |exact|."""
    a, b = (torch.as_tensor(v, dtype=torch.float64) for v in (measured, exact))
    return float((a - b).abs().max() / b.abs().max())


def _top_eigenvalues(seed: int, rows: int) -> float:
    land, values, _ = _quadratic(seed)
    pairs = ti.top_eigenpairs(land.hessian(land.point()), 5, seed=seed)
    return _relative(pairs.values, values[:5])


def _lowest_eigenvalue(seed: int, rows: int) -> float:
    land, values, _ = _quadratic(seed)
    pairs = ti.top_eigenpairs(land.hessian(land.point()), 1, which="SA", seed=seed)
    return _relative(pairs.values, values[-1:])


def _residuals(seed: int, rows: int) -> float:
    land, _, _ = _quadratic(seed)
    pairs = ti.top_eigenpairs(land.hessian(land.point()), 5, seed=seed)
    true = (land.matrix @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
    return float((true - pairs.residuals).abs().max())


def _trace(seed: int, rows: int) -> float:
    land, values, _ = _quadratic(seed, dim=400)
    estimate = ti.trace(land.hessian(land.point()), rtol=0.01, seed=seed)
    return abs(estimate.value - float(values.sum())) / (2 * estimate.stderr)


def _trace_low_rank(seed: int, rows: int) -> float:
    U = normal((200, 6), seed, "low rank", like=_F64)
    land = Quadratic(U @ U.T)
    estimate = ti.trace(land.hessian(land.point()), seed=seed)
    return _relative(estimate.value, U.square().sum())


def _moments(seed: int, rows: int) -> float:
    """For a diagonal matrix z.A^k z is exact for any signs z."""
    values = _spectrum(40)
    land = Quadratic(torch.diag(values))
    spectrum = ti.spectral_density(
        land.hessian(land.point()), probes=2, steps=20, seed=seed
    )
    return max(
        _relative(ti.spectral_moment(spectrum, order).value, (values**order).mean())
        for order in range(5)
    )


def _log_determinant(seed: int, rows: int) -> float:
    values = _spectrum(40)
    land = Quadratic(torch.diag(values))
    spectrum = ti.spectral_density(
        land.hessian(land.point()), probes=2, steps=40, seed=seed
    )
    exact = torch.log(values + 1.0).sum()
    return _relative(ti.log_determinant(spectrum, 1.0).value, exact)


def _surface(seed: int, rows: int) -> float:
    land, _, _ = _quadratic(seed)
    U = normal((land.dim, 2), seed, "plane", like=_F64)
    center = normal((land.dim,), seed, "center", like=_F64)
    axes = [np.linspace(-1.0, 1.0, 7), np.linspace(-0.5, 2.0, 5)]
    grid = ti.surface(land, U, axes, at=center, progress="none")
    x, y = (torch.from_numpy(axis) for axis in axes)
    points = center + x[:, None, None] * U[:, 0] + y[:, None] * U[:, 1]
    exact = torch.einsum("abi,ij,abj->ab", points, land.matrix, points) / 2
    return _relative(torch.from_numpy(grid["loss"].values), exact)


def _barrier(seed: int, rows: int) -> float:
    """Along a direction of negative curvature the barrier lies half-way."""
    land, values, Q = _quadratic(seed)
    direction = Q[:, -3]  # its eigenvalue is the first of the negative ones, -0.5
    found = ti.barrier(land, direction, -direction, points=25)
    return _relative(found.value, 0.25)


def _persistence(seed: int, rows: int) -> float:
    """Two wells (x² - 1)² + x/2 + y²: the higher one dies at the saddle between.

    The critical points in x are the roots of 4x³ - 4x + 1/2; the grid is placed so that
    it holds them.
    """
    critical = np.sort(np.roots([4.0, 0.0, -4.0, 0.5]).real)
    x = np.sort(np.concatenate([np.linspace(-1.5, 1.5, 21 + seed % 7), critical]))
    y = np.linspace(-1.0, 1.0, 9)
    heights = ((x**2 - 1) ** 2 + x / 2)[:, None] + y**2
    found = ti.persistence(heights)
    if len(found) != 2:
        return float("inf")
    low, saddle, high = (critical**2 - 1) ** 2 + critical / 2
    births = np.abs(found.birth - [low, high]).max()
    return float(max(births, abs(found.death[1] - saddle)))


def _sharpness_at_minimum(seed: int, rows: int) -> float:
    """At the minimum of ½ xᵀ A x: ½ ρ² λ_max and ρ² |A|."""
    land, values, _ = _quadratic(seed)
    rho = 0.05
    exact = {"zeroth": rho**2 * values[0] / 2, "first": rho**2 * values.abs().max()}
    return max(
        _relative(ti.sharpness(land, kind, rho, seed=seed).value, value)  # type: ignore[arg-type]  # keys of a dict are no literals
        for kind, value in exact.items()
    )


def _sharpness_elsewhere(seed: int, rows: int) -> float:
    """Away from it: the trust-region problem (μ - A) δ = g, |δ| = ρ, by bisection."""
    land, values, Q = _quadratic(seed)
    rho, x = 0.1, normal((land.dim,), seed, "point", like=_F64)
    eigenvalues, vectors = torch.linalg.eigh(land.matrix)
    g = vectors.T @ (land.matrix @ x)
    low, high = float(eigenvalues[-1]), float(eigenvalues[-1] + g.norm() / rho)
    for _ in range(200):
        mu = (low + high) / 2
        outside = float((g / (mu - eigenvalues)).norm()) > rho
        low, high = (mu, high) if outside else (low, mu)
    step = g / (high - eigenvalues)
    exact = g @ step + (eigenvalues * step**2).sum() / 2
    return _relative(ti.sharpness(land, "zeroth", rho, at=x, seed=seed).value, exact)


def _average_sharpness(seed: int, rows: int) -> float:
    """E L(θ + ξ) - L(θ) is ½ σ² tr A for Gaussian ξ; in standard errors."""
    land, values, _ = _quadratic(seed)
    found = ti.sharpness(land, "average", sigma=0.1, samples=64, seed=seed)
    return abs(found.value - 0.01 * float(values.sum()) / 2) / float(found.stderr or 0)


# --- networks whose curvature is known ---------------------------------------------


def _digits(seed: int, rows: int) -> LabeledData:
    data = digits().to(dtype=torch.float64)
    return data.subset(torch.arange(rows) + seed % (len(data) - rows + 1))


def _linear_regression(seed: int, rows: int) -> float:
    """MSE of a linear map: H = (2/(N C)) I_C (x) XᵀX."""
    X = _digits(seed, rows).inputs
    Y = normal((rows, 3), seed, "targets", like=_F64)
    model = mlp((64, 3), bias=False, seed=seed).double()
    batches = [(X[:100], Y[:100]), (X[100:], Y[100:])]  # unequal on purpose
    land = NetworkLandscape(model, F.mse_loss, batches)
    exact = torch.kron(torch.eye(3).double(), X.T @ X) * 2 / (rows * 3)
    return _relative(land.hessian(land.point()).dense(), exact)


def _softmax_regression(seed: int, rows: int) -> float:
    """Cross-entropy of a linear map: H = mean of (diag p - p pᵀ) (x) x xᵀ."""
    data = _digits(seed, rows)
    model = mlp((64, 10), bias=False, seed=seed).double()
    land = NetworkLandscape(model, F.cross_entropy, data)
    X = data.inputs
    p = (X @ land.point().reshape(10, 64).T).softmax(1)
    B = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    exact = torch.einsum("nab,ni,nj->aibj", B, X, X).reshape(640, 640) / rows
    pairs = ti.top_eigenpairs(land.hessian(land.point()), 5, seed=seed)
    # a linear map has no curvature of its own: the GGN is the Hessian
    ggn = _relative(land.ggn(land.point()).dense(), exact)
    values = _relative(pairs.values, torch.linalg.eigvalsh(exact).flip(0)[:5])
    return max(ggn, values)


def _trained(seed: int, rows: int) -> tuple[nn.Module, LabeledData]:
    data = _digits(seed, rows)
    model = mlp((64, 5, 10), seed=seed).double()

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor], state: State) -> Tensor:
        inputs, targets = batch
        return F.cross_entropy(model(inputs), targets)

    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    fit(model, loss, data, optimizer, epochs=5, batch_size=50, seed=seed)
    return model, data


def _dense_hessian(model: nn.Module, data: LabeledData) -> Tensor:
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def loss(vector: Tensor) -> Tensor:
        pieces = vector.split([s.numel() for s in shapes])
        weights = {
            n: piece.reshape(s)
            for n, piece, s in zip(names, pieces, shapes, strict=True)
        }
        output = torch.func.functional_call(model, weights, (data.inputs,))
        return F.cross_entropy(output, data.targets)

    return torch.func.hessian(loss)(flat)


def _network_eigenvalues(seed: int, rows: int) -> float:
    model, data = _trained(seed, rows)
    land = NetworkLandscape(model, F.cross_entropy, data)
    exact = torch.linalg.eigvalsh(_dense_hessian(model, data)).flip(0)
    pairs = ti.top_eigenpairs(land.hessian(land.point()), 5, seed=seed)
    return _relative(pairs.values, exact[:5])


def _network_trace(seed: int, rows: int) -> float:
    model, data = _trained(seed, rows)
    land = NetworkLandscape(model, F.cross_entropy, data)
    exact = float(_dense_hessian(model, data).trace())
    estimate = ti.trace(land.hessian(land.point()), rtol=0.01, seed=seed)
    return abs(estimate.value - exact) / (2 * estimate.stderr)


CHECKS = (
    Check(
        "top-eigenvalues",
        "Top five eigenvalues of a quadratic, relative error at most 1e-10",
        1e-10,
        _top_eigenvalues,
    ),
    Check(
        "lowest-eigenvalue",
        "Most negative eigenvalue of a quadratic, relative error at most 1e-6",
        1e-6,
        _lowest_eigenvalue,
    ),
    Check(
        "residuals",
        "Reported residuals of eigenpairs are the true ones to 1e-12",
        1e-12,
        _residuals,
    ),
    Check(
        "trace",
        "Trace of a quadratic of dimension 400 within 3 of its doubled standard errors",
        3.0,
        _trace,
    ),
    Check(
        "trace-low-rank",
        "Trace of a matrix of rank 6, relative error at most 1e-10",
        1e-10,
        _trace_low_rank,
    ),
    Check(
        "moments",
        "First four moments of a diagonal matrix by quadrature, error at most 1e-10",
        1e-10,
        _moments,
    ),
    Check(
        "log-determinant",
        "log det(A + I) of a diagonal matrix, relative error at most 1e-10",
        1e-10,
        _log_determinant,
    ),
    Check(
        "surface",
        "Loss surface of a quadratic, relative error at most 1e-12",
        1e-12,
        _surface,
    ),
    Check(
        "barrier",
        "Barrier between two points across a quadratic saddle, error at most 1e-12",
        1e-12,
        _barrier,
    ),
    Check(
        "persistence",
        "Minima and saddle of two wells by persistence, error at most 1e-12",
        1e-12,
        _persistence,
    ),
    Check(
        "sharpness-at-minimum",
        "Worst-case sharpness at a quadratic minimum, relative error at most 1e-6",
        1e-6,
        _sharpness_at_minimum,
    ),
    Check(
        "sharpness-elsewhere",
        "Worst-case sharpness away from it (trust region), relative error at most 1e-6",
        1e-6,
        _sharpness_elsewhere,
    ),
    Check(
        "average-sharpness",
        "Average sharpness of a quadratic within 4 of its standard errors",
        4.0,
        _average_sharpness,
    ),
    Check(
        "linear-regression",
        "Hessian of linear regression from unequal batches, error at most 1e-12",
        1e-12,
        _linear_regression,
    ),
    Check(
        "softmax-regression",
        "Eigenvalues and GGN of softmax regression, relative error at most 1e-10",
        1e-10,
        _softmax_regression,
    ),
    Check(
        "network-eigenvalues",
        "Top five eigenvalues of a tanh network on digits, relative error at most 1e-6",
        1e-6,
        _network_eigenvalues,
    ),
    Check(
        "network-trace",
        "Hessian trace of a tanh network within 3 of its doubled standard errors",
        3.0,
        _network_trace,
    ),
)
