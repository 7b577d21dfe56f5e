"""A deep linear network on a linear teacher as a landscape."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError, StructureError
from thalweg.landscapes import Block, Landscape, Layout, LinearOperator
from thalweg.provenance import fingerprint
from thalweg.solvable.deep_linear import products, starts
from thalweg.solvable.deep_linear.checks import (
    Reals,
    as_matrix,
    nonnegative,
    positive,
    widths_of,
)

if TYPE_CHECKING:
    from thalweg.solvable.deep_linear.matrix_simulation import SGDEnsemble
    from thalweg.solvable.deep_linear.noise import (
        ExampleGradientCovariance,
        GaussianGradientCovariance,
    )


@dataclass(frozen=True)
class Modes:
    """The teacher's singular modes.

    Attributes:
        U: Left singular vectors (d_L, r), in columns.
        S: Strengths (r,), descending and positive.
        V: Right singular vectors (d_0, r), in columns.
        lam: Eigenvalue of Sigma on each v_a.
        learnable: Number of modes that the narrowest layer can carry.
    """

    U: Tensor
    S: Tensor
    V: Tensor
    lam: Tensor
    learnable: int

    @property
    def repeated(self) -> bool:
        """Whether two strengths agree.

        U and V are then not unique, and only quantities of a whole block mean anything.
        """
        return len(self.blocks) < len(self.S)

    @cached_property
    def blocks(self) -> tuple[slice, ...]:
        """Runs of equal strengths; one a mode where none is repeated."""
        S = self.S
        if not len(S):
            return ()
        ends = [
            i for i in range(1, len(S)) if float(S[i - 1] - S[i]) >= 1e-9 * S[i - 1]
        ]
        return tuple(
            slice(a, b) for a, b in zip([0, *ends], [*ends, len(S)], strict=True)
        )


class DeepLinear(Landscape):
    """L = ½ tr(E Sigma Eᵀ) with E = W_L ... W_1 - M: the excess population loss.

    For x ~ N(0, Sigma), y = M x + xi, xi ~ N(0, sigma² I) and the loss ½ |y - W x|² of
    an example, summed over outputs. (`torch.nn.MSELoss` averages over the d_L outputs
    and has no ½: see `mse_learning_rate`.) A point is W_1, ..., W_L, flattened in this
    order. It stands nowhere (`origin` is None). A hidden layer narrower than the
    teacher's rank is allowed: `modes.learnable` says how many modes it can carry.

    Args:
        teacher: M of shape (d_L, d_0).
        widths: (d_0, ..., d_L).
        sigma: Standard deviation of the label noise.
        Sigma: Covariance of the inputs (d_0, d_0), the identity by default.

    Raises:
        InputError: Widths, sigma, or a Sigma that is no covariance.
        StructureError: The teacher or Sigma does not fit the widths.

    Examples:
        >>> land = DeepLinear(torch.eye(2), (2, 2, 2))
        >>> float(land.loss(torch.zeros(8)))
        1.0
    """

    def __init__(
        self,
        teacher: Tensor | np.ndarray,
        widths: Sequence[int],
        *,
        sigma: float = 0.0,
        Sigma: Tensor | np.ndarray | None = None,
    ) -> None:
        given = torch.as_tensor(teacher)
        M, widths = as_matrix("teacher", given), widths_of(widths)
        if M.shape != (widths[-1], widths[0]):
            raise StructureError(
                f"teacher must have shape (d_L, d_0) = ({widths[-1]}, {widths[0]}), "
                f"got {tuple(M.shape)}"
            )
        self.teacher, self.widths, self.depth = M, widths, len(widths) - 1
        self.sigma = float(nonnegative("sigma", sigma))
        self.whitened = Sigma is None
        self.Sigma = (
            torch.eye(widths[0], dtype=torch.float64, device=M.device)
            if Sigma is None
            else _covariance(Sigma, widths[0]).to(M.device)
        )
        blocks, offset = [], 0
        for layer in range(1, self.depth + 1):
            shape = (widths[layer], widths[layer - 1])
            blocks.append(
                Block(f"W_{layer}", shape, offset, filter_axis=0, owner="Linear")
            )
            offset += math.prod(shape)
        super().__init__(
            offset,
            layout=Layout(tuple(blocks)),
            dtype=given.dtype if given.is_floating_point() else torch.float64,
            device=given.device,
        )

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(widths={self.widths}, sigma={self.sigma:g}"
            f"{'' if self.whitened else ', Sigma given'})"
        )

    @property
    def noise_floor(self) -> float:
        """½ d_L sigma², what the population loss has beyond the excess loss."""
        return self.widths[-1] * self.sigma**2 / 2

    @property
    def lowest_loss(self) -> float:
        """The least excess loss: ½ Σ lam_a S_a² over modes beyond the narrowest layer.

        Raises:
            InputError: See `modes`.
        """
        modes = self.modes
        missed = slice(modes.learnable, None)
        return float((modes.lam[missed] * modes.S[missed].square()).sum()) / 2

    def describe(self) -> dict[str, object]:
        """Return class, widths, noise and a fingerprint of teacher and Sigma."""
        return super().describe() | {
            "widths": self.widths,
            "sigma": self.sigma,
            "data": fingerprint(self.teacher, self.Sigma),
        }

    # A point and its weights --------------------------------------------------------

    def weights(self, points: Float[Tensor, "*batch dim"]) -> list[Tensor]:
        """Return W_1..W_L (..., d_l, d_{l-1}) as views of flat points.

        Raises:
            InputError: Points are complex or integer.
            StructureError: The last axis is not `dim` long.
        """
        return list(self.layout.split(self._checked_points(points)).values())

    def flatten(self, weights: Sequence[Tensor]) -> Float[Tensor, "*batch dim"]:
        """Return flat points of W_1..W_L, the inverse of `weights`.

        Raises:
            StructureError: A layer has another shape.
        """
        shapes = [block.shape for block in self.layout.blocks]
        got = [tuple(W.shape[-2:]) for W in weights]
        if got != shapes:
            raise StructureError(f"weights must have shapes {shapes}, got {got}")
        return torch.cat([W.flatten(-2) for W in weights], dim=-1)

    def product(self, points: Float[Tensor, "*batch dim"]) -> Tensor:
        """Return W_L ... W_1 (..., d_L, d_0)."""
        return products.product(self.weights(points))

    def balance(self, points: Float[Tensor, "*batch dim"]) -> list[Tensor]:
        """Return W_{l+1}ᵀ W_{l+1} - W_l W_lᵀ for l = 1..L-1.

        Gradient flow conserves each of these matrices; all are zero at balance.
        """
        weights = self.weights(points)
        return [
            upper.mT @ upper - lower @ lower.mT
            for lower, upper in zip(weights[:-1], weights[1:], strict=True)
        ]

    @cached_property
    def _decomposed(self) -> tuple[Modes, float]:
        """The teacher's modes, and by how much Sigma fails to be diagonal in them."""
        U, S, Vh = torch.linalg.svd(self.teacher, full_matrices=False)
        rank = int((S > 1e-12 * max(1e-300, float(S[0]))).sum())
        S, U, V = S[:rank], U[:, :rank], Vh[:rank].mT
        image = self.Sigma @ V
        lam = (V * image).sum(0)
        gap = float((image - V * lam).norm())
        return Modes(U, S, V, lam, min(rank, *self.widths)), gap

    @property
    def decoupled(self) -> bool:
        """Whether Sigma is diagonal in the teacher's right singular basis."""
        return self._decomposed[1] <= 1e-9 * float(self.Sigma.norm())

    @property
    def modes(self) -> Modes:
        """The teacher's singular modes.

        Raises:
            InputError: Sigma is not diagonal in the teacher's right singular basis, so
                that the modes do not decouple.
        """
        modes, gap = self._decomposed
        if not self.decoupled:
            raise InputError(
                "Sigma must be diagonal in the teacher's right singular basis for "
                f"quantities per mode, it differs by {gap:.1e}; calls on matrices work"
            )
        return modes

    def mode_matrix(
        self, points: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch r r"]:
        """Return C = Uᵀ W V: strengths on the diagonal, misalignment off it.

        Raises:
            InputError: See `modes`.
        """
        modes = self.modes
        W = self.product(points).double()
        return (modes.U.mT @ W @ modes.V).to(points.dtype)

    def aligned(self, s: Reals) -> Float[Tensor, " dim"]:
        """Return the aligned and balanced point of strengths s (r,), or one for all.

        Raises:
            InputError: A negative strength, or a positive one beyond the modes that
                the narrowest layer can carry (the first are carried).
        """
        modes = self.modes
        strengths = np.broadcast_to(nonnegative("s", s), (len(modes.S),))
        if (strengths[modes.learnable :] > 0).any():
            raise InputError(
                f"s must be zero beyond the {modes.learnable} modes that widths "
                f"{self.widths} can carry, got {strengths.tolist()}"
            )
        carried = modes.learnable
        a = torch.from_numpy(strengths[:carried] ** (1 / self.depth)).to(modes.S)
        weights = []
        for layer, block in enumerate(self.layout.blocks, 1):
            rows = modes.U if layer == self.depth else _eye(block.shape[0], modes.U)
            columns = modes.V if layer == 1 else _eye(block.shape[1], modes.V)
            weights.append((rows[:, :carried] * a) @ columns[:, :carried].mT)
        return self.flatten(weights).to(self.dtype)

    def gaussian_start(
        self,
        *,
        seed: int,
        n: int | None = None,
        std: float | Sequence[float] | None = None,
        gamma: float | None = None,
    ) -> Float[Tensor, "*n dim"]:
        """Draw a point, or n of them, of independent Gaussian entries.

        Args:
            seed: Seed of the draw; point i depends on (seed, i) alone.
            n: Number of points; None for the first of them, without that axis.
            std: Standard deviation, one or one of each layer.
            gamma: Instead of `std`: std² = width^-gamma with the width of the widest
                hidden layer. Above 1 the network starts near the saddle at zero.

        Raises:
            InputError: Not exactly one of `std` and `gamma`, another number of them
                than layers, or a std that is not positive.
        """
        stds = starts.gaussian_stds(self.widths, std, gamma)
        return self._drawn(
            starts.gaussian(self.widths, stds, seed, 1 if n is None else n), n
        )

    def balanced_start(
        self, scale: float, *, seed: int, n: int | None = None
    ) -> Float[Tensor, "*n dim"]:
        """Draw a balanced point, or n of them, in random orientations.

        Every layer has the same singular values, scale |z| with z ~ N(0, 1), as many
        as the narrowest layer has units.

        Raises:
            InputError: A scale that is not positive.
        """
        positive("scale", scale)
        return self._drawn(
            starts.balanced(self.widths, scale, seed, 1 if n is None else n), n
        )

    def _drawn(self, weights: Sequence[Tensor], n: int | None) -> Tensor:
        points = self.flatten(weights).to(self.device, self.dtype)
        return points[0] if n is None else points

    # The landscape ------------------------------------------------------------------

    def _cast(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return self.teacher.to(points), self.Sigma.to(points)

    def loss(self, points: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        """Return the excess loss ½ tr(E Sigma Eᵀ)."""
        M, Sigma = self._cast(points)
        E = self.product(points) - M
        return ((E @ Sigma) * E).sum((-2, -1)) / 2

    def value_and_gradient(
        self, points: Float[Tensor, "*batch dim"]
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch dim"]]:
        """Return the excess loss and A_lᵀ E Sigma B_lᵀ for every layer."""
        M, Sigma = self._cast(points)
        weights = self.weights(points)
        left, right = (
            products.left_products(weights),
            products.right_products(weights),
        )
        E = weights[-1] @ right[-1] - M
        D = E @ Sigma
        gradient = self.flatten(products.spread(left, D, right))
        return (D * E).sum((-2, -1)) / 2, gradient

    def hessian(self, point: Float[Tensor, " dim"]) -> "DeepLinearHessian":
        """Return the Hessian in closed form; a product costs a few matrix products."""
        return DeepLinearHessian(self, self._checked(point))

    def gradient_flow(
        self,
        point: Float[Tensor, " dim"],
        times: Reals,
        *,
        rtol: float = 1e-10,
    ) -> Float[Tensor, "times dim"]:
        """Return the points of gradient flow at the times, by adaptive Runge-Kutta.

        From any start and for any Sigma, in float64. Where there is a closed form use
        it: `mode_strength` for aligned and balanced starts, `two_layer_flow` for
        balanced ones at depth 2.

        Raises:
            InputError: A time is negative, or the solver does not reach it.
        """
        from scipy.integrate import solve_ivp

        start = self._checked(point).double()
        clock = np.atleast_1d(nonnegative("times", times))
        if not clock.max() > 0:
            return start.expand(len(clock), -1).clone()
        moments, where = np.unique(clock, return_inverse=True)

        def velocity(t: float, y: np.ndarray) -> np.ndarray:
            return -self.gradient(torch.from_numpy(y)).numpy()

        solution = solve_ivp(
            velocity,
            (0.0, float(moments[-1])),
            start.cpu().numpy(),
            method="DOP853",
            t_eval=moments,
            rtol=rtol,
            atol=rtol * 1e-2,
        )
        if not solution.success:
            raise InputError(f"times cannot be reached: {solution.message}")
        return torch.from_numpy(solution.y.T[where]).to(start)

    # Minibatch noise ----------------------------------------------------------------

    def noise_covariance(
        self,
        point: Float[Tensor, " dim"],
        B: int = 1,
        *,
        data: tuple[Tensor, Tensor] | None = None,
        replacement: bool = True,
    ) -> "GaussianGradientCovariance | ExampleGradientCovariance":
        """Return the covariance of the gradient of a batch of B, as an operator.

        Args:
            point: Flat point.
            B: Batch size.
            data: Inputs (N, d_0) and targets (N, d_L) that batches are drawn from; by
                default every example is fresh and Gaussian.
            replacement: Whether an example of `data` may come twice in one batch.

        Raises:
            InputError: B < 1, or B > N without replacement.
            StructureError: The data do not fit the widths.
        """
        # noise.py needs this class.
        from thalweg.solvable.deep_linear import noise

        if data is None:
            return noise.GaussianGradientCovariance(self, point, B)
        return noise.ExampleGradientCovariance(
            self, point, *data, B, replacement=replacement
        )

    def noise_covariance_product(
        self,
        point: Float[Tensor, " dim"],
        v: Float[Tensor, "dim *k"],
        B: int = 1,
        *,
        data: tuple[Tensor, Tensor] | None = None,
        replacement: bool = True,
    ) -> Float[Tensor, "dim *k"]:
        """Return C v with the covariance of `noise_covariance`."""
        return self.noise_covariance(point, B, data=data, replacement=replacement) @ v

    def noise_variance(
        self,
        point: Float[Tensor, " dim"],
        direction: Float[Tensor, " dim"],
        B: int = 1,
        *,
        data: tuple[Tensor, Tensor] | None = None,
        replacement: bool = True,
    ) -> float:
        """Return the variance of <direction, gradient of a batch>.

        See `noise_covariance`; memory of the size of a point.
        """
        noise = self.noise_covariance(point, B, data=data, replacement=replacement)
        return noise.variance(direction)

    def noise_trace(
        self,
        points: Float[Tensor, "*batch dim"],
        B: int = 1,
        *,
        data: tuple[Tensor, Tensor] | None = None,
        replacement: bool = True,
    ) -> Float[Tensor, "*batch"]:
        """Return the summed variance of all parameters' gradients at every point.

        See `noise_covariance`. Along a trajectory this is the full noise, next to
        which `noise_peak` is that of one mode.
        """
        from thalweg.solvable.deep_linear import noise

        return noise.noise_trace(self, points, B, data=data, replacement=replacement)

    def simulate_sgd(
        self,
        start: Float[Tensor, "*n dim"],
        eta: float,
        B: int | None,
        *,
        n_steps: int,
        seed: int,
        n_paths: int | None = None,
        data: tuple[Tensor, Tensor] | None = None,
        replacement: bool = True,
        record_every: int | None = None,
        levels: tuple[float, ...] = (0.1, 0.5, 0.9),
        passage: float | None = None,
        keep: int = 1,
    ) -> "SGDEnsemble":
        """Simulate minibatch SGD on the matrices, many replicas at once.

        Fresh Gaussian batches cost the same at every B >= d_0: the batch enters through
        its second moments alone, and these are drawn from their exact law, a Wishart
        matrix by Bartlett's decomposition and a Gaussian given it.

        Args:
            start: Flat point of all replicas, or one of each.
            eta: Learning rate.
            B: Batch size; None is gradient descent on the population loss, or on all of
                `data`.
            n_steps: Steps.
            seed: Seed of all noise; paths do not depend on what is recorded.
            n_paths: Number of replicas of a single start.
            data: Inputs (N, d_0) and targets (N, d_L) that batches are drawn from; by
                default every example is fresh.
            replacement: Whether an example of `data` may come twice in one batch.
            record_every: Steps between records; a hundredth of all by default.
            levels: Quantiles to record.
            passage: Fraction of a strength whose first passage is looked for.
            keep: Replicas whose points are kept at the records.

        Raises:
            InputError: An argument is out of its range; the message names it.
            StructureError: The data do not fit the widths.

        Warns:
            DynamicsWarning: Replicas exploded; statistics leave them out.
            DegeneracyWarning: Equal strengths: their modes are not unique.
        """
        from thalweg.solvable.deep_linear import matrix_simulation

        return matrix_simulation.simulate_sgd(
            self,
            start,
            eta,
            B,
            n_steps=n_steps,
            seed=seed,
            n_paths=n_paths,
            data=data,
            replacement=replacement,
            record_every=record_every,
            levels=levels,
            passage=passage,
            keep=keep,
        )


class DeepLinearHessian(LinearOperator):
    """The Hessian of a `DeepLinear` at one point."""

    def __init__(self, land: DeepLinear, point: Tensor) -> None:
        super().__init__(
            land.dim, dtype=point.dtype, device=point.device, layout=land.layout
        )
        M, self._Sigma = land._cast(point)
        self._land, self._weights = land, land.weights(point)
        self._left = products.left_products(self._weights)
        self._right = products.right_products(self._weights)
        self._D = (self._weights[-1] @ self._right[-1] - M) @ self._Sigma

    def _product(self, v: Tensor) -> Tensor:
        return self._products(v[:, None])[:, 0]

    def _products(self, V: Tensor) -> Tensor:
        step = self._land.weights(V.mT.contiguous())
        left, right, D = self._left, self._right, self._D
        moved = products.gather(left, step, right) @ self._Sigma
        moved_left = products.vary_left(self._weights, step, left)
        moved_right = products.vary_right(self._weights, step, right)
        result = [
            a.mT @ moved @ b.mT + da.mT @ D @ b.mT + a.mT @ D @ db.mT
            for a, b, da, db in zip(left, right, moved_left, moved_right, strict=True)
        ]
        return self._land.flatten(result).mT


def mse_learning_rate(eta: float, d_L: int) -> float:
    """Return this room's learning rate of a run of `torch.nn.MSELoss` at rate `eta`.

    MSELoss averages over the d_L outputs and has no ½: 2 eta / d_L.

    Raises:
        InputError: d_L < 1.
    """
    if d_L < 1:
        raise InputError(f"d_L must be at least 1, got {d_L}")
    return 2 * eta / d_L


def _covariance(Sigma: Tensor | np.ndarray, d: int) -> Tensor:
    matrix = as_matrix("Sigma", Sigma)
    if matrix.shape != (d, d):
        raise StructureError(
            f"Sigma must have shape (d_0, d_0) = ({d}, {d}), got {tuple(matrix.shape)}"
        )
    scale = float(matrix.abs().max())
    if float((matrix - matrix.mT).abs().max()) > 1e-10 * scale:
        raise InputError("Sigma must be symmetric")
    lowest = float(torch.linalg.eigvalsh(matrix)[0])
    if lowest < -1e-10 * scale:
        raise InputError(
            f"Sigma must be positive semi-definite, its lowest eigenvalue is {lowest}"
        )
    return (matrix + matrix.mT) / 2


def _eye(size: int, like: Tensor) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)
