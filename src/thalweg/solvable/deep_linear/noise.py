"""The covariance of minibatch gradients, exact for Gaussian inputs (Isserlis).

With E = W - M, D = E Sigma and R = E Sigma Eᵀ + sigma² I, the gradient of one example
with respect to the product, G = (E x - xi) xᵀ, has mean D and

    Cov(G_ij, G_kl) = R_ik Sigma_jl + D_il D_kj;

a batch of B fresh examples divides it by B. No tensor of four axes is formed.
"""

from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError
from thalweg.landscapes import LinearOperator
from thalweg.solvable.deep_linear import products
from thalweg.solvable.deep_linear.checks import batch_size
from thalweg.solvable.deep_linear.landscape import DeepLinear

_DENSE_LIMIT = 4096


class GaussianGradientCovariance(LinearOperator):
    """Covariance of the gradient of a batch of B fresh examples at one point.

    A product costs a few products of layer-sized matrices and as much memory as a
    point. `dense` is refused above 4,096 parameters.

    Args:
        land: A deep linear network; its `sigma` is the label noise.
        point: Flat point.
        B: Batch size.

    Raises:
        InputError: B < 1.

    Example:
        >>> import torch
        >>> land = DeepLinear(torch.eye(2), (2, 2), sigma=1.0)
        >>> noise = GaussianGradientCovariance(land, torch.eye(2).reshape(-1))
        >>> noise.trace()
        4.0
    """

    def __init__(
        self, land: DeepLinear, point: Float[Tensor, " dim"], B: int = 1
    ) -> None:
        point = land.point(point)
        super().__init__(
            land.dim, dtype=point.dtype, device=point.device, layout=land.layout
        )
        M, self._Sigma = land.teacher.to(point), land.Sigma.to(point)
        weights = land.weights(point)
        self._land, self.B = land, batch_size(B)
        self._left = products.left_products(weights)
        self._right = products.right_products(weights)
        E = products.product(weights) - M
        self._D = E @ self._Sigma
        self._R = self._D @ E.mT + land.sigma**2 * products.identity(len(M), E)

    def _product(self, v: Tensor) -> Tensor:
        return self._products(v[:, None])[:, 0]

    def _products(self, V: Tensor) -> Tensor:
        step = self._land.weights(V.mT.contiguous())
        H = products.gather(self._left, step, self._right)
        moved = self._R @ H @ self._Sigma + self._D @ H.mT @ self._D
        layers = products.spread(self._left, moved / self.B, self._right)
        return self._land.flatten(layers).mT

    def variance(self, direction: Float[Tensor, " dim"]) -> float:
        """Return the variance of <direction, gradient>.

        [tr(H Sigma Hᵀ R) + tr(H Dᵀ H Dᵀ)] / B with H = Σ_l A_l Δ_l B_l.
        """
        step = self._land.weights(direction.to(self._R))
        H = products.gather(self._left, step, self._right)
        first = ((H @ self._Sigma @ H.mT) * self._R).sum()
        turned = H @ self._D.mT
        return float(first + (turned * turned.mT).sum()) / self.B

    def trace(self) -> float:
        """Return the sum of the variances of all parameters, in closed form."""
        total = 0.0
        for a, b in zip(self._left, self._right, strict=True):
            P, Q = a @ a.mT, b.mT @ b
            total += float((P * self._R).sum() * (Q * self._Sigma).sum())
            total += float(((self._D @ Q @ self._D.mT) * P).sum())
        return total / self.B

    def dense(self) -> Float[Tensor, "dim dim"]:
        """Return the matrix.

        Raises:
            InputError: There are more than 4,096 parameters.
        """
        if self.dim > _DENSE_LIMIT:
            raise InputError(
                f"a dense covariance of {self.dim} parameters is refused (limit "
                f"{_DENSE_LIMIT}); use products, `variance` or `trace`"
            )
        return super().dense()
