"""How far two persistence diagrams are apart."""

import numpy as np

from thalweg.errors import InputError
from thalweg.instruments.topology import Pairs

MOST_PAIRS = 6000  # of both diagrams, for an exact assignment


def bottleneck_distance(a: Pairs, b: Pairs) -> float:
    """Return the bottleneck distance of two diagrams of degree 0.

    The least over all matchings of the largest distance |.|_inf between matched points;
    a point may be matched to the diagonal. It is at most the largest difference of the
    two surfaces (Cohen-Steiner, Edelsbrunner, Harer, "Stability of persistence
    diagrams", 2007) where no essential class has to be capped: deaths at infinity are
    set to the largest finite value of either diagram.
    """
    from gudhi import bottleneck_distance as distance

    return float(distance(*_capped(a, b), e=0))


def wasserstein_distance(a: Pairs, b: Pairs, order: float = 1.0) -> float:
    """Return the Wasserstein distance of two diagrams of degree 0.

    (min over matchings of sum |.|_inf^order)^(1 / order), the diagonal free to match
    and deaths capped as for `ti.bottleneck_distance`, which is the limit of large
    orders. Exact, by an assignment of n + m points, O((n + m)^3).

    Raises:
        InputError: The order is below 1 or not finite, or the diagrams hold more than
            6,000 pairs.
    """
    from scipy.optimize import linear_sum_assignment

    if not 1 <= order < np.inf:
        raise InputError(
            f"order must be finite and at least 1, got {order}; for infinity use "
            "ti.bottleneck_distance"
        )
    first, second = _capped(a, b)
    n, m = len(first), len(second)
    if n + m > MOST_PAIRS:
        raise InputError(
            f"the diagrams hold {n} and {m} pairs, together at most {MOST_PAIRS} can "
            "be matched: leave the short ones out with `.above(threshold)`"
        )
    # Each point may go to the diagonal, and diagonal to diagonal costs nothing.
    costs = np.zeros((n + m, n + m))
    costs[:n, :m] = np.abs(first[:, None] - second[None]).max(-1)
    costs[:n, m:] = (first[:, 1] - first[:, 0])[:, None] / 2
    costs[n:, :m] = (second[:, 1] - second[:, 0])[None] / 2
    largest = costs.max(initial=0.0)
    if largest == 0:
        return 0.0
    costs = (costs / largest) ** order
    return float(largest * costs[linear_sum_assignment(costs)].sum() ** (1 / order))


def _capped(a: Pairs, b: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Return the points of both diagrams, none of them infinite."""
    finite = np.concatenate([a.birth, a.death, b.birth, b.death])
    finite = finite[np.isfinite(finite)]
    cap = float(finite.max()) if len(finite) else 0.0
    first, second = (pairs.capped(cap)[np.isfinite(pairs.birth)] for pairs in (a, b))
    return first, second
