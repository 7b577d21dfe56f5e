"""The simple noise scale B = tr C / |g|²: the batch size at which noise equals signal.

McCandlish, Kaplan, Amodei et al., "An Empirical Model of Large-Batch Training", 2018.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from thalweg.errors import DataError, InputError
from thalweg.landscapes._accumulate import WeightedMean

if TYPE_CHECKING:
    from thalweg.landscapes.network import NetworkLandscape

NoiseMethod = Literal["examples", "batches"]


@dataclass(frozen=True)
class NoiseScale:
    """A noise scale, in examples, and what it was made of.

    Args:
        value: B = trace / squared_norm; NaN where the estimate of |g|² is not positive.
        stderr: Standard error of `value`, over examples or batches.
        trace: tr C, the summed variance of one example's gradient.
        squared_norm: |g|².
        method: "examples" or "batches".
        note: What to know about it, or "".
    """

    value: float
    stderr: float
    trace: float
    squared_norm: float
    method: NoiseMethod
    note: str = ""


def noise_scale(
    land: "NetworkLandscape", point: Tensor, method: NoiseMethod = "examples"
) -> NoiseScale:
    """Return the simple noise scale, without weight decay.

    "examples" takes tr C and |g|² from the gradient of every example. "batches" needs
    the gradients of the landscape's m batches only: with |g_b|² of batch size n_b and
    |g|² of all N examples, E|g_b|² = |G|² + S / n_b, so
    S = (mean_b |g_b|² - |g|²) / (mean_b 1/n_b - 1/N) and |G|² = |g|² - S / N, both
    unbiased; for equal batches this is the two-batch-size form of the paper.

    Raises:
        InputError: `method` is none of these.
        DataError: One example, or under "batches" one batch.
    """
    if method == "examples":
        return _from_examples(land, point)
    if method == "batches":
        return _from_batches(land, point)
    raise InputError(f"method must be 'examples' or 'batches', got {method!r}")


def two_batch_sizes(
    squared_norms: Tensor, products: Tensor, sizes: Tensor
) -> NoiseScale:
    """Estimate the noise scale from the gradients g_b of m batches.

    Its standard error is the delta method's on the jackknife over batches.

    Args:
        squared_norms: |g_b|², shape (m,).
        products: g_b.g with g = Σ n_b g_b / Σ n_b, shape (m,).
        sizes: n_b, shape (m,).
    """
    q, d, n = squared_norms.double(), products.double(), sizes.double()
    m, N = len(n), n.sum()
    full = (n * d).sum() / N
    if m < 2:
        raise DataError(
            "the noise scale from batches needs at least two batches, got one: use "
            "`land.batches(size)`, or method='examples'"
        )
    S, G = _solve(q.mean(), full, (1 / n).mean(), N)
    if m > 2:
        rest = N - n
        # |g|² without batch b, from Σ n_c g_c - n_b g_b.
        fulls = (N**2 * full - 2 * N * n * d + n**2 * q) / rest**2
        means = (q.sum() - q) / (m - 1)
        inverses = ((1 / n).sum() - 1 / n) / (m - 1)
        leave_out = torch.stack(_solve(means, fulls, inverses, rest))
        covariance = torch.cov(leave_out, correction=0) * (m - 1)
    else:
        covariance = torch.full((2, 2), math.nan, dtype=torch.float64)
    return _ratio(S, G, covariance, "batches")


def _solve(
    mean: Tensor, full: Tensor, inverse: Tensor, total: Tensor
) -> tuple[Tensor, Tensor]:
    """Return S and |G|² of `mean` = |G|² + S inverse and `full` = |G|² + S / total."""
    S = (mean - full) / (inverse - 1 / total)
    return S, full - S / total


def _ratio(S: Tensor, G: Tensor, covariance: Tensor, method: NoiseMethod) -> NoiseScale:
    if not G > 0:
        note = (
            "the estimate of |g|² is not positive: the gradient is lost in its noise, "
            "at a stationary point or with too few batches"
        )
        return NoiseScale(math.nan, math.nan, float(S), float(G), method, note)
    B = S / G
    slope = torch.stack([torch.ones_like(B), -B]) / G
    variance = slope @ covariance @ slope
    return NoiseScale(
        float(B), float(variance.clamp(min=0).sqrt()), float(S), float(G), method
    )


def _from_batches(land: "NetworkLandscape", point: Tensor) -> NoiseScale:
    leaf = land._shared(point).detach().clone().requires_grad_()

    def gradients() -> Iterator[tuple[Tensor, float]]:
        with land._evaluating(leaf), torch.enable_grad():
            for batch in land._data:
                value, weight = land._batch_loss(land._parameters(leaf), batch)
                (gradient,) = torch.autograd.grad(value, leaf, materialize_grads=True)
                if land.reduction == "sum":
                    gradient, weight = gradient / batch.size, batch.size
                yield gradient, float(weight)

    total, norms, sizes = WeightedMean("mean", shards=land.shards), [], []
    for gradient, weight in gradients():
        total.add(gradient, weight)
        norms.append(gradient.double() @ gradient.double())
        sizes.append(weight)
    mean = total.result().double()
    products = [gradient.double() @ mean for gradient, _ in gradients()]
    counts = torch.tensor(sizes, dtype=torch.float64, device=mean.device)
    table = torch.stack([torch.stack(norms), torch.stack(products), counts], dim=1)
    if land.shards is not None:
        table = land.shards.concatenate(table)
    squares, alignments, counts = table.unbind(1)
    counts = counts * (land.rows / counts.sum())  # weights may count tokens
    return two_batch_sizes(squares, alignments, counts)


def _from_examples(land: "NetworkLandscape", point: Tensor) -> NoiseScale:
    covariance = land.gradient_covariance(point)
    with covariance:
        weights, distances, alignments = covariance.statistics()
    N = covariance.examples
    G = weights @ alignments  # Σ w_i g_i.g / Σ w = |g|²
    S = (weights @ distances) * N / (N - 1)
    # Influence of example i on S and on |g|², weights summing to one.
    deviations = torch.stack([distances - weights @ distances, 2 * (alignments - G)])
    influence = deviations * weights
    return _ratio(S, G, influence @ influence.T, "examples")
