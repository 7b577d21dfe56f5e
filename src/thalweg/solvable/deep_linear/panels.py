"""Quadrature of a sharply peaked function on a line: panels that adapt, once.

The nodes and weights found for a density serve all of its moments.
"""

from collections.abc import Callable

import numpy as np

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_ROUNDS = 60


class Panels:
    """Gauss-Legendre panels that resolve exp(log_f) between the given breaks.

    A panel is halved until its halves integrate exp(log_f) to the same value, within
    `rtol` of the whole. Panels of no weight are kept whole.

    Args:
        log_f: Vectorized logarithm of a positive function.
        breaks: Ascending ends of the first panels; one of them near every peak.
        rtol: Error of a panel over the whole integral.
    """

    def __init__(
        self,
        log_f: Callable[[np.ndarray], np.ndarray],
        breaks: np.ndarray,
        rtol: float = 1e-13,
    ) -> None:
        self._log_f = log_f
        low, high = breaks[:-1], breaks[1:]
        self.shift = float(np.max(log_f(_nodes(low, high))))
        kept: list[np.ndarray] = []
        for _ in range(_ROUNDS):
            middle = (low + high) / 2
            coarse = self._integrals(low, high)
            fine = self._integrals(low, middle), self._integrals(middle, high)
            total = sum(self._integrals(a, b).sum() for a, b in kept) + coarse.sum()
            rough = np.abs(coarse - fine[0] - fine[1]) > rtol * total
            kept.append(np.stack([low[~rough], high[~rough]]))
            if not rough.any():
                break
            low, middle, high = low[rough], middle[rough], high[rough]
            low, high = np.concatenate([low, middle]), np.concatenate([middle, high])
        else:
            kept.append(np.stack([low, high]))
        ends = np.concatenate(kept, axis=1)
        self.low, self.high = ends[:, np.argsort(ends[0])]
        masses = self._integrals(self.low, self.high)
        self._below = np.concatenate([[0.0], np.cumsum(masses)])
        self.log_total = float(np.log(self._below[-1]) + self.shift)

    def _integrals(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        x = _nodes(low, high)
        return np.asarray(
            (np.exp(self._log_f(x) - self.shift) @ _WEIGHTS) * (high - low) / 2
        )

    def fraction_below(self, x: np.ndarray) -> np.ndarray:
        """Return ∫_{-∞}^x f / ∫ f for every x."""
        inside = np.clip(x, self.low[0], self.high[-1])
        panel = np.clip(
            np.searchsorted(self.low, inside, side="right") - 1, 0, len(self.low) - 1
        )
        part = self._integrals(self.low[panel].ravel(), inside.ravel())
        below = self._below[panel] + part.reshape(inside.shape)
        return np.asarray(below / self._below[-1])


def _nodes(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return low[:, None] + (high - low)[:, None] * (_NODES + 1) / 2
