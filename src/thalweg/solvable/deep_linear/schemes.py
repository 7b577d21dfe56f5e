"""One step of many paths of modes, in place and without allocation.

The state is the coordinate a = s^(1/L) of one layer, (modes, paths): there the drift
and the noise are polynomials, and zero is no singular point.
"""

from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from thalweg.seeding import generator, numpy_generator

Scheme: TypeAlias = Literal["euler", "tamed", "milstein", "sgd"]

_LARGEST_PRODUCT = 8  # powers above it are taken by pow


class ModePaths:
    """A chunk of paths of every mode, and what advances it.

    Args:
        a: Coordinates (modes, paths), contiguous; changed in place.
        S: Targets (modes, 1).
        L: Depth.
        eta: Learning rate.
        B: Batch size.
        sigma: Label noise.
        lam: Eigenvalues of Sigma (modes, 1).
        scheme: "euler", "tamed", "milstein" or "sgd".
        substeps: Steps of the scheme to one of SGD.
        ito_correction: Whether a moves as the layers do, or s without its Ito term.
        key: Seed and names of the stream of this chunk.
    """

    def __init__(
        self,
        a: Tensor,
        S: Tensor,
        L: int,
        eta: float,
        B: int,
        sigma: float,
        lam: Tensor,
        scheme: Scheme,
        substeps: int,
        ito_correction: bool,
        key: tuple[int, ...],
    ) -> None:
        self.a, self._S, self._L = a, S, L
        self._eta, self._B, self._sigma, self._lam = eta, B, sigma, lam
        self._scheme, self._substeps = scheme, substeps
        self._ito = ito_correction or L == 1
        self._dt = eta / substeps
        self._fold = L > 1 and (L % 2 == 0 or scheme != "sgd")
        # The variance of a kick over p² is _steep e² + _floor.
        self._steep = eta / B * self._dt * 2 * lam**2
        self._floor = eta / B * self._dt * lam * sigma**2
        self._rate, self._backward = lam * self._dt, -lam * self._dt
        buffers = torch.empty((6, *a.shape), dtype=a.dtype)
        self._p, self._e, self._g, self._b, self._z, self._w = buffers.unbind()
        self._negative = a < 0
        self.crossings = torch.zeros(a.shape[0], dtype=torch.int64)
        if numpy_draws(a.dtype, scheme):
            self._numpy = numpy_generator(*key)
        else:
            self._torch = generator(*key)

    def step(self) -> None:
        """Advance by one step of SGD, in time eta."""
        if self._scheme == "sgd":
            self._sgd()
            return
        for _ in range(self._substeps):
            self._substep()

    def _substep(self) -> None:
        a, e, g, b, z = self.a, self._e, self._g, self._b, self._z
        p = self._gap()
        self._normal(z)
        torch.mul(e, self._steep, out=g)
        torch.addcmul(self._floor, g, e, out=g)
        torch.mul(p, e, out=b)
        if self._scheme == "milstein" or not self._ito:
            self._second_order(p)
        g.sqrt_().mul_(z).mul_(p)
        if self._scheme == "tamed":
            b.mul_(self._rate)
            torch.abs(b, out=z).add_(1)
            a.addcdiv_(b, z, value=-1)
        else:
            a.addcmul_(b, self._backward)
        a.add_(g)
        if self._scheme == "milstein":
            a.add_(self._w)
        self._cross()

    def _second_order(self, p: Tensor) -> None:
        """Take the Ito term of s out of the drift b; put Milstein's term into w.

        Over a substep, with G² = _steep e² + _floor and w = a^(L-2) G²: the first is
        (L-1) p w / 2; g g' of the second is p ((L-1) w + L _steep e p²), times
        (z² - 1) / 2.
        """
        L, w, z = self._L, self._w, self._z
        if L > 1:
            _power(self.a, L - 2, w).mul_(self._g)
        else:
            w.zero_()
        if not self._ito:
            self._b.addcmul_(w * p, (L - 1) / 2 / self._rate)
        if self._scheme == "milstein":
            w.mul_(L - 1).addcmul_(p * p, self._e * (L * self._steep))
            w.mul_(p).mul_((z * z - 1) / 2)

    def _sgd(self) -> None:
        """Take a <- a - (eta/B) p (e q - sigma √q z), q = lam chi² of B degrees."""
        a, e, b, z, q = self.a, self._e, self._b, self._z, self._w
        p = self._gap()
        if self._B == 1:
            self._normal(q)
            q.mul_(q).mul_(self._lam)
        else:
            self._gamma(q)
            q.mul_(2 * self._lam)
        torch.mul(e, q, out=b)
        if self._sigma > 0:
            self._normal(z)
            b.addcmul_(q.sqrt_(), z, value=-self._sigma)
        b.mul_(p)
        a.add_(b, alpha=-self._eta / self._B)
        self._cross()

    def _gap(self) -> Tensor:
        """Put e = a^L - S and return p = a^(L-1)."""
        if self._L == 1:
            torch.sub(self.a, self._S, out=self._e)
            return self._p.fill_(1)
        p = self.a if self._L == 2 else _power(self.a, self._L - 1, self._p)
        torch.mul(p, self.a, out=self._e).sub_(self._S)
        return p

    def _cross(self) -> None:
        """Fold at zero; count, where a -> -a is no symmetry, how often."""
        if self._L % 2 and self._L > 1:
            negative = self.a < 0
            self.crossings += (negative ^ self._negative).sum(1)
            if not self._fold:
                self._negative = negative
        if self._fold:
            self.a.abs_()

    def _normal(self, out: Tensor) -> None:
        if numpy_draws(out.dtype, self._scheme):
            draws = out.numpy()
            self._numpy.standard_normal(dtype=draws.dtype, out=draws)
        else:
            out.normal_(generator=self._torch)

    def _gamma(self, out: Tensor) -> None:
        draws = out.numpy()
        self._numpy.standard_gamma(self._B / 2, dtype=draws.dtype, out=draws)


def numpy_draws(dtype: torch.dtype, scheme: Scheme) -> bool:
    """Return whether NumPy's generator draws, rather than torch's.

    It is the faster one in float64, and has the gamma variates of "sgd".
    """
    return dtype == torch.float64 or scheme == "sgd"


def _power(a: Tensor, n: int, out: Tensor) -> Tensor:
    """Put a^n into `out`."""
    if n == 0:
        return out.fill_(1)
    if n > _LARGEST_PRODUCT:
        return torch.pow(a, n, out=out)
    out.copy_(a)
    for _ in range(n - 1):
        out.mul_(a)
    return out


def strength(a: Tensor, L: int) -> np.ndarray:
    """Return s = a^L (modes, paths) in float64, with a's sign where L is odd."""
    return np.asarray(a.double().pow(L).numpy())
