"""The stationary law of one mode under SGD noise, and approximations of it.

The zero-flux density of the diffusion in `diffusion.py`, for lam = 1 (else eta -> eta
lam and sigma² -> sigma²/lam):

    p(s) ∝ s^(-3+3/L) / v(s) exp( (2B / (eta L)) ∫ˢ (S - x) / (x^(2-2/L) v(x)) dx ).

With z = S + i sigma/√2 the integrand is -½ Re x^(2/L-2) / (x - z), so the integral is a
sum of L logarithms. In logarithms throughout: the exponent may be of order 1e5.
"""

import math
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias, get_args

import numpy as np

from thalweg.errors import DynamicsWarning, InputError
from thalweg.solvable.deep_linear.checks import (
    Reals,
    batch_size,
    depth,
    nonnegative,
    positive,
)
from thalweg.solvable.deep_linear.panels import Panels

Method: TypeAlias = Literal["exact", "boltzmann", "multiplicative", "discrete"]


@dataclass(frozen=True)
class PointMass:
    """A law whose whole mass sits at one point.

    Attributes:
        at: The point.
        reason: Why the law is no density.
    """

    at: float
    reason: str

    @property
    def mean(self) -> float:
        """The point."""
        return self.at

    @property
    def variance(self) -> float:
        """Zero."""
        return 0.0

    def moment(self, order: int) -> float:
        """Return E[s^order]."""
        return self.at ** _order(order)


