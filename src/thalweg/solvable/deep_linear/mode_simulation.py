"""Ensembles of independent modes: the diffusion by three schemes, and SGD itself.

Statistics are taken as the ensemble runs; no path is stored. Modes are driven by
independent noise, which is exact for the dynamics projected on the diagonal of the mode
matrix; `matrix_simulation.py` has the whole.
"""

import math
import warnings
from dataclasses import dataclass
from typing import cast, get_args

import numpy as np
import torch

from thalweg.errors import DynamicsWarning, InputError
from thalweg.solvable.deep_linear.checks import (
    Reals,
    array,
    at_least_one,
    batch_size,
    depth,
    nonnegative,
    positive,
)
from thalweg.solvable.deep_linear.schemes import (
    ModePaths,
    Scheme,
    numpy_draws,
    strength,
)
from thalweg.solvable.deep_linear.statistics import Table, checked_bins

_CHUNK = 16_384  # paths whose buffers stay in the cache of a core
_DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class ModeEnsemble:
    """Statistics of an ensemble of paths of modes; those not finite are left out.

    Attributes:
        steps: Recorded steps of SGD (records,); time is eta x steps.
        mean: (records, modes).
        variance: (records, modes), with n - 1.
        quantiles: (levels, records, modes).
        levels: Of the quantiles.
        final: Strengths at the last step (paths, modes), not finite where exploded.
        first_passage: First step at or above `passage` times the target (paths, modes),
            inf where there was none; None where it was not asked for.
        counts: Visits to each bin (modes, bins) over the records from `burn_in` on;
            None where no bins were given.
        exploded: Paths that left the range of the dtype (modes,).
        crossings: Steps that crossed zero (modes,), counted where L >= 3 is odd. The
            diffusion never does: for its schemes they are errors of discretization.
        scheme: "euler", "tamed", "milstein" or "sgd".
        generator: What drew the noise: "torch" or "numpy".
    """

    steps: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    quantiles: np.ndarray
    levels: tuple[float, ...]
    final: np.ndarray
    first_passage: np.ndarray | None
    counts: np.ndarray | None
    exploded: np.ndarray
    crossings: np.ndarray
    scheme: str
    generator: str


