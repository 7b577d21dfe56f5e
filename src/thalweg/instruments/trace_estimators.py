"""The estimators behind `trace`.

Each has `grow(products)`, which spends at most so many more products (rounded down to
whole probes), `estimate()`, which returns the estimate and its standard error, and a
`note`.
"""

import math

import numpy as np
import torch
from torch import Tensor

from thalweg.instruments.sketches import (
    RangeSketch,
    block_size,
    multiply,
    sign_probe,
    sphere_probe,
)
from thalweg.landscapes import LinearOperator, gram, inner

_TRUSTED = 8  # samples that a standard error wants


class Hutchinson:
    """The mean of z.Az over Rademacher probes z."""

    note = ""

    def __init__(self, A: LinearOperator, seed: int) -> None:
        self.A, self.seed = A, seed
        self.samples: list[float] = []

    def grow(self, products: int) -> None:
        """Take a probe a product."""
        block = block_size(self.A)
        for start in range(0, products, block):
            first = len(self.samples)
            Z = torch.stack(
                [
                    sign_probe(self.A, self.seed, "probe", first + i)
                    for i in range(min(block, products - start))
                ]
            )
            rows = multiply(self.A, Z)
            self.samples += [inner(z, y) for z, y in zip(Z, rows, strict=True)]

    def estimate(self) -> tuple[float, float]:
        """Return the mean and its standard error."""
        return mean(np.array(self.samples))


class XTrace:
    """Leave-one-out estimates, each from a sketch that lacks its own probe.

    Probes that add nothing to the sketch, because the range of A or the memory is
    exhausted, are independent of it and see the remainder of A outside it.

    Args:
        A: Symmetric operator of shape (dim, dim).
        rows: Most rows of the sketch.
        block: Most probes multiplied at a time.
        seed: Probe i depends on (seed, i).
    """

    def __init__(self, A: LinearOperator, rows: int, block: int, seed: int) -> None:
        self.A, self.block, self.seed = A, block, seed
        self.sketch = RangeSketch(A, min(rows, A.dim - 1))
        rows = self.sketch.rows
        self._probes = torch.empty(rows, A.dim, dtype=A.dtype, device=A.device)
        self.W = np.zeros((0, 0))  # QᵀΩ
        self.R = np.zeros((0, 0))  # QᵀAΩ
        self.quadratic = np.zeros(0)  # ω_i.Aω_i
        self.remainders: list[float] = []
        self.drawn = 0
        self.note = ""

    def grow(self, products: int) -> None:
        """Widen the sketch at two products a probe; past that, one a remainder."""
        before = self.A.products
        while not self.sketch.exhausted:
            left = (products - self.A.products + before) // 2
            width = min(left, self.sketch.room, self.block)
            if not width:
                break
            self._widen(width)
        products -= self.A.products - before
        if not self.sketch.exhausted:
            if self.sketch.room:
                return
            self.note = (
                f"the sketch is limited to {self.sketch.rank} probes; more of them see "
                "what is outside it"
            )
        for _ in range(products):
            self.remainders.append(self.sketch.remainder(self._draw()))

    def estimate(self) -> tuple[float, float]:
        """Return the mean of the leave-one-out estimates, or with remainders."""
        if self.sketch.exhausted or len(self.remainders) >= _TRUSTED:
            value, stderr = mean(np.array(self.remainders))
            return float(np.trace(self.sketch.H)) + value, stderr
        return mean(
            leave_one_out(self.A.dim, self.sketch.H, self.W, self.R, self.quadratic)
        )

    def _draw(self) -> Tensor:
        self.drawn += 1
        return sphere_probe(self.A, self.seed, "probe", self.drawn - 1)

    def _widen(self, width: int) -> None:
        rank = self.sketch.rank
        new = torch.stack([self._draw() for _ in range(width)])
        Y = multiply(self.A, new)
        quadratic = np.array([inner(z, y) for z, y in zip(new, Y, strict=True)])
        R, _ = self.sketch.extend(Y)
        kept = self.sketch.rank - rank
        Q = self.sketch.Q
        lower = gram(Q[rank:], self._probes[:rank]).cpu().numpy()
        right = gram(Q, new).cpu().numpy()
        dropped = remainders(self.sketch.H, right, R, quadratic)[kept:]
        self.remainders += dropped.tolist()
        self._probes[rank : rank + kept] = new[:kept]
        self.W = np.hstack([np.vstack([self.W, lower]), right[:, :kept]])
        self.R = np.hstack([np.vstack([self.R, np.zeros_like(lower)]), R[:, :kept]])
        self.quadratic = np.append(self.quadratic, quadratic[:kept])


