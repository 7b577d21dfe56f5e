"""How often a random initialization is sign-locked, and obstructs a target."""

from math import comb

from thalweg.errors import InputError


def lock_probability(d: int, rho: float) -> float:
    """Return P(c < 0) of a neuron with independent Gaussian weights, one output.

    I_{rho / (1 + rho)}(d / 2, 1 / 2), the regularized incomplete beta function, with
    rho the variance of w2 over that of an entry of w1: (d + l) / (l + 1) for Xavier
    normal, d / l for Kaiming normal with one gain. d = 2: 1 - (1 + rho)^(-1/2).

    Args:
        d: Entries of w1, the hidden bias included if it is random.
        rho: Ratio of the variances.

    Raises:
        InputError: d below 1, or rho not positive.
    """
    from scipy.special import betainc

    if d < 1 or not rho > 0:
        raise InputError(f"d must be at least 1 and rho positive, got {d} and {rho}")
    return float(betainc(d / 2, 0.5, rho / (1 + rho)))


def obstruction_probability(
    neurons: int, lock: float, needed: tuple[int, int]
) -> float:
    """Return P(the signs of a random start cannot represent (p, q) neurons).

    Each neuron is locked positive or negative with probability lock / 2 each and free
    otherwise; obstructed is max(0, p - m+) + max(0, q - m-) > free. O(neurons²).

    Args:
        neurons: Hidden neurons.
        lock: P(c < 0) of one, as from `lock_probability`.
        needed: Neurons of positive and negative sign that the target needs.

    Raises:
        InputError: Negative numbers, or lock not in [0, 1].
    """
    if min(neurons, *needed) < 0 or not 0 <= lock <= 1:
        raise InputError(
            "neurons and needed must be at least 0 and lock in [0, 1], got "
            f"{neurons}, {needed} and {lock}"
        )
    p, q = needed
    total = 0.0
    for positive in range(neurons + 1):
        for negative in range(neurons - positive + 1):
            free = neurons - positive - negative
            if max(0, p - positive) + max(0, q - negative) <= free:
                continue
            ways = comb(neurons, positive) * comb(neurons - positive, negative)
            total += ways * (lock / 2) ** (positive + negative) * (1 - lock) ** free
    return total