@torch.inference_mode()
def simulate_modes(
    S: Reals,
    L: int,
    eta: float,
    B: int,
    *,
    s0: Reals,
    n_steps: int,
    n_paths: int,
    seed: int,
    sigma: float = 0.0,
    lam: Reals = 1.0,
    scheme: Scheme | str = "tamed",
    substeps: int = 1,
    ito_correction: bool = True,
    record_every: int | None = None,
    levels: tuple[float, ...] = (0.1, 0.5, 0.9),
    passage: float | None = None,
    bins: Reals | None = None,
    burn_in: int = 0,
    dtype: torch.dtype = torch.float32,
) -> ModeEnsemble:
    """Simulate modes under SGD noise, many paths at once.

    In a = s^(1/L). The diffusion is integrated in steps of eta / substeps:

        da = -lam a^(L-1) (s - S) dt + sqrt(eta/B) a^(L-1) sqrt(v(s)) dW.

    "sgd" is the discrete step with its exact noise, of non-Gaussian law: the batch sum
    of x² is lam chi² of B degrees, and given it the sum of x xi is Gaussian, so a step
    costs the same for every B. Paths are folded at zero: exactly where L is even, since
    a -> -a is a symmetry then; at odd L >= 3 the diffusion never crosses and a crossing
    of its schemes is folded and counted, while SGD may jump over zero and is not
    folded. A fixed seed gives the same paths for the same dtype, n_paths and scheme,
    whatever is recorded.

    Args:
        S: Targets, one or (modes,); zero is a mode to unlearn.
        L: Depth.
        eta: Learning rate.
        B: Batch size.
        s0: Starts: one, (modes,) or (paths, modes).
        n_steps: Steps of SGD.
        n_paths: Number of paths.
        seed: Seed of all noise.
        sigma: Standard deviation of the label noise.
        lam: Eigenvalue of Sigma on each mode.
        scheme: "tamed" (drift b / (1 + dt |b|): it cannot make a path explode, a kick
            of noise still can), "euler", "milstein" (strong order 1) or "sgd".
        substeps: Steps of the scheme to one of SGD.
        ito_correction: False leaves the Ito term out of the drift of s.
        record_every: Steps between records; a hundredth of all by default.
        levels: Quantiles to record.
        passage: Fraction of the target whose first passage is looked for.
        bins: Ascending edges of strengths for the histogram; may be infinite.
        burn_in: First step whose record enters the histogram.
        dtype: torch.float32 or torch.float64.

    Raises:
        InputError: An argument is out of its range; the message names it.

    Warns:
        DynamicsWarning: Paths exploded; statistics leave them out.
    """
    L, B, eta = depth(L), batch_size(B), float(positive("eta", eta))
    targets = np.atleast_1d(nonnegative("S", S))
    sigma = float(nonnegative("sigma", sigma))
    r = _modes(targets)
    rates = _by_mode("lam", positive("lam", lam), r)
    for name, count in (
        ("n_steps", n_steps), ("n_paths", n_paths), ("substeps", substeps)
    ):  # fmt: skip
        at_least_one(name, count)
    every = at_least_one("record_every", record_every or max(1, n_steps // 100))
    method = _checked_scheme(scheme, substeps, ito_correction)
    if dtype not in _DTYPES:
        raise InputError(f"dtype must be one of {_DTYPES}, got {dtype}")
    edges = checked_bins(bins)
    starts = _starts(s0, L, n_paths, r)
    S_column, lam_column = (
        torch.tensor(values[:, None], dtype=dtype) for values in (targets, rates)
    )
    chunks = [
        ModePaths(
            torch.tensor(starts[:, i : i + _CHUNK], dtype=dtype).contiguous(),
            S_column,
            L,
            eta,
            B,
            sigma,
            lam_column,
            method,
            substeps,
            ito_correction,
            (seed, i // _CHUNK),
        )
        for i in range(0, n_paths, _CHUNK)
    ]
    watches = (
        None
        if passage is None
        else [_Watch(c, _level(passage, S_column, L)) for c in chunks]
    )
    records = sorted({*range(0, n_steps + 1, every), n_steps})
    table = Table(r, levels, edges, burn_in)
    now = 0
    for step in records:
        for i, chunk in enumerate(chunks):
            for _ in range(step - now):
                chunk.step()
                if watches is not None:
                    watches[i].look()
        now = step
        final = np.concatenate([strength(c.a, L) for c in chunks], axis=1)
        table.record(step, final)
    exploded = (~np.isfinite(final)).sum(1)
    if exploded.any():
        warnings.warn(
            f"{int(exploded.sum())} of {final.size} paths exploded and are left out of "
            "the statistics; take the tamed scheme, more substeps or a smaller eta",
            DynamicsWarning,
            stacklevel=3,
        )
    return ModeEnsemble(
        np.array(records),
        *table.arrays(),
        levels,
        final.T,
        None if watches is None else np.concatenate([w.steps() for w in watches]),
        table.counts,
        exploded,
        np.sum([c.crossings.numpy() for c in chunks], axis=0),
        method,
        "numpy" if numpy_draws(dtype, method) else "torch",
    )


class _Watch:
    """First passages of a chunk: counts the steps of those that still wait."""

    def __init__(self, chunk: ModePaths, level: torch.Tensor) -> None:
        self._chunk, self._level = chunk, level
        self._waiting = torch.ones(chunk.a.shape, dtype=torch.int32)
        self._steps = torch.zeros_like(self._waiting)
        self._there = torch.empty(chunk.a.shape, dtype=torch.bool)
        self.look()

    def look(self) -> None:
        torch.ge(self._chunk.a, self._level, out=self._there)  # never true for NaN
        self._waiting.masked_fill_(self._there, 0)
        self._steps.add_(self._waiting)

    def steps(self) -> np.ndarray:
        steps = self._steps.double()
        return np.asarray(steps.masked_fill(self._waiting > 0, math.inf).T.numpy())


def _level(passage: float, S: torch.Tensor, L: int) -> torch.Tensor:
    if not passage > 0:
        raise InputError(f"passage must be a positive fraction of S, got {passage}")
    return (passage * S) ** (1 / L)


def _modes(S: np.ndarray) -> int:
    if S.ndim != 1 or not len(S):
        raise InputError(f"S must be a number or one axis of them, got shape {S.shape}")
    return len(S)


def _by_mode(name: str, values: np.ndarray, r: int) -> np.ndarray:
    if values.ndim > 1 or values.size not in (1, r):
        raise InputError(
            f"{name} must be a number or one of each of the {r} modes, got shape "
            f"{values.shape}"
        )
    return np.broadcast_to(values, (r,)).copy()


def _starts(s0: Reals, L: int, n_paths: int, r: int) -> np.ndarray:
    """Return a = s0^(1/L) (modes, paths)."""
    values = array("s0", s0) if L == 1 else nonnegative("s0", s0)
    if values.ndim > 2 or (values.ndim == 2 and values.shape != (n_paths, r)):
        raise InputError(
            f"s0 must be a number, {r} of them or of shape {(n_paths, r)}, got shape "
            f"{values.shape}"
        )
    if values.ndim < 2:
        values = np.broadcast_to(_by_mode("s0", values, r), (n_paths, r))
    return np.asarray((values ** (1 / L)).T)


def _checked_scheme(scheme: str, substeps: int, ito_correction: bool) -> Scheme:
    if scheme not in get_args(Scheme):
        raise InputError(f"scheme must be one of {get_args(Scheme)}, got {scheme!r}")
    if scheme == "sgd" and (substeps > 1 or not ito_correction):
        raise InputError(
            "scheme 'sgd' is discrete: substeps must be 1 and ito_correction True, got "
            f"{substeps} and {ito_correction}"
        )
    return cast(Scheme, scheme)
