"""How often a random initialization is sign-locked, and obstructs a target."""

import math
from collections.abc import Sequence
from math import comb
from typing import TYPE_CHECKING

import numpy as np

from thalweg.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

SCHEMES: dict[str, str] = {
    "torch": "uniform",
    "kaiming_normal": "normal",
    "kaiming_uniform": "uniform",
    "xavier_normal": "normal",
}


def lock_probability(d: int, rho: float, law: str = "normal") -> float:
    """Return P(c < 0) of a neuron with independent weights and one output.

    Gaussian: I_{rho / (1 + rho)}(d / 2, 1 / 2), the regularized incomplete beta
    function; d = 2 gives 1 - (1 + rho)^(-1/2). Uniform around zero: for rho <= 1 the
    volume of a ball, V_d rho^(d/2) / (2^d (d + 1)); for rho >= d 1 - E|u| / sqrt(rho),
    u in the cube; between, by the characteristic function of |w1|² - w2²
    (Gil-Pelaez), to about 1e-8.

    Args:
        d: Entries of w1, the hidden bias included if it is random.
        rho: Variance of w2 over that of an entry of w1, see `variance_ratio`.
        law: "normal" or "uniform".

    Raises:
        InputError: d below 1, rho not positive, or an unknown law.
    """
    from scipy.special import betainc, gammaln

    if d < 1 or not rho > 0:
        raise InputError(f"d must be at least 1 and rho positive, got {d} and {rho}")
    if law == "normal":
        return float(betainc(d / 2, 0.5, rho / (1 + rho)))
    if law != "uniform":
        raise InputError(f'law must be "normal" or "uniform", got {law!r}')
    if rho <= 1:
        log_ball = d / 2 * math.log(math.pi) - gammaln(d / 2 + 1)
        return float(math.exp(log_ball + d / 2 * math.log(rho / 4)) / (d + 1))
    if rho >= d:  # the cube of w1 lies in the largest ball
        return 1 - _mean_length(d) / math.sqrt(rho)
    return _uniform_between(d, rho)


def _mean_length(d: int) -> float:
    """Return E sqrt(u_1² + ... + u_d²) for u uniform on [0, 1].

    E sqrt(S) is the integral over s of (1 - E exp(-s² S)) / s² over sqrt(pi).
    """
    from scipy.integrate import quad
    from scipy.special import erf

    def integrand(s: float) -> float:
        if s < 1e-4:
            return d / 3
        each = math.sqrt(math.pi) * float(erf(s)) / (2 * s)
        return -math.expm1(d * math.log(each)) / s**2

    near, _ = quad(integrand, 0, 1, epsabs=1e-12, epsrel=1e-12)
    far, _ = quad(integrand, 1, math.inf, epsabs=1e-12, epsrel=1e-12)
    return (near + far) / math.sqrt(math.pi)


def _uniform_between(d: int, rho: float) -> float:
    """Return P(u_1² + ... + u_d² < rho w²) for u, w uniform on [0, 1], 1 < rho < d.

    With Fresnel's integrals C and S, E exp(i t u²) = (C + i S)(s) / s, s² = 2 t / pi.
    """
    from scipy.integrate import quad
    from scipy.special import fresnel

    def transform(t: float) -> complex:
        s = math.sqrt(2 * abs(t) / math.pi)
        sine, cosine = fresnel(s)
        value = complex(cosine, sine) / s
        return value if t >= 0 else value.conjugate()

    def integrand(t: float) -> float:
        return (transform(t) ** d * transform(-rho * t)).imag / t

    # |E exp(i t u²)| <= 1 / s: the tail falls as t^-((d + 3) / 2); pieces of a few
    # oscillations of the sum and of w².
    total, low, width = 0.0, 0.0, 4 * math.pi / max(d, rho)
    while True:
        part, _ = quad(integrand, max(low, 1e-12), low + width, limit=200)
        total += part
        low += width
        log_bound = -(d + 1) / 2 * math.log(2 * low / math.pi)
        if log_bound < -25 or low > 4e4:
            break
        width = min(1.5 * width, 40 * math.pi / rho)
    return min(max(0.5 - total / math.pi, 0.0), 1.0)


def variance_ratio(inputs: int, neurons: int, scheme: str = "torch") -> float:
    """Return rho, the variance of w2 over that of w1, at an initialization.

    inputs / neurons where variances go with the fan-in (Kaiming with one gain, and
    torch's default), (inputs + neurons) / (neurons + 1) for Xavier. torch's default
    bias has the law of w1 and counts in d; those of the others start at zero.

    Raises:
        InputError: Sizes below 1, or an unknown scheme.
    """
    if inputs < 1 or neurons < 1:
        raise InputError(
            f"inputs and neurons must be at least 1, got {inputs} and {neurons}"
        )
    if scheme not in SCHEMES:
        raise InputError(f"scheme must be one of {tuple(SCHEMES)}, got {scheme!r}")
    if scheme == "xavier_normal":
        return (inputs + neurons) / (neurons + 1)
    return inputs / neurons


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


def lock_table(
    inputs: Sequence[int],
    neurons: Sequence[int],
    *,
    scheme: str = "torch",
    bias: bool = True,
    needed: tuple[int, int] = (1, 1),
) -> "xr.Dataset":
    """Return the probabilities of locked neurons over inputs and width, one output.

    Variables (inputs, neurons): `lock` of one neuron, `any` at least one locked, `all`
    all locked, `equal` all locked with one sign (a certain obstruction of targets that
    need both), and `obstructed` for a target that needs `needed`.

    Raises:
        InputError: Sizes below 1, or an unknown scheme.
    """
    import xarray as xr

    lock = np.array(
        [
            [
                lock_probability(
                    d + (bias and scheme == "torch"),
                    variance_ratio(d, width, scheme),
                    SCHEMES[scheme],
                )
                for width in neurons
            ]
            for d in inputs
        ]
    ).reshape(len(inputs), len(neurons))
    widths = np.asarray(neurons, dtype=np.float64)
    obstructed = np.array(
        [
            [
                obstruction_probability(n, p, needed)
                for n, p in zip(neurons, row, strict=True)
            ]
            for row in lock.tolist()
        ]
    ).reshape(lock.shape)
    axes = ("inputs", "neurons")
    return xr.Dataset(
        {
            "lock": (axes, lock),
            "any": (axes, -np.expm1(widths * np.log1p(-np.minimum(lock, 1 - 1e-16)))),
            "all": (axes, lock**widths),
            "equal": (axes, 2 * (lock / 2) ** widths),
            "obstructed": (axes, obstructed),
        },
        coords={"inputs": list(inputs), "neurons": list(neurons)},
        attrs={"scheme": scheme, "needed": str(tuple(needed))},
    )
