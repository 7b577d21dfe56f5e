"""Poincaré polynomial of the invariant set of a two-layer network."""

from dataclasses import dataclass
from functools import cached_property
from math import comb

import numpy as np

from thalweg.errors import InputError
from thalweg.solvable.relu_topology.conservation import Array, Invariants, as_kinds


@dataclass(frozen=True)
class PoincarePolynomial:
    """P(t) = (1 + t^(d-1))^plus (1 + t^(e-1))^minus, exactly.

    Attributes:
        d: Entries of w1, the hidden bias included.
        e: Outputs.
        plus: Neurons with c > 0, each a sphere S^(d-1) up to homotopy.
        minus: Neurons with c < 0, each a sphere S^(e-1).
        zero: Marginal neurons, each a cone, contractible and singular at its apex.
    """

    d: int
    e: int
    plus: int
    minus: int
    zero: int

    def __str__(self) -> str:
        return " + ".join(_monomial(b, k) for k, b in self.terms.items())

    @cached_property
    def terms(self) -> dict[int, int]:
        """Return {degree: Betti number} of the degrees whose number is not zero."""
        terms: dict[int, int] = {}
        left = [comb(self.plus, i) for i in range(self.plus + 1)]
        right = [comb(self.minus, j) for j in range(self.minus + 1)]
        for i, x in enumerate(left):
            for j, y in enumerate(right):
                degree = i * (self.d - 1) + j * (self.e - 1)
                terms[degree] = terms.get(degree, 0) + x * y
        return dict(sorted(terms.items()))

    @property
    def coefficients(self) -> tuple[int, ...]:
        """Return the Betti numbers b_0, b_1, ... up to the last that is not zero."""
        return tuple(self.terms.get(k, 0) for k in range(max(self.terms) + 1))

    def betti(self, k: int) -> int:
        """Return the Betti number b_k."""
        return self.terms.get(k, 0)

    @property
    def log2_components(self) -> int:
        """Return log2 b_0, without computing the polynomial."""
        return self.plus * (self.d == 1) + self.minus * (self.e == 1)

    @property
    def euler_characteristic(self) -> int:
        """Return P(-1)."""
        plus = 1 + (-1) ** (self.d - 1)
        return plus**self.plus * (1 + (-1) ** (self.e - 1)) ** self.minus

    @property
    def dimension(self) -> int:
        """Return the dimension of the set (of its smooth part): l (d + e - 1)."""
        return (self.plus + self.minus + self.zero) * (self.d + self.e - 1)

    @property
    def singular(self) -> bool:
        """Return whether the set has singular points: some neuron has c = 0."""
        return self.zero > 0


def _monomial(number: int, degree: int) -> str:
    if degree == 0:
        return str(number)
    power = "t" if degree == 1 else f"t^{degree}"
    return power if number == 1 else f"{number} {power}"


def poincare_polynomial(
    c: Invariants | Array, d: int, e: int, *, atol: float = 0.0
) -> PoincarePolynomial:
    """Return the Poincaré polynomial of H(c), whose coefficients are Betti numbers.

    H(c) is the product over neurons of {‖u‖² - ‖v‖² = c_k} in R^d x R^e. The integers
    are exact and computed when first asked for: O(plus · minus) products.
    Source: M. Nurisso, P. Leroy, F. Vaccarino, "Topological obstruction to the
    training of shallow ReLU neural networks" (2024).

    Args:
        c: `Invariants`, or bare values (l,).
        d: Entries of w1, the hidden bias included.
        e: Outputs.
        atol: A bare |c| <= atol counts as zero.

    Raises:
        InputError: d or e below 1, or c not finite.

    Examples:
        >>> import numpy as np
        >>> found = poincare_polynomial(np.array([1.0, -1.0]), d=3, e=1)
        >>> found.coefficients, str(found)
        ((2, 0, 2), '2 + 2 t^2')
    """
    if d < 1 or e < 1:
        raise InputError(f"d and e must be at least 1, got {d} and {e}")
    kinds = as_kinds(c, atol)
    plus, minus = int(np.sum(kinds > 0)), int(np.sum(kinds < 0))
    return PoincarePolynomial(d, e, plus, minus, len(kinds) - plus - minus)
