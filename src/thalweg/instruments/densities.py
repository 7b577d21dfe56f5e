"""The spectral density of a symmetric operator by stochastic Lanczos quadrature."""

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float

from thalweg.errors import InputError
from thalweg.execution import Store
from thalweg.instruments.eigenpairs import DEFAULT_MEMORY
from thalweg.instruments.lanczos import Lanczos
from thalweg.instruments.sketches import sign_probe, vectors_within
from thalweg.landscapes import LinearOperator
from thalweg.provenance import Meter, attributes

if TYPE_CHECKING:
    import xarray as xr

_GRID = 1024


def spectral_density(
    A: LinearOperator,
    probes: int = 10,
    steps: int = 80,
    *,
    sigma: float | Literal["auto"] = "auto",
    seed: int = 0,
    memory: int = DEFAULT_MEMORY,
    store: Store | None = None,
) -> "xr.Dataset":
    r"""Estimate the distribution of the eigenvalues.

    Each probe is a Rademacher vector z; `steps` Lanczos steps from z/|z| give nodes
    θ_i (Ritz values) and weights w_i (squared first components of their vectors), a
    Gauss quadrature: Σ w_i p(θ_i) = z.p(A)z/|z|² for every polynomial p of degree
    2 steps - 1. The density is the mean over probes of Σ w_i N(t; θ_i, σ²).

    The Dataset holds `nodes` and `weights` (probe, step), `density` and its standard
    error over the probes `density_stderr` on the grid `t`. Raw nodes stay in it:
    `smooth_density` draws another σ without products, `spectral_sum` and its kin give
    tr f(A). A probe whose Krylov space ends early is filled up with weights 0.

    Args:
        A: Symmetric operator of shape (dim, dim).
        probes: Number of start vectors; probe i depends on (seed, i) only.
        steps: Products a probe; at most dim, and what the memory holds (the attribute
            `note` says so).
        sigma: Width of the Gaussian in units of the eigenvalues; "auto" is 1 % of the
            range of the nodes.
        seed: Seed of the probes.
        memory: Bytes that the basis of one probe may take.
        store: Where finished probes are kept, and read from by a run that goes on. Its
            plan says which operator it belongs to.

    Raises:
        InputError: An argument is out of range, or a product is not finite.

    Cost: probes · steps products and 2 probes · steps² dim flops.

    Examples:
        >>> from thalweg import Quadratic
        >>> land = Quadratic(torch.diag(torch.tensor([4.0, 2.0, 1.0, -1.0])))
        >>> spectrum = spectral_density(land.hessian(land.origin), probes=2)
        >>> round(float(spectrum.attrs["mass_below_zero"]), 6)
        0.25

    Sources: Ubaru, Chen, Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos
    quadrature", 2017; Ghorbani, Krishnan, Xiao, "An investigation into neural net
    optimization via Hessian eigenvalue density", 2019.
    """
    import xarray as xr

    _check(probes, steps, sigma)
    held, note = _steps(A, steps, memory)
    nodes = np.empty((probes, held))
    weights = np.empty((probes, held))
    before = A.products
    with Meter() as meter:
        buffer = torch.empty(held, A.dim, dtype=A.dtype, device=A.device)
        done = store.done() if store else set()
        for i in range(probes):
            key = f"slq-seed{seed}-steps{held}-probe{i}"
            if store and key in done:
                arrays = store.read(key)
                nodes[i], weights[i] = arrays["nodes"], arrays["weights"]
                continue
            nodes[i], weights[i] = _quadrature(A, seed, i, buffer)
            if store:
                store.write(key, {"nodes": nodes[i], "weights": weights[i]})
    meter.add(products=A.products - before)
    dataset = xr.Dataset(
        {"nodes": (("probe", "step"), nodes), "weights": (("probe", "step"), weights)},
        attrs=attributes(
            seed=seed,
            cost=meter,
            kind="spectral density",
            operator=type(A).__name__,
            dim=A.dim,
            dtype=str(A.dtype).removeprefix("torch."),
            probes=probes,
            steps=held,
            note=note,
        ),
    )
    return smooth_density(dataset, sigma)


