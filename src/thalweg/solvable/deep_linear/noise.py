"""The covariance of minibatch gradients: of Gaussian inputs, and of a data set.

With E = W - M, D = E Sigma and R = E Sigma Eᵀ + sigma² I, the gradient of one Gaussian
example with respect to the product, G = (E x - xi) xᵀ, has mean D and, by Isserlis,

    Cov(G_ij, G_kl) = R_ik Sigma_jl + D_il D_kj;

a batch of B fresh examples divides it by B. No tensor of four axes is formed.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError, StructureError
from thalweg.landscapes import LinearOperator
from thalweg.solvable.deep_linear import products
from thalweg.solvable.deep_linear.checks import as_matrix, batch_size
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

    Examples:
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
        self._land, self.B = land, batch_size(B)
        self._Sigma = land.Sigma.to(point)
        self._left, self._right, self._D, self._R = _moments(land, point)

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
        total = _gaussian_trace(self._left, self._right, self._D, self._R, self._Sigma)
        return float(total) / self.B

    def dense(self) -> Float[Tensor, "dim dim"]:
        """Return the matrix.

        Raises:
            InputError: There are more than 4,096 parameters.
        """
        _refuse_dense(self.dim)
        return super().dense()


class ExampleGradientCovariance(LinearOperator):
    """Covariance of the gradient of a batch of B examples of a data set of N.

    The gradients of the N examples have covariance C = (1/N) Σ (g_n - ḡ)(g_n - ḡ)ᵀ; a
    batch has C / B, and (N - B)/(N - 1) of it where it is drawn without replacement.
    A product costs N rows of inputs and outputs, and no gradient is stored.

    Args:
        land: A deep linear network; its teacher and `sigma` are not used.
        point: Flat point.
        inputs: X (N, d_0).
        targets: Y (N, d_L).
        B: Batch size.
        replacement: Whether an example may come twice in one batch.

    Raises:
        InputError: B < 1, or B > N without replacement.
        StructureError: The data do not fit the widths.
    """

    def __init__(
        self,
        land: DeepLinear,
        point: Float[Tensor, " dim"],
        inputs: Tensor,
        targets: Tensor,
        B: int = 1,
        *,
        replacement: bool = True,
    ) -> None:
        point = land.point(point)
        super().__init__(
            land.dim, dtype=point.dtype, device=point.device, layout=land.layout
        )
        X, Y = checked_data(land, inputs, targets)
        self._land, self.N = land, len(X)
        self.B = checked_batch(B, self.N, replacement)
        self._factor = finite_factor(self.B, self.N, replacement) / self.B
        weights = land.weights(point)
        self._left = products.left_products(weights)
        self._right = products.right_products(weights)
        self._X = X.to(point)
        self._residuals = self._X @ products.product(weights).mT - Y.to(point)
        self._mean = self._residuals.mT @ self._X / self.N

    def _product(self, v: Tensor) -> Tensor:
        return self._products(v[:, None])[:, 0]

    def _products(self, V: Tensor) -> Tensor:
        step = self._land.weights(V.mT.contiguous())
        along = self._along(products.gather(self._left, step, self._right))
        moved = (self._residuals.mT * along[:, None, :]) @ self._X / self.N
        layers = products.spread(self._left, moved * self._factor, self._right)
        return self._land.flatten(layers).mT

    def _along(self, H: Tensor) -> Tensor:
        """Return <H, G_n - mean G> for every example n."""
        raw = ((self._X @ H.mT) * self._residuals).sum(-1)
        return raw - (H * self._mean).sum((-2, -1))[..., None]

    def variance(self, direction: Float[Tensor, " dim"]) -> float:
        """Return the variance of <direction, gradient>."""
        step = self._land.weights(direction.to(self._X))
        along = self._along(products.gather(self._left, step, self._right))
        return float(along.square().mean()) * self._factor

    def trace(self) -> float:
        """Return the sum of the variances of all parameters."""
        total = 0.0
        for a, b in zip(self._left, self._right, strict=True):
            back = (self._residuals @ a).square().sum(1)
            forward = (self._X @ b.mT).square().sum(1)
            mean = (a.mT @ self._mean @ b.mT).square().sum()
            total += float((back * forward).mean() - mean)
        return max(0.0, total) * self._factor

    def dense(self) -> Float[Tensor, "dim dim"]:
        """Return the matrix.

        Raises:
            InputError: There are more than 4,096 parameters.
        """
        _refuse_dense(self.dim)
        return super().dense()


def noise_trace(
    land: DeepLinear,
    points: Float[Tensor, "*batch dim"],
    B: int = 1,
    *,
    data: tuple[Tensor, Tensor] | None = None,
    replacement: bool = True,
) -> Float[Tensor, "*batch"]:
    """Return the trace of the covariance at every point."""
    if data is not None:
        flat = points.reshape(-1, points.shape[-1])
        traces = [
            ExampleGradientCovariance(
                land, point, *data, B, replacement=replacement
            ).trace()
            for point in flat
        ]
        return (
            torch.tensor(traces, dtype=torch.float64)
            .to(points)
            .reshape(points.shape[:-1])
        )
    trace = _gaussian_trace(*_moments(land, points), land.Sigma.to(points))
    return trace / batch_size(B)


def checked_data(
    land: DeepLinear, inputs: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the inputs and targets of a data set in float64.

    Raises:
        StructureError: They do not fit each other or the widths.
    """
    X, Y = as_matrix("inputs", inputs), as_matrix("targets", targets)
    if len(X) != len(Y) or len(X) < 1:
        raise StructureError(
            f"inputs and targets must have as many rows, at least one, got {len(X)} "
            f"and {len(Y)}"
        )
    if (X.shape[1], Y.shape[1]) != (land.widths[0], land.widths[-1]):
        raise StructureError(
            f"inputs and targets must have {land.widths[0]} and {land.widths[-1]} "
            f"columns, got {X.shape[1]} and {Y.shape[1]}"
        )
    return X, Y


