"""Minibatch SGD on the matrices of a deep linear network, many replicas at once.

The brute force next to the equations of single modes: its noise also has components
off the diagonal of the mode matrix. A batch enters through T Tᵀ = Xᵀ X / B and
Y Tᵀ = (targets)ᵀ X / B alone, so a source of batches is a source of (T, Y).
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import DynamicsWarning, InputError
from thalweg.seeding import numpy_generator
from thalweg.solvable.deep_linear import products
from thalweg.solvable.deep_linear.blocks import misalignment, strengths, warn_of_blocks
from thalweg.solvable.deep_linear.checks import at_least_one, batch_size, positive
from thalweg.solvable.deep_linear.landscape import DeepLinear
from thalweg.solvable.deep_linear.noise import checked_batch, checked_data
from thalweg.solvable.deep_linear.statistics import Table

Source: TypeAlias = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class SGDEnsemble:
    """Statistics of replicas of SGD on the matrices; those not finite are left out.

    Strengths are those of the teacher's modes, or of blocks of equal ones; None where
    Sigma does not let the modes decouple.

    Attributes:
        steps: Recorded steps (records,); time is eta x steps.
        loss: Mean excess loss (records,).
        loss_variance: (records,), with n - 1.
        strengths: Mean (records, blocks).
        strength_variance: (records, blocks), with n - 1.
        strength_quantiles: (levels, records, blocks).
        misalignment: Mean norm of the mode matrix off its diagonal blocks (records,).
        levels: Of the quantiles.
        first_passage: First step at or above `passage` times the teacher's strength
            (paths, blocks), inf where there was none; None where not asked for.
        points: The first `keep` replicas at the records (records, keep, dim).
        final: All replicas at the last step (paths, dim).
        exploded: Number of replicas that left the range of the dtype.
        generator: What drew the noise.
    """

    steps: np.ndarray
    loss: np.ndarray
    loss_variance: np.ndarray
    strengths: np.ndarray | None
    strength_variance: np.ndarray | None
    strength_quantiles: np.ndarray | None
    misalignment: np.ndarray | None
    levels: tuple[float, ...]
    first_passage: np.ndarray | None
    points: Tensor
    final: Tensor
    exploded: int
    generator: str = "numpy"


@torch.no_grad()
def simulate_sgd(
    land: DeepLinear,
    start: Float[Tensor, "*n dim"],
    eta: float,
    B: int | None,
    *,
    n_steps: int,
    seed: int,
    n_paths: int | None,
    data: tuple[Tensor, Tensor] | None,
    replacement: bool,
    record_every: int | None,
    levels: tuple[float, ...],
    passage: float | None,
    keep: int,
) -> SGDEnsemble:
    """Simulate SGD; see `DeepLinear.simulate_sgd`."""
    eta = float(positive("eta", eta))
    at_least_one("n_steps", n_steps)
    at_least_one("keep", keep)
    every = at_least_one("record_every", record_every or max(1, n_steps // 100))
    points = _starts(land, start, n_paths)
    weights = [W.clone() for W in land.weights(points)]
    source = _source(land, B, points, data, replacement, seed)
    watch = None if passage is None else _Watch(land, passage, len(points))
    blocks = 0
    if land.decoupled:
        warn_of_blocks(land.modes, 5)
        blocks = len(land.modes.blocks)
    table = Table(blocks + 2, levels)
    kept, records = [], sorted({*range(0, n_steps + 1, every), n_steps})
    now = 0
    if watch is not None:
        watch.look(0, weights)
    for step in records:
        while now < step:
            _step(weights, eta, *source())
            now += 1
            if watch is not None:
                watch.look(now, weights)
        table.record(step, _summary(land, weights))
        kept.append(land.flatten([W[:keep] for W in weights]))
    final = land.flatten(weights)
    exploded = int((~torch.isfinite(land.loss(final))).sum())
    if exploded:
        warnings.warn(
            f"{exploded} of {len(final)} replicas exploded and are left out of the "
            "statistics; take a smaller eta or a larger B",
            DynamicsWarning,
            stacklevel=4,
        )
    mean, variance, quantiles = table.arrays()
    modal = blocks > 0
    return SGDEnsemble(
        np.array(records),
        mean[:, 0],
        variance[:, 0],
        mean[:, 2:] if modal else None,
        variance[:, 2:] if modal else None,
        quantiles[:, :, 2:] if modal else None,
        mean[:, 1] if modal else None,
        levels,
        None if watch is None else watch.first,
        torch.stack(kept).clone(),
        final.clone(),
        exploded,
    )


def _step(weights: list[Tensor], eta: float, T: Tensor, Y: Tensor) -> None:
    """Take W_l <- W_l - eta A_lᵀ (W T - Y) Tᵀ B_lᵀ, in place."""
    below = [weights[0]]
    for W in weights[1:]:
        below.append(W @ below[-1])
    back = (below[-1] @ T - Y) @ T.mT
    for layer in range(len(weights) - 1, 0, -1):
        W = weights[layer]
        pulled = W.mT @ back
        W.baddbmm_(back, below[layer - 1].mT, alpha=-eta)
        back = pulled
    weights[0].sub_(back, alpha=eta)


# Sources of batches -----------------------------------------------------------------


def _source(
    land: DeepLinear,
    B: int | None,
    points: Tensor,
    data: tuple[Tensor, Tensor] | None,
    replacement: bool,
    seed: int,
) -> Source:
    rng, n = numpy_generator(seed, "sgd"), len(points)
    if data is not None:
        X, Y = (part.to(points) for part in checked_data(land, *data))
        if B is None:
            return _fixed((X.mT / math.sqrt(len(X))), Y.mT / math.sqrt(len(Y)))
        B = checked_batch(B, len(X), replacement)
        return _batches_of(X, Y, B, n, replacement, rng)
    root = _square_root(land).to(points)
    M = land.teacher.to(points)
    if B is None:
        return _fixed(root, M @ root)
    return _fresh(root, M, land.sigma, batch_size(B), n, rng)


def _fixed(T: Tensor, Y: Tensor) -> Source:
    return lambda: (T, Y)


def _batches_of(
    X: Tensor, Y: Tensor, B: int, n: int, replacement: bool, rng: np.random.Generator
) -> Source:
    scale, N = 1 / math.sqrt(B), len(X)
    X, Y = X * scale, Y * scale

    def draw() -> tuple[Tensor, Tensor]:
        if replacement:
            which = rng.integers(N, size=(n, B))
        elif B == N:
            which = np.broadcast_to(np.arange(N), (n, N))
        else:
            which = np.argpartition(rng.random((n, N)), B, axis=1)[:, :B]
        rows = torch.from_numpy(np.ascontiguousarray(which)).to(X.device)
        return X[rows].mT, Y[rows].mT

    return draw


def _fresh(
    root: Tensor, M: Tensor, sigma: float, B: int, n: int, rng: np.random.Generator
) -> Source:
    """Draw T = Sigma^½ A / √B, with A Aᵀ a Wishart matrix of B degrees of freedom.

    For B >= d_0 the factor A is lower triangular: normal below its diagonal, chi on it
    (Bartlett's decomposition). Given T the label noise adds sigma Z / √B to Y = M T,
    Z normal. Else A holds the B inputs themselves.
    """
    d, scale = len(root), 1 / math.sqrt(B)
    inner = min(B, d)
    dtype = np.float64 if root.dtype == torch.float64 else np.float32
    halves = (B - np.arange(d)) / 2
    strict = torch.ones_like(root).tril_(-1)

    def normals(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape, dtype=dtype)).to(root)

    def draw() -> tuple[Tensor, Tensor]:
        A = normals(n, d, inner)
        if B >= d:
            chi = np.sqrt(2 * rng.standard_gamma(halves, size=(n, d)))
            A = A.mul_(strict)
            A.diagonal(dim1=-2, dim2=-1).copy_(torch.from_numpy(chi))
        T = root @ A.mul_(scale)
        Y = M @ T
        if sigma > 0:
            Y.add_(normals(n, len(M), inner), alpha=sigma * scale)
        return T, Y

    return draw


def _square_root(land: DeepLinear) -> Tensor:
    if land.whitened:
        return land.Sigma
    values, vectors = torch.linalg.eigh(land.Sigma)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.mT


# What is recorded -------------------------------------------------------------------


def _summary(land: DeepLinear, weights: list[Tensor]) -> np.ndarray:
    """Return loss, misalignment and strengths (2 + blocks, paths); NaN if exploded."""
    points = land.flatten(weights)
    loss = land.loss(points).double()
    rows = [loss, torch.zeros_like(loss)]
    if land.decoupled:
        C = land.mode_matrix(points).double()
        rows[1] = misalignment(C, land.modes)
        rows.extend(strengths(C, land.modes).unbind(-1))
    table = torch.stack(rows)
    return np.asarray(table.where(torch.isfinite(loss), math.nan).cpu().numpy())


class _Watch:
    """First passages of the strengths of all replicas."""

    def __init__(self, land: DeepLinear, passage: float, n: int) -> None:
        if not passage > 0:
            raise InputError(
                f"passage must be a positive fraction of a strength, got {passage}"
            )
        self._modes = land.modes
        self._levels = passage * strengths(torch.diag(self._modes.S), self._modes)
        self.first = np.full((n, len(self._levels)), math.inf)

    def look(self, step: int, weights: list[Tensor]) -> None:
        W = products.product(weights).double()
        C = self._modes.U.mT @ W @ self._modes.V
        there = (strengths(C, self._modes) >= self._levels).cpu().numpy()
        self.first[there & np.isinf(self.first)] = step


def _starts(land: DeepLinear, start: Tensor, n_paths: int | None) -> Tensor:
    """Return the starts (paths, dim), finite.

    Raises:
        InputError: They are no points, not finite, or n_paths disagrees.
    """
    if start.ndim not in (1, 2) or start.shape[-1] != land.dim:
        raise InputError(
            f"start must have shape ({land.dim},) or (paths, {land.dim}), got "
            f"{tuple(start.shape)}"
        )
    if start.dtype not in (torch.float32, torch.float64):
        raise InputError(f"start must be float32 or float64, got {start.dtype}")
    if not bool(torch.isfinite(start).all()):
        raise InputError("start must be finite")
    if start.ndim == 1:
        n = at_least_one("n_paths", 1 if n_paths is None else n_paths)
        return start.expand(n, -1)
    if n_paths not in (None, len(start)):
        raise InputError(
            f"n_paths must be the number of starts {len(start)}, got {n_paths}"
        )
    return start