def smooth_density(
    spectrum: "xr.Dataset",
    sigma: float | Literal["auto"] = "auto",
    *,
    grid: Float[np.ndarray, " t"] | None = None,
) -> "xr.Dataset":
    """Return the same spectrum with its density drawn at another width, or grid.

    Attributes `mass_below_zero` and `mass_at_zero` (within one cell of the grid) are
    numbers that a picture cannot show.

    Args:
        spectrum: A result of `spectral_density`.
        sigma: Width of the Gaussian; "auto" is 1 % of the range of the nodes.
        grid: Points of the density, ascending; 1024 by default, three widths beyond the
            outermost nodes.

    Raises:
        InputError: `sigma` is not positive, or `grid` not ascending and finite.
    """
    nodes, weights = spectrum["nodes"].values, spectrum["weights"].values
    width = _width(nodes) if sigma == "auto" else float(sigma)
    if not (width > 0 and np.isfinite(width)):
        raise InputError(f"sigma must be positive and finite, or 'auto', got {sigma}")
    if grid is None:
        margin = 3 * width
        grid = np.linspace(nodes.min() - margin, nodes.max() + margin, _GRID)
    elif len(grid) < 2 or not (np.isfinite(grid).all() and (np.diff(grid) > 0).all()):
        raise InputError("grid must have at least two ascending finite points")
    density = np.stack(
        [
            np.exp(-0.5 * ((grid[:, None] - theta) / width) ** 2) @ w
            for theta, w in zip(nodes, weights, strict=True)
        ]
    ) / (width * np.sqrt(2 * np.pi))
    cell = float(np.diff(grid).max())
    zero = zero_level(spectrum)
    stderr = (
        density.std(0, ddof=1) / np.sqrt(len(density))
        if len(density) > 1
        else (np.full(len(grid), np.nan))
    )
    result = spectrum.drop_vars(["density", "density_stderr", "t"], errors="ignore")
    result = result.assign_coords(t=("t", grid)).assign(
        density=("t", density.mean(0)), density_stderr=("t", stderr)
    )
    return result.assign_attrs(
        attributes(
            sigma=width,
            mass_below_zero=float((weights * (nodes < -zero)).sum(1).mean()),
            mass_at_zero=float((weights * (np.abs(nodes) <= cell)).sum(1).mean()),
            zero_cell=cell,
        )
    )


def zero_level(spectrum: "xr.Dataset") -> float:
    """Return the modulus below which a node is zero to working precision."""
    eps = np.finfo(spectrum.attrs["dtype"]).eps
    return float(100 * eps * np.abs(spectrum["nodes"].values).max())


def _check(probes: int, steps: int, sigma: float | str) -> None:
    if probes < 1:
        raise InputError(f"probes must be at least 1, got {probes}")
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}")
    if sigma != "auto" and not (isinstance(sigma, float | int) and sigma > 0):
        raise InputError(f"sigma must be positive, or 'auto', got {sigma!r}")


def _steps(A: LinearOperator, steps: int, memory: int) -> tuple[int, str]:
    fits = max(vectors_within(A, memory), 1)
    held = min(steps, A.dim, fits)
    if fits < min(steps, A.dim):
        return held, f"{held} steps instead of {steps}: limited by memory={memory}"
    return held, ""


def _quadrature(
    A: LinearOperator, seed: int, index: int, buffer: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights of one probe, filled up with weight 0."""
    steps = len(buffer)
    start = sign_probe(A, seed, "probe", index)
    process = Lanczos(A, start[:, None], rows=steps, seed=seed, buffer=buffer)
    while process.processed < steps and not process.invariant:
        process.step()
    values, S, _ = process.ritz()
    nodes, weights = np.full(steps, values[-1]), np.zeros(steps)
    nodes[: len(values)], weights[: len(values)] = values, S[0] ** 2
    return nodes, weights


def _width(nodes: np.ndarray) -> float:
    """Return 1 % of the range of the nodes; of their size where they are all one."""
    size = float(np.abs(nodes).max())
    reach = float(np.ptp(nodes))
    return 0.01 * (reach if reach > 1e-6 * size else size or 1.0)
