"""Gradient, Hessian and Hessian products of the population loss in weight space.

All of it is finite through collinear neurons; at a zero neuron the loss is not
differentiable and the callers refuse it. Source of the blocks: Safran and Shamir,
"Spurious Local Minima are Common in Two-Layer ReLU Neural Networks", 2018, rewritten
in unit bisectors, which do not cancel at small angles.
"""

import math

import torch
from torch import Tensor

from thalweg.solvable.two_layer_relu.angles import Pairs, pairs
from thalweg.solvable.two_layer_relu.kernel import TWO_PI

# Largest number of entries of one batch of Hessians.
_CHUNK = 2**27


class Curvature:
    """The pair geometry of one student (or a batch) and what is derived from it.

    ∇L = S W - B V with S = A + diag(c), A_ij = (π - θ_ij)/2π, B_ir likewise and
    c_i = (Σ_j |w_j| sin θ_ij - Σ_r |v_r| sin θ_ir) / (2π |w_i|). S is also the Hessian
    along any direction outside span(V, W).
    """

    def __init__(self, W: Tensor, V: Tensor) -> None:
        batch = torch.broadcast_shapes(W.shape[:-2], V.shape[:-2])
        self.W, self.V = (x.expand(*batch, *x.shape[-2:]) for x in (W, V))
        self.K, self.d = W.shape[-2:]
        Y = torch.cat([self.W, self.V], -2)
        self.geometry: Pairs = pairs(self.W, Y)
        sign = torch.ones(Y.shape[-2], dtype=W.dtype, device=W.device)
        sign[self.K :] = -1
        g = self.geometry
        self.angular = (math.pi - g.theta) / TWO_PI
        self.signed = sign * g.norm_y  # (..., K + M)
        self.c = (self.signed[..., None, :] * g.sin).sum(-1) / (TWO_PI * g.norm_x)

    @property
    def S(self) -> Tensor:
        """Return S of shape (..., K, K)."""
        return self.angular[..., : self.K] + torch.diag_embed(self.c)

    @property
    def B(self) -> Tensor:
        """Return B of shape (..., K, M)."""
        return self.angular[..., self.K :]

    def gradient(self) -> Tensor:
        """Return S W - B V of shape (..., K, d)."""
        return self.S @ self.W - self.B @ self.V

    def _perpendicular_weights(self) -> Tensor:
        """Return ±|y| / sin θ, the weight of (ŷ - cŵ)(ŷ - cŵ)ᵀ; 0 if collinear."""
        sin = self.geometry.sin
        inverse = torch.where(sin > 0, 1 / torch.where(sin > 0, sin, 1.0), 0.0)
        return self.signed[..., None, :] * inverse

    def diagonal_blocks(self) -> Tensor:
        """Return H_ii of shape (..., K, d, d)."""
        g = self.geometry
        u = g.unit_x
        p = g.unit_y[..., None, :, :] - g.cos[..., None] * u[..., :, None, :]
        eye = torch.eye(self.d, dtype=u.dtype, device=u.device)
        outer = p.mT @ (self._perpendicular_weights()[..., None] * p)
        outer = (outer + outer.mT) / (2 * TWO_PI * g.norm_x[..., None, None])
        complement = eye - u[..., :, None] * u[..., None, :]
        return eye / 2 + self.c[..., None, None] * complement + outer

    def dense(self) -> Tensor:
        """Return the Hessian of shape (..., K d, K d), exactly symmetric."""
        K, d = self.K, self.d
        g = self.geometry
        u, sin = g.unit_x, g.sin[..., :K] / TWO_PI
        plus, minus = (
            _scaled(u[..., :, None, :] + sign * u[..., None, :, :], sin)
            for sign in (1, -1)
        )
        H = u.new_empty(*u.shape[:-2], K, d, K, d)
        torch.mul(plus.mT[..., None], plus[..., :, None, :, :], out=H)
        H.addcmul_(minus.mT[..., None], minus[..., :, None, :, :], value=-1)
        identity = H.diagonal(dim1=-3, dim2=-1)  # (..., i, j, d)
        identity.add_(self.angular[..., :K, None])
        H.diagonal(dim1=-4, dim2=-2).copy_(self.diagonal_blocks().movedim(-3, -1))
        return H.reshape(*H.shape[:-4], K * d, K * d)

    def product(self, X: Tensor) -> Tensor:
        """Return (HX)_i = Σ_j H_ij x_j for X of shape (..., K, d); O((K² + KM) d)."""
        K = self.K
        g = self.geometry
        u, theta = g.unit_x, g.theta[..., :K]
        along = u @ X.mT  # û_i · x_j
        own = along.diagonal(dim1=-2, dim2=-1)
        usable = (g.sin[..., :K] > 0) & (theta > 0)
        half = torch.where(usable, theta / 2, 1.0).tan()
        tan = torch.where(usable, half, 0.0) * (along + own[..., None, :])
        cot = torch.where(usable, 1 / half, 0.0) * (along - own[..., None, :])
        tan.diagonal(dim1=-2, dim2=-1).zero_()
        cot.diagonal(dim1=-2, dim2=-1).zero_()
        pairwise = (tan - cot).sum(-1, keepdim=True) * u + (tan + cot) @ u
        complement = X - own[..., None] * u
        cross = X @ g.unit_y.mT - g.cos * own[..., None]
        weights = self._perpendicular_weights() * cross
        spread = weights @ g.unit_y - (weights * g.cos).sum(-1, keepdim=True) * u
        curved = pairwise / (2 * TWO_PI) + spread / (TWO_PI * g.norm_x[..., None])
        return self.angular[..., :K] @ X + self.c[..., None] * complement + curved


def _scaled(vectors: Tensor, sin: Tensor) -> Tensor:
    """Return √sin times the unit vectors of `vectors`, zero where they vanish."""
    norm = vectors.norm(dim=-1)
    factor = torch.where(norm > 0, sin.sqrt() / torch.where(norm > 0, norm, 1.0), 0.0)
    return vectors * factor[..., None]


def hessians(W: Tensor, V: Tensor) -> Tensor:
    """Return dense Hessians (..., K d, K d) of a batch, in chunks of 2^27 entries."""
    size = max(1, _CHUNK // (W.shape[-2] * W.shape[-1]) ** 2)
    flat = W.reshape(-1, *W.shape[-2:])
    parts = [Curvature(part, V).dense() for part in flat.split(size)]
    n = W.shape[-2] * W.shape[-1]
    return torch.cat(parts).reshape(*W.shape[:-2], n, n)