class HutchPlusPlus:
    """tr QᵀAQ plus the mean of gᵀ(I - QQᵀ)A(I - QQᵀ)g, Q = orth(A S).

    S and the Rademacher probes g are independent. Both grow; the products A g are not
    made again when Q does.
    """

    note = ""

    def __init__(self, A: LinearOperator, rows: int, block: int, seed: int) -> None:
        self.A, self.block, self.seed = A, block, seed
        self.sketch = RangeSketch(A, min(rows, A.dim - 1))
        self._probes = torch.empty(0, A.dim, dtype=A.dtype, device=A.device)
        self.W = np.zeros((0, 0))  # QᵀG
        self.T = np.zeros((0, 0))  # QᵀAG
        self.quadratic = np.zeros(0)  # g.Ag
        self.drawn = 0

    def grow(self, products: int) -> None:
        """Spend a third on S, a third on A Q and a third on the probes."""
        before = self.A.products
        for start in range(0, products // 3, self.block):
            if self.sketch.exhausted or not self.sketch.room:
                break
            left = min(products // 3 - start, self.block, self.sketch.room)
            self._widen(left)
        spent = self.A.products - before
        growing = not self.sketch.exhausted and self.sketch.room > 0
        count = spent // 2 if growing else products - spent
        for start in range(0, count, self.block):
            self._probe(min(self.block, count - start), growing)
        if not growing:
            self._probes = self._probes[:0].clone()

    def estimate(self) -> tuple[float, float]:
        """Return the estimate; its error is that of the probes."""
        value, stderr = mean(remainders(self.sketch.H, self.W, self.T, self.quadratic))
        return float(np.trace(self.sketch.H)) + value, stderr

    def _widen(self, width: int) -> None:
        first = self.drawn
        self.drawn += width
        S = [sign_probe(self.A, self.seed, "sketch", first + i) for i in range(width)]
        rank = self.sketch.rank
        _, Z = self.sketch.extend(multiply(self.A, torch.stack(S)))
        G = self._probes
        self.W = np.vstack([self.W, gram(self.sketch.Q[rank:], G).cpu().numpy()])
        self.T = np.vstack([self.T, gram(Z, G).cpu().numpy()])

    def _probe(self, count: int, keep: bool) -> None:
        first = len(self.quadratic)
        G = torch.stack(
            [sign_probe(self.A, self.seed, "probe", first + i) for i in range(count)]
        )
        Y = multiply(self.A, G)
        Q = self.sketch.Q
        self.W = np.hstack([self.W, gram(Q, G).cpu().numpy()])
        self.T = np.hstack([self.T, gram(Q, Y).cpu().numpy()])
        new = [inner(g, y) for g, y in zip(G, Y, strict=True)]
        self.quadratic = np.append(self.quadratic, new)
        if keep:
            self._probes = torch.cat([self._probes, G])


def leave_one_out(
    n: int, H: np.ndarray, W: np.ndarray, R: np.ndarray, quadratic: np.ndarray
) -> np.ndarray:
    """Return the k estimates e_i of XTrace from its small matrices.

    With Y = AΩ = QR, H = QᵀAQ, W = QᵀΩ and s_i the unit multiple of column i of R⁻ᵀ,
    Q(I - s_i s_iᵀ)Qᵀ projects on the span of Y without column i, and

        e_i = tr H - s_iᵀ H s_i + g_i (ω_i.y_i - 2 c_i.r_i + c_iᵀ H c_i),
        c_i = w_i - s_i (s_i.w_i),  g_i = (n-k+1) / (n - |w_i|² + (s_i.w_i)²),

    where r_i = QᵀAω_i is column i of R.
    """
    k = len(quadratic)
    S, _ = unit_leave_one_out(R)
    overlap = (S * W).sum(0)
    outside = remainders(H, W - S * overlap, R, quadratic)
    factor = (n - k + 1) / (n - (W**2).sum(0) + overlap**2)
    return np.trace(H) - (S * (H @ S)).sum(0) + factor * outside


def unit_leave_one_out(R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return S, the columns of R⁻ᵀ scaled to norm 1, and the scales s_i.r_i."""
    from scipy.linalg import solve_triangular

    S = solve_triangular(R, np.eye(len(R)), trans="T", lower=False)
    scales = 1 / np.linalg.norm(S, axis=0)
    return S * scales, scales


def remainders(
    H: np.ndarray, W: np.ndarray, T: np.ndarray, quadratic: np.ndarray
) -> np.ndarray:
    """Return z.Az - 2 w.t + wᵀHw for each probe, w = Qᵀz (or part of it), t = QᵀAz."""
    return quadratic - 2 * (W * T).sum(0) + (W * (H @ W)).sum(0)


def mean(samples: np.ndarray) -> tuple[float, float]:
    """Return the mean and its standard error; one sample is its own error."""
    if len(samples) == 1:
        return float(samples[0]), abs(float(samples[0]))
    return float(samples.mean()), float(samples.std(ddof=1) / math.sqrt(len(samples)))