@dataclass(frozen=True)
class StationaryDensity:
    """The stationary density of a mode's strength with label noise.

    On s > 0 for L >= 2. At L = 1 it is a Student t of 1 + B/(eta lam) degrees of
    freedom on the whole line. The tail is s^(-5+3/L), so that mean and variance exist
    for every L >= 2; moments that do not are infinite.

    Attributes:
        S: Target.
        L: Depth.
        eta: Learning rate.
        B: Batch size.
        sigma: Label noise.
        lam: Eigenvalue of Sigma on the mode.
    """

    S: float
    L: int
    eta: float
    B: int
    sigma: float
    lam: float = 1.0
    _relative: float = field(init=False, repr=False)  # sigma / (S √lam)
    _k: float = field(init=False, repr=False)  # 2B / (eta lam L S^q)

    def __post_init__(self) -> None:
        q = 2 - 2 / self.L
        k = 2 * self.B / (self.eta * self.lam * self.L * self.S**q)
        object.__setattr__(self, "_k", k)
        relative = self.sigma / (self.S * math.sqrt(self.lam))
        object.__setattr__(self, "_relative", relative)

    @property
    def degrees_of_freedom(self) -> float:
        """Degrees of freedom of the Student t at L = 1."""
        return 1 + self.B / (self.eta * self.lam)

    # The density --------------------------------------------------------------------

    def log_density(self, s: Reals) -> np.ndarray:
        """Return log p(s), normalized; -inf at s <= 0 for L >= 2."""
        s = np.asarray(s, dtype=np.float64)
        if self.L == 1:
            return self._log_student(np.asarray(s - self.S))
        inside = s > 0
        w = np.asarray(np.log(np.where(inside, s, self.S) / self.S))
        values = self._log_mass(w) - self._panels.log_total - w - math.log(self.S)
        return np.where(inside, values, -np.inf)

    def density(self, s: Reals) -> np.ndarray:
        """Return p(s)."""
        return np.asarray(np.exp(self.log_density(s)))

    def cdf(self, s: Reals) -> np.ndarray:
        """Return P(strength <= s)."""
        s = np.asarray(s, dtype=np.float64)
        if self.L == 1:
            from scipy.special import stdtr

            return np.asarray(
                stdtr(self.degrees_of_freedom, (s - self.S) / self._student_scale)
            )
        inside = s > 0
        w = np.asarray(np.log(np.where(inside, s, self.S) / self.S))
        return np.where(inside, self._panels.fraction_below(w), 0.0)

    def _log_mass(self, w: np.ndarray) -> np.ndarray:
        """Return the logarithm of s p(s) at s = S e^w, up to a constant; L >= 2."""
        v = 2 * np.expm1(w) ** 2 + self._relative**2
        origin = self._integral(np.zeros(()))
        exponent = self._k * (self._integral(w) - origin)
        return np.asarray((3 / self.L - 2) * w - np.log(v) + exponent)

    def _integral(self, w: np.ndarray) -> np.ndarray:
        """Return ∫ (1-y) / (y^q v(y)) dy up to a constant, y = e^w and S = 1.

        Half the real part of ∫ y^-q / (z - y) dy with z = 1 + i sigma/√2. In
        b = y^(1/L) it is L/z (b^(2-L) / (2-L) - Σ_j b_j² log(b - b_j) / (L z)) over the
        roots b_j^L = z; no b_j is real, so no branch is crossed.
        """
        L, offset = self.L, 1j * self._relative / math.sqrt(2)
        z = 1 + offset
        if L == 2:
            return np.asarray(((w - np.log(offset - np.expm1(w))) / z).real / 2)
        root = np.expm1(np.log1p(offset) / L)  # the root nearest to 1, minus 1
        total = np.expm1(w / L) - root
        total = (1 + root) ** 2 * np.log(total)
        b = np.exp(w / L)
        for j in range(1, L):
            other = (1 + root) * np.exp(2j * math.pi * j / L)
            total = total + other**2 * np.log(b - other)
        return np.asarray((L / z * (b ** (2 - L) / (2 - L) - total / (L * z))).real / 2)

    @cached_property
    def _panels(self) -> Panels:
        return Panels(self._log_mass, self._breaks)

    @cached_property
    def _breaks(self) -> np.ndarray:
        """Ends of panels in w = log(s/S): dyadic around 0, out to no mass."""
        z = 1 + 1j * self._relative / math.sqrt(2)
        narrow = self._relative * min(1.0, 1 / math.sqrt(self._k))
        if self.L == 2:
            lowest = -2 - 60 / (self._k * (1 / z).real / 2 - 0.5)
        else:  # exp(-rate / b^(L-2))
            rate = self._k * self.L * (1 / z).real / (2 * (self.L - 2))
            lowest = min(
                -2.0, self.L / (self.L - 2) * math.log(rate / (1e3 + 20 * rate)) - 2
            )
        highest = 180.0 + math.log1p(self._relative)  # E[s³] of L = 4 decays as e^-w/4
        steps = min(1.0, narrow) / 4 * 2.0 ** np.arange(80)
        both = np.concatenate([-steps, [0.0], steps])
        even = np.linspace(lowest, highest, 128)
        ends = np.concatenate([both, even])
        return np.unique(ends[(ends >= lowest) & (ends <= highest)])

    # Its moments --------------------------------------------------------------------

    def moment(self, order: int) -> float:
        """Return E[s^order]; infinite where the tail is too heavy.

        Raises:
            InputError: A negative order, or one that is no integer.
        """
        order = _order(order)
        if self.L == 1:
            return self._student_moment(order)
        if order >= 4 - 3 / self.L:
            return math.inf
        panels = Panels(lambda w: order * w + self._log_mass(w), self._breaks)
        return self.S**order * math.exp(panels.log_total - self._panels.log_total)

    @cached_property
    def mean(self) -> float:
        """E[s]: below S by an amount of order eta."""
        if self.L == 1:
            return self.S
        return self.S * (1 + self._deviation(1, 1) - self._deviation(1, -1))

    @cached_property
    def variance(self) -> float:
        """E[(s - E s)²]."""
        if self.L == 1:
            dof = self.degrees_of_freedom
            return self._student_scale**2 * dof / (dof - 2) if dof > 2 else math.inf
        square = self._deviation(2, 1) + self._deviation(2, -1)
        return self.S**2 * square - (self.mean - self.S) ** 2

    def _deviation(self, order: int, side: int) -> float:
        """Return E[|s/S - 1|^order] over one side of S."""
        breaks = self._breaks[self._breaks * side >= 0]

        def log_f(w: np.ndarray) -> np.ndarray:
            return self._log_mass(w) + order * np.log(np.abs(np.expm1(w)))

        log_total = Panels(log_f, breaks).log_total
        return math.exp(log_total - self._panels.log_total)

    # The Student t of L = 1 ---------------------------------------------------------

    @property
    def _student_scale(self) -> float:
        return self.sigma / math.sqrt(2 * self.lam * self.degrees_of_freedom)

    def _log_student(self, gap: np.ndarray) -> np.ndarray:
        from scipy.special import betaln

        dof, scale = self.degrees_of_freedom, self._student_scale
        norm = betaln(0.5, dof / 2) + math.log(dof) / 2 + math.log(scale)
        return np.asarray(-norm - (dof + 1) / 2 * np.log1p((gap / scale) ** 2 / dof))

    def _student_moment(self, order: int) -> float:
        if order >= self.degrees_of_freedom:
            return math.inf
        half, dof = range(order // 2 + 1), self.degrees_of_freedom
        central = [
            (self._student_scale**2 * dof) ** n
            * math.exp(
                math.lgamma(n + 0.5)
                + math.lgamma(dof / 2 - n)
                - math.lgamma(0.5)
                - math.lgamma(dof / 2)
            )
            for n in half
        ]
        return sum(
            math.comb(order, 2 * n) * self.S ** (order - 2 * n) * central[n]
            for n in half
        )

    # The Boltzmann approximation ----------------------------------------------------

    @property
    def temperature(self) -> float:
        """T of the approximation N(S, T)."""
        return effective_temperature(
            self.S, self.L, self.eta, self.B, sigma=self.sigma, lam=self.lam
        )

    def total_variation(self) -> float:
        """Return the total-variation distance to N(S, T), ½ ∫ |p - N|."""
        from scipy.special import ndtr

        T = self.temperature

        def log_normal(gap: np.ndarray) -> np.ndarray:
            return np.asarray(-(gap**2) / (2 * T) - math.log(2 * math.pi * T) / 2)

        def log_gap_in_w(w: np.ndarray) -> np.ndarray:
            exact = self._log_mass(w) - self._panels.log_total
            normal = log_normal(self.S * np.expm1(w)) + w + math.log(self.S)
            return _log_difference(exact, normal)

        def log_gap(gap: np.ndarray) -> np.ndarray:
            return _log_difference(self._log_student(gap), log_normal(gap))

        if self.L == 1:
            reach = min(math.sqrt(T), self._student_scale) / 4 * 2.0 ** np.arange(60)
            breaks = np.concatenate([-reach[::-1], [0.0], reach])
            return math.exp(Panels(log_gap, breaks, 1e-10).log_total) / 2
        below = float(ndtr(-self.S / math.sqrt(T)))
        inside = math.exp(Panels(log_gap_in_w, self._breaks, 1e-10).log_total)
        return (below + inside) / 2


def stationary_density(
    S: float,
    L: int,
    eta: float,
    B: int,
    *,
    sigma: float = 0.0,
    lam: float = 1.0,
) -> StationaryDensity | PointMass:
    """Return the stationary law of a mode's strength under SGD noise.

    Without label noise the noise vanishes at the target: a point mass at S. At L = 2
    and eta above `collapse_rate` the origin attracts almost surely and the mode is
    never retained: a point mass at 0, with a warning. Without label noise both ends
    attract there, and `retention_probability` says how often it is S.

    Raises:
        InputError: L < 1, B < 1, S, eta or lam not positive, or sigma < 0.
    """
    L, S, eta, B, sigma, lam = _checked(S, L, eta, B, sigma, lam)
    rate = collapse_rate(S, L, B, sigma=sigma, lam=lam)
    collapsed = eta >= rate
    if collapsed:
        ends = "0" if sigma > 0 else "0 or S (see retention_probability)"
        warnings.warn(
            f"eta = {eta:.6g} is not below the rate of noise collapse {rate:.6g}: the "
            f"mode ends at {ends}",
            DynamicsWarning,
            stacklevel=2,
        )
    if sigma == 0:
        return PointMass(S, "without label noise the noise vanishes at the target")
    if collapsed:
        return PointMass(0.0, "noise collapse: the origin attracts almost surely")
    return StationaryDensity(S, L, eta, B, sigma, lam)


@dataclass(frozen=True)
class StationaryMoments:
    """Mean and variance of a mode's stationary law.

    Attributes:
        mean: E[s].
        variance: Infinite where the law has none.
        method: How it was found.
    """

    mean: float
    variance: float
    method: str


def stationary_moments(
    S: float,
    L: int,
    eta: float,
    B: int,
    *,
    sigma: float = 0.0,
    lam: float = 1.0,
    method: Method | str = "exact",
) -> StationaryMoments:
    """Return mean and variance of the stationary law, exact or approximate.

    With h = eta lam L S^(2-2/L), the product of step and curvature:

    - "exact": of the density, by quadrature;
    - "boltzmann": N(S, T), T = h sigma² / (2 B lam), `effective_temperature`;
    - "multiplicative": T / (1 - h/B), the noise linearized at S;
    - "discrete": (h sigma²/lam) / (B (2 - h - 2h/B)), steps of finite size; exact for
      SGD at L = 1.

    Raises:
        InputError: Another method, or see `stationary_density`.
    """
    L, S, eta, B, sigma, lam = _checked(S, L, eta, B, sigma, lam)
    if method not in get_args(Method):
        raise InputError(f"method must be one of {get_args(Method)}, got {method!r}")
    if method == "exact":
        law = stationary_density(S, L, eta, B, sigma=sigma, lam=lam)
        return StationaryMoments(law.mean, law.variance, method)
    h = eta * lam * L * S ** (2 - 2 / L)
    T = effective_temperature(S, L, eta, B, sigma=sigma, lam=lam)
    slack = {
        "boltzmann": 1.0,
        "multiplicative": 1 - h / B,
        "discrete": 1 - h / 2 - h / B,
    }[method]
    variance = T / slack if slack > 0 else math.inf
    return StationaryMoments(S, 0.0 if T == 0 and slack > 0 else variance, method)


def effective_temperature(
    S: float,
    L: int,
    eta: float,
    B: int,
    *,
    sigma: float = 0.0,
    lam: float = 1.0,
) -> float:
    """Return T = eta L sigma² S^(2-2/L) / (2B): stronger modes are hotter.

    Independent of lam.

    Raises:
        InputError: See `stationary_density`.
    """
    L, S, eta, B, sigma, lam = _checked(S, L, eta, B, sigma, lam)
    return eta * L * sigma**2 * S ** (2 - 2 / L) / (2 * B)


def collapse_rate(
    S: float, L: int, B: int, *, sigma: float = 0.0, lam: float = 1.0
) -> float:
    """Return the learning rate above which the origin attracts a mode.

    2 S B / (2 lam S² + sigma²) at L = 2; infinite at any other depth, where a single
    layer has no boundary at zero and deeper ones never reach it.

    Raises:
        InputError: See `stationary_density`.
    """
    L, S, _, B, sigma, lam = _checked(S, L, 1.0, B, sigma, lam)
    return 2 * S * B / (2 * lam * S**2 + sigma**2) if L == 2 else math.inf


def retention_probability(
    s0: float, S: float, eta: float, B: int, *, lam: float = 1.0
) -> float:
    """Return the probability that a two-layer mode without label noise ends at S.

    One below the rate of noise collapse, and from s0 >= S. Above it, from s0 < S, the
    scale function of the diffusion gives the regularized incomplete beta function
    I_{s0/S}(½ - k, 1 + k) with k = B / (2 eta lam S); else the mode ends at 0.

    Raises:
        InputError: s0 < 0, or see `stationary_density`.
    """
    from scipy.special import betainc

    _, S, eta, B, _, lam = _checked(S, 2, eta, B, 0.0, lam)
    s0 = float(nonnegative("s0", s0))
    if s0 == 0:
        return 0.0
    k = B / (2 * eta * lam * S)
    if k >= 0.5 or s0 >= S:
        return 1.0
    return float(betainc(0.5 - k, 1 + k, s0 / S))


def approach_rate(S: float, L: int, eta: float, B: int, *, lam: float = 1.0) -> float:
    """Return the almost-sure rate of log |s - S| near S without label noise.

    -lam L S^q - eta (lam L S^q)² / B with q = 2 - 2/L, in time eta x steps: noise that
    vanishes at the target speeds the approach of almost every path.

    Raises:
        InputError: See `stationary_density`.
    """
    L, S, eta, B, _, lam = _checked(S, L, eta, B, 0.0, lam)
    curvature = lam * L * S ** (2 - 2 / L)
    return -curvature - eta * curvature**2 / B


def _checked(
    S: float, L: int, eta: float, B: int, sigma: float, lam: float
) -> tuple[int, float, float, int, float, float]:
    L, B = depth(L), batch_size(B)
    S, eta = float(positive("S", S)), float(positive("eta", eta))
    sigma, lam = float(nonnegative("sigma", sigma)), float(positive("lam", lam))
    return L, S, eta, B, sigma, lam


def _order(order: int) -> int:
    if isinstance(order, bool) or int(order) != order or order < 0:
        raise InputError(f"order must be an integer of at least 0, got {order!r}")
    return int(order)


def _log_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return log |e^a - e^b|."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.maximum(a, b) + np.log(-np.expm1(-np.abs(a - b))))
