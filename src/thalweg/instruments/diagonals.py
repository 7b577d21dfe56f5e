"""The diagonal of a symmetric operator, and its sums over blocks of parameters."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError
from thalweg.instruments.estimates import Estimate
from thalweg.instruments.sketches import (
    RangeSketch,
    block_size,
    exact_diagonal,
    multiply,
    sign_probe,
)
from thalweg.instruments.trace_estimators import mean, unit_leave_one_out
from thalweg.landscapes import Layout, LinearOperator, coefficients, inner

Method = Literal["xdiag", "hutchinson"]


@dataclass(frozen=True)
class DiagonalEstimate:
    """The diagonal of an operator, with a standard error for every entry.

    Args:
        value: The estimates, in float64.
        stderr: Their standard errors; 0 where the diagonal is exact. Those of "xdiag"
            come from correlated leave-one-out estimates and are indicative.
        products: Operator products spent.
        method: How it was made.
    """

    value: Float[Tensor, " dim"]
    stderr: Float[Tensor, " dim"]
    products: int
    method: str


def diagonal(
    A: LinearOperator,
    method: Method = "xdiag",
    *,
    probes: int = 32,
    seed: int = 0,
) -> DiagonalEstimate:
    """Estimate the diagonal of A with Rademacher probes.

    "hutchinson" is the mean of z * Az over the probes (Bekas's Σ z*Az / Σ z*z, z*z
    being 1). "xdiag" takes the diagonal of the part that a sketch captures exactly and
    estimates the rest, leaving each probe out of the sketch in turn: far better where
    few eigenvalues dominate. Where the products would reach the dimension the diagonal
    is taken exactly.

    Args:
        A: Symmetric operator of shape (dim, dim).
        method: "xdiag" or "hutchinson".
        probes: Number of probes, at least 2; two products each with "xdiag", one with
            "hutchinson".
        seed: Probe i depends on (seed, i) only.

    Raises:
        InputError: An argument is out of range, or a product is not finite.

    Cost: the products; "xdiag" 3 probes · dim numbers and 12 probes² dim flops.

    Sources: Bekas, Kokiopoulou, Saad, "An estimator for the diagonal of a matrix",
    2007; Epperly, Tropp, Webber, "XTrace: making the most of every sample in stochastic
    trace estimation", 2024.
    """
    if method not in get_args(Method):
        raise InputError(f"method must be one of {get_args(Method)}, got {method!r}")
    _check_probes(probes)
    if probes * (2 if method == "xdiag" else 1) >= A.dim:
        value = exact_diagonal(A)
        return DiagonalEstimate(value, torch.zeros_like(value), A.dim, "exact")
    before = A.products
    moments = (_xdiag if method == "xdiag" else _bekas)(A, probes, seed)
    return DiagonalEstimate(moments.mean, moments.stderr(), A.products - before, method)


def block_traces(
    A: LinearOperator,
    layout: Layout | None = None,
    *,
    groups: Mapping[str, str | Iterable[str]] | None = None,
    probes: int = 32,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Estimate the trace of every diagonal block, one product serving all blocks.

    tr A_ll is the mean of z_l.(Az)_l over Rademacher probes z; the terms with other
    blocks have mean 0 and add variance, |A_lm|_F² a block m ≠ l.

    Args:
        A: Symmetric operator.
        layout: How a vector is read; the operator's by default.
        groups: Name -> shell patterns of the blocks that it sums, to have one figure a
            layer; each block by itself by default.
        probes: Number of products, at least 2.
        seed: Probe i depends on (seed, i) only, and is that of `trace`.

    Raises:
        InputError: There is no layout, a pattern matches nothing, or fewer than two
            probes.
    """
    _check_probes(probes)
    layout = A.layout if layout is None else layout
    if layout is None:
        raise InputError("block_traces needs an operator with a layout, or layout=")
    if layout.dim != A.dim:
        raise InputError(f"layout has {layout.dim} entries, the operator {A.dim} rows")
    chosen = (
        {block.name: (block,) for block in layout.blocks}
        if groups is None
        else {name: layout.select(patterns) for name, patterns in groups.items()}
    )
    samples = np.empty((probes, len(chosen)))
    for i in range(probes):
        z = sign_probe(A, seed, "probe", i)
        product = multiply(A, z[None])[0]
        samples[i] = [
            sum(inner(z[block.slice], product[block.slice]) for block in blocks)
            for blocks in chosen.values()
        ]
    estimates = [mean(column) for column in samples.T]
    return {
        name: Estimate(value, stderr, probes, "hutchinson")
        for name, (value, stderr) in zip(chosen, estimates, strict=True)
    }


class _Moments:
    """Running mean and variance of vectors (Welford), in float64."""

    def __init__(self, A: LinearOperator) -> None:
        self.count = 0
        self.mean = torch.zeros(A.dim, dtype=torch.float64, device=A.device)
        self._squares = torch.zeros_like(self.mean)

    def add(self, sample: Tensor) -> None:
        self.count += 1
        change = sample.double() - self.mean
        self.mean += change / self.count
        self._squares.addcmul_(change, sample.double() - self.mean)

    def stderr(self) -> Tensor:
        if self.count == 1:  # one sample outside an exhausted sketch
            return torch.zeros_like(self.mean)
        return (self._squares / (self.count * (self.count - 1))).sqrt()


def _bekas(A: LinearOperator, probes: int, seed: int) -> _Moments:
    moments = _Moments(A)
    block = block_size(A)
    for start in range(0, probes, block):
        indices = range(start, min(start + block, probes))
        Z = torch.stack([sign_probe(A, seed, "probe", i) for i in indices])
        for sample in Z * multiply(A, Z):
            moments.add(sample)
    return moments


def _xdiag(A: LinearOperator, probes: int, seed: int) -> _Moments:
    """Average the leave-one-out diagonals d_i.

    With Y = AΩ = QR, Z = AQ and s_i the unit multiple of column i of R⁻ᵀ, the sketch
    without probe i projects on Q(I - s_i s_iᵀ)Qᵀ, and y_i less its projection is
    Q s_i (s_i.r_i), so

        d_i = rowsum(Q * Z) - (Q s_i) * (Z s_i) + ω_i * (Q s_i) (s_i.r_i).
    """
    Omega = torch.stack([sign_probe(A, seed, "probe", i) for i in range(probes)])
    sketch = RangeSketch(A, probes)
    Y = multiply(A, Omega)
    R, Z = sketch.extend(Y)
    Q = sketch.Q
    captured = (Q * Z).sum(0).double()
    moments = _Moments(A)
    if sketch.exhausted:
        for z, y in zip(Omega[len(Q) :], Y[len(Q) :], strict=True):
            moments.add(captured + (z * (y - Q.T @ coefficients(Q, y).to(y))).double())
        return moments
    S, lengths = unit_leave_one_out(R)
    small = torch.from_numpy(np.ascontiguousarray(S.T)).to(Q)
    for s, length, z in zip(small, lengths.tolist(), Omega, strict=True):
        outside = Q.T @ s
        moments.add(captured + (outside * (z * length - Z.T @ s)).double())
    return moments


def _check_probes(probes: int) -> None:
    if probes < 2:
        raise InputError(
            f"probes must be at least 2 for a standard error, got {probes}"
        )
