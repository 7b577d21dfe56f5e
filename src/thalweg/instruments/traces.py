"""Stochastic traces of symmetric operators that stop on their own standard error."""

import math
import warnings
from typing import Literal, get_args

from thalweg.errors import ConvergenceWarning, InputError
from thalweg.instruments.eigenpairs import DEFAULT_MEMORY
from thalweg.instruments.estimates import Estimate
from thalweg.instruments.sketches import block_size, exact_diagonal, vectors_within
from thalweg.instruments.trace_estimators import (
    Hutchinson,
    HutchPlusPlus,
    XTrace,
)
from thalweg.landscapes import LinearOperator

Method = Literal["xtrace", "hutch++", "hutchinson"]
_FIRST = {"xtrace": 20, "hutch++": 24, "hutchinson": 16}  # products before a stop
_PER_PROBE = {"xtrace": 2, "hutch++": 3, "hutchinson": 1}


def trace(
    A: LinearOperator,
    method: Method = "xtrace",
    *,
    rtol: float = 0.01,
    max_products: int | None = None,
    probes: int | None = None,
    memory: int = DEFAULT_MEMORY,
    seed: int = 0,
) -> Estimate:
    """Estimate tr A to a relative error, or with a fixed number of probes.

    The number of products m grows by a factor of 1.25, every product already made
    being used again, until twice the standard error is within rtol |estimate|: the
    leave-one-out estimates of XTrace are correlated and their spread can be optimistic
    by up to about 2. Where m would reach the dimension the trace is taken exactly, in
    `dim` further products.

    Args:
        A: Symmetric operator of shape (dim, dim).
        method: "xtrace"; "hutch++"; or "hutchinson", whose variance
            2(|A|_F² - Σ a_ii²)/m falls only slowly with m.
        rtol: Relative error asked for.
        max_products: Most products to spend; 1000 by default.
        probes: Take this many probes (two products each with "xtrace", three with
            "hutch++", one with "hutchinson") instead of stopping by `rtol`.
        memory: Bytes that the sketch, its probes and work space may take. A sketch that
            reaches it is kept as it is, and further probes see the remainder of A
            outside it.
        seed: Probe i depends on (seed, i) only.

    Raises:
        InputError: An argument is out of range, or a product is not finite.

    Warns:
        ConvergenceWarning: `max_products` were spent before the error was met.

    Cost: m products and, with "xtrace", about 3 m² dim flops.

    Examples:
        >>> from thalweg import Quadratic
        >>> land = Quadratic(torch.diag(torch.tensor([4.0, 2.0, 1.0, -1.0])))
        >>> trace(land.hessian(land.origin))
        Estimate(value=6.0, stderr=0.0, products=4, method='exact', ...)

    Sources: Epperly, Tropp, Webber, "XTrace: making the most of every sample in
    stochastic trace estimation", 2024; Meyer, Musco, Musco, Woodruff, "Hutch++: optimal
    stochastic trace estimation", 2021; Hutchinson, "A stochastic estimator of the
    trace of the influence matrix for Laplacian smoothing splines", 1989.
    """
    limit = 1000 if max_products is None else max_products
    _check(method, rtol, limit, probes)
    target = min(_FIRST[method], limit)
    if probes is not None:
        target = limit = probes * _PER_PROBE[method]
    if target >= A.dim:
        return _exact(A, 0)
    before = A.products
    estimator = _estimator(A, method, limit, memory, seed)
    while True:
        estimator.grow(target - (A.products - before))
        value, stderr = estimator.estimate()
        spent = A.products - before
        met = 2 * stderr <= rtol * abs(value)
        if met or probes is not None or limit - spent < _PER_PROBE[method]:
            break
        target = min(math.ceil(1.25 * spent) + 1, limit)
        if target >= A.dim and spent + A.dim <= limit:
            return _exact(A, spent)
    if not met and probes is None:
        warnings.warn(
            f"the trace {value:.6g} has a standard error of {stderr:.2g} after {spent} "
            f"products, more than half of rtol={rtol:g}: raise max_products, or rtol",
            ConvergenceWarning,
            stacklevel=2,
        )
    return Estimate(value, stderr, spent, method, bool(met), estimator.note)


def _check(method: str, rtol: float, limit: int, probes: int | None) -> None:
    if method not in get_args(Method):
        raise InputError(f"method must be one of {get_args(Method)}, got {method!r}")
    if not rtol > 0:
        raise InputError(f"rtol must be positive, got {rtol}")
    if probes is not None and probes < 2:
        raise InputError(
            f"probes must be at least 2 for a standard error, got {probes}"
        )
    if limit < 2 * _PER_PROBE[method]:
        raise InputError(
            f"max_products must be at least {2 * _PER_PROBE[method]} for a standard "
            f"error with {method!r}, got {limit}"
        )


def _estimator(
    A: LinearOperator, method: Method, limit: int, memory: int, seed: int
) -> XTrace | HutchPlusPlus | Hutchinson:
    """Return the estimator, its sketch, probes and work space within `memory`."""
    if method == "hutchinson":
        return Hutchinson(A, seed)
    fits = vectors_within(A, memory)
    block = block_size(A, memory // 16)
    rows = min(max(fits - 5 * block, 0) // 2, limit // _PER_PROBE[method])
    kind = XTrace if method == "xtrace" else HutchPlusPlus
    return kind(A, rows, block, seed)


def _exact(A: LinearOperator, spent: int) -> Estimate:
    total = float(exact_diagonal(A).sum())
    return Estimate(total, 0.0, spent + A.dim, "exact")