def checked_batch(B: int, N: int, replacement: bool) -> int:
    """Return the size of a batch of a data set of N.

    Raises:
        InputError: B < 1, or B > N without replacement.
    """
    if not replacement and batch_size(B) > N:
        raise InputError(
            f"B must be at most the {N} examples without replacement, got {B}"
        )
    return batch_size(B)


def finite_factor(B: int, N: int, replacement: bool) -> float:
    """Return what sampling without replacement leaves of the variance of a batch."""
    if replacement:
        return 1.0
    return (N - B) / (N - 1) if N > 1 else 0.0


def _moments(
    land: DeepLinear, points: Tensor
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Return A_l, B_l, D and R at every point."""
    weights = land.weights(points)
    left, right = products.left_products(weights), products.right_products(weights)
    E = weights[-1] @ right[-1] - land.teacher.to(points)
    D = E @ land.Sigma.to(points)
    R = D @ E.mT + land.sigma**2 * products.identity(len(land.teacher), E)
    return left, right, D, R


def _gaussian_trace(
    left: products.Weights,
    right: products.Weights,
    D: Tensor,
    R: Tensor,
    Sigma: Tensor,
) -> Tensor:
    """Return Σ_l tr(P_l R) tr(Q_l Sigma) + tr(D Q_l Dᵀ P_l) of one example."""
    total = torch.zeros(D.shape[:-2], dtype=D.dtype, device=D.device)
    for a, b in zip(left, right, strict=True):
        P, Q = a @ a.mT, b.mT @ b
        total = total + (P * R).sum((-2, -1)) * (Q * Sigma).sum((-2, -1))
        total = total + ((D @ Q @ D.mT) * P).sum((-2, -1))
    return total


def _refuse_dense(dim: int) -> None:
    if dim > _DENSE_LIMIT:
        raise InputError(
            f"a dense covariance of {dim} parameters is refused (limit "
            f"{_DENSE_LIMIT}); use products, `variance` or `trace`"
        )
