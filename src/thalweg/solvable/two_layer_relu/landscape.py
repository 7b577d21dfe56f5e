"""The population loss of a two-layer ReLU student as a landscape."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError
from thalweg.landscapes import Block, Landscape, Layout, LinearOperator
from thalweg.solvable.two_layer_relu import kernel, reduction
from thalweg.solvable.two_layer_relu.checks import (
    Array,
    as_overlaps,
    as_real,
    as_teacher,
    as_weights,
    check_neurons,
    zero_neurons,
)
from thalweg.solvable.two_layer_relu.classification import Classification, classify
from thalweg.solvable.two_layer_relu.derivatives import Curvature
from thalweg.solvable.two_layer_relu.descent import Descents, Method, find_minima
from thalweg.solvable.two_layer_relu.dynamics import Method as Integrator
from thalweg.solvable.two_layer_relu.dynamics import (
    OverlapFlow,
    OverlapTrajectory,
    check_rates,
    integrate,
)
from thalweg.solvable.two_layer_relu.families import Family, families
from thalweg.solvable.two_layer_relu.growth import Growth, grow
from thalweg.solvable.two_layer_relu.jacobian import FlowJacobian, ode_jacobian
from thalweg.solvable.two_layer_relu.reduction import Reduction, Spectrum
from thalweg.solvable.two_layer_relu.simulation import simulate_sgd
from thalweg.solvable.two_layer_relu.splitting import (
    dead_direction,
    split_stability,
    steepest_birth,
)
from thalweg.solvable.two_layer_relu.symmetry import SymmetricPoint, symmetric_minimum
from thalweg.solvable.two_layer_relu.zero_loss import zero_path


class ReLUTeacherStudent(Landscape):
    """L(W) = ½ E[(Σ_k ReLU(w_k·x) - Σ_r ReLU(v_r·x))²] for x ~ N(0, I_d), exactly.

    A point is `W.reshape(-1)` for the student W (K, d); the layout has one block with
    a filter a neuron. It stands nowhere (`origin` is None). Everything is computed in
    float64; tensors come back in the dtype of the input, results of several
    (`Spectrum`, `Descents`, `OverlapTrajectory`, ...) in float64.

    Args:
        V: Teacher of shape (M, d0), no zero row.
        K: Number of students.
        d: Input dimension, at least d0 (the teacher's further entries are zero).

    Raises:
        InputError: K < 1, d < d0, or a teacher that cannot be used.

    Examples:
        >>> land = ReLUTeacherStudent(torch.eye(3, dtype=torch.float64), K=3)
        >>> float(land.loss(land.point(torch.eye(3, dtype=torch.float64))))
        0.0
    """

    def __init__(self, V: Array, K: int, d: int | None = None) -> None:
        given = torch.as_tensor(V)
        V = as_teacher(V)
        if V.ndim != 2:
            raise InputError(f"V must have shape (M, d), got {tuple(V.shape)}")
        if K != int(K) or K < 1:
            raise InputError(f"K must be an integer of at least 1, got {K}")
        d = V.shape[1] if d is None else d
        if d != int(d) or d < V.shape[1]:
            raise InputError(
                "d must be an integer of at least the teacher's dimension "
                f"{V.shape[1]}, got {d}"
            )
        self.V = torch.nn.functional.pad(V, (0, d - V.shape[1]))
        self.K, self.M, self.d = K, V.shape[0], d
        super().__init__(
            K * d,
            layout=Layout((Block("W", (K, d), 0, filter_axis=0, owner="Linear"),)),
            dtype=given.dtype,
            device=given.device,
        )

    def describe(self) -> dict[str, object]:
        """Return class, sizes and the teacher's fingerprint."""
        from thalweg.provenance import fingerprint

        sizes = {"K": self.K, "M": self.M, "d": self.d}
        return super().describe() | sizes | {"teacher": fingerprint(self.V)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(M={self.M}, K={self.K}, d={self.d})"

    # A point and its weights --------------------------------------------------------

    def weights(
        self, point: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch K d"]:
        """Return W (..., K, d) of flat points.

        Raises:
            InputError: Points are complex or integer.
            StructureError: The last axis is not `dim` long.
        """
        return self._checked_points(point).unflatten(-1, (self.K, self.d))

    def point(self, at: Array | None = None) -> Float[Tensor, " dim"]:
        """Return the flat point of a student W (K, d) or of a point, or the origin."""
        if at is None or torch.as_tensor(at).ndim != 2:
            return super().point(None if at is None else torch.as_tensor(at))
        return self._student(at).reshape(-1).to(torch.as_tensor(at).dtype)

    def _student(self, W: Array) -> Tensor:
        weights = as_weights(W, self.V)
        if weights.shape[-2] != self.K:
            raise InputError(f"W must have K = {self.K} rows, got {weights.shape[-2]}")
        return weights

    def _one_student(self, name: str, W: Array) -> Tensor:
        """Return one student (K, d) of nonzero neurons, for what takes no batch."""
        weights = self._student(W)
        if weights.ndim != 2:
            raise InputError(
                f"{name} must be one student (K, d), got {tuple(weights.shape)}"
            )
        check_neurons(weights, self.V)
        return weights

    def _curvature(self, W: Array) -> Curvature:
        weights = self._student(W)
        check_neurons(weights, self.V)
        return Curvature(weights, self.V)

    # The landscape ------------------------------------------------------------------

    def loss(
        self, points: Float[Tensor, "*batch dim"], *, compensated: bool = True
    ) -> Float[Tensor, "*batch"]:
        """Return the loss; non-finite points give a non-finite loss.

        Cost O(K (K + M) d) a point. `compensated` removes the cancellation near zero
        loss, see `student_loss`.
        """
        W = self.weights(points).double()
        return kernel.loss(W, self.V, compensated=compensated).to(points.dtype)

    def gradient(
        self, points: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch dim"]:
        """Return ∇L = S W - B V, flat.

        Raises:
            InputError: A neuron is zero; the message names its index.
        """
        gradient = self._curvature(self.weights(points)).gradient()
        return gradient.flatten(-2).to(points.dtype)

    def value_and_gradient(
        self, points: Float[Tensor, "*batch dim"]
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch dim"]]:
        """Return loss and gradient."""
        return self.loss(points), self.gradient(points)

    def hessian(
        self,
        point: Float[Tensor, " dim"],
        *,
        zero_neuron: str = "raise",
    ) -> "ReLUHessian":
        """Return the Hessian as an operator; `.dense()` is assembled, not multiplied.

        Args:
            point: Flat point.
            zero_neuron: "drop" removes neurons of norm below 1e-12 max|v|, whose
                rows and columns are then zero; `operator.dropped` lists them.

        Raises:
            InputError: A neuron is zero and `zero_neuron` is "raise".
        """
        return ReLUHessian(self, self._checked(point), zero_neuron)

    # Closed forms in weight space ---------------------------------------------------

    def overlaps(self, W: Array) -> tuple[Tensor, Tensor, Tensor]:
        """Return Q = WWᵀ (..., K, K), R = WVᵀ (..., K, M) and P = VVᵀ (M, M)."""
        dtype, W = torch.as_tensor(W).dtype, self._student(W)
        Q, R, P = W @ W.mT, W @ self.V.mT, self.V @ self.V.mT
        return Q.to(dtype), R.to(dtype), P.to(dtype)

    def S_B(self, W: Array) -> tuple[Tensor, Tensor]:
        """Return S (..., K, K) and B (..., K, M) of ∇L = S W - B V.

        S is also the Hessian along every direction outside span(V, W).
        """
        curvature, dtype = self._curvature(W), torch.as_tensor(W).dtype
        return curvature.S.to(dtype), curvature.B.to(dtype)

    def reduce(self, W: Array) -> Reduction:
        """Return W in an orthonormal basis of span(V), and the Gram matrix outside."""
        return reduction.reduce(self._student(W), self.V)

    def lift(self, coefficients: Array, gram: Array) -> Float[Tensor, "K d"]:
        """Return some W (K, d) of these coefficients and this Gram matrix.

        Raises:
            InputError: d < rank V + rank G, G is not positive semi-definite, or the
                shapes are not (K, rank V) and (K, K).
        """
        basis = reduction.span(self.V)
        C = as_real("coefficients", coefficients).to(self.V)
        G = as_real("gram", gram).to(self.V)
        wanted = (self.K, basis.shape[1]), (self.K, self.K)
        if (C.shape, G.shape) != wanted:
            raise InputError(
                f"coefficients and gram must be {wanted[0]} and {wanted[1]}, got "
                f"{tuple(C.shape)} and {tuple(G.shape)}"
            )
        return reduction.lift(C, G, basis, self.d)

    def spectrum(self, W: Array, d: int | None = None) -> Spectrum:
        """Return the Hessian's spectrum at W (K, d) in any dimension d."""
        weights = self._one_student("W", W)
        return reduction.spectrum(weights, self.V, self.d if d is None else d)

    # Minima -------------------------------------------------------------------------

    def find_minima(
        self,
        n_starts: int,
        *,
        init: str | Array = "gaussian",
        scale: float | None = None,
        tol: float = 1e-10,
        loss_tol: float | None = None,
        max_iter: int | None = None,
        seed: int = 0,
        method: Method = "auto",
        escape_saddles: bool = True,
    ) -> Descents:
        """Descend from random students in R^d to certified minima, all at once.

        See `thalweg.solvable.two_layer_relu.descent.find_minima` for the method. The
        fractions of starts that reach each minimum depend on the optimizer and on the
        scale of the start; the minima do not.

        Raises:
            InputError: n_starts < 1, or another argument that cannot be used.
        """
        return find_minima(
            self.V,
            self.K,
            n_starts,
            init=init,
            scale=scale,
            d=self.d,
            tol=tol,
            loss_tol=loss_tol,
            max_iter=max_iter,
            seed=seed,
            method=method,
            escape_saddles=escape_saddles,
        )

    def families(
        self, ends: Descents, *, level: str = "orbit", tol: float = 1e-6
    ) -> tuple[Family, ...]:
        """Group the converged descents up to symmetry, sorted by loss.

        See `thalweg.solvable.two_layer_relu.families.families`.
        """
        return families(ends, self.V, self.d, level=level, tol=tol)

    def basin_fractions(
        self, n_starts: int, *, seed: int = 0, scale: float | None = None
    ) -> tuple[Family, ...]:
        """Return the families that gradient descent with a small step reaches.

        The step is 5 / max(K, 4), the protocol of the literature; fractions depend on
        the optimizer and on the scale of the start.
        """
        ends = self.find_minima(
            n_starts, method="gd", escape_saddles=False, seed=seed, scale=scale
        )
        return self.families(ends)

    def classify(self, W: Array) -> Classification:
        """Classify a critical point W (K, d) by the spectrum of its Hessian."""
        return classify(self._one_student("W", W), self.V, self.d)

    def split_stability(self, W: Array) -> Tensor:
        """Return for each neuron λ_min of what splitting it adds to the Hessian, (K,).

        At a minimum, splitting neuron i leads to a saddle iff its value is negative.
        """
        values = split_stability(self._one_student("W", W), self.V, self.d)
        return values.to(torch.as_tensor(W).dtype)

    def dead_direction(self, W: Array, u: Array) -> Tensor:
        """Return the slope of the loss as a neuron grows out of zero along u (..., d).

        Raises:
            InputError: u is not real, finite and of last axis d, or see `as_weights`.
        """
        directions = as_real("u", u).to(self.V)
        if directions.ndim < 1 or directions.shape[-1] != self.d:
            raise InputError(
                f"u must have shape (..., {self.d}), got {tuple(directions.shape)}"
            )
        slopes = dead_direction(self._student(W), self.V, directions)
        return slopes.to(torch.as_tensor(u).dtype)

    def steepest_birth(self, W: Array, seed: int = 0) -> tuple[float, Tensor]:
        """Return min over unit u of `dead_direction`, and u: negative iff it helps."""
        return steepest_birth(self._one_student("W", W), self.V, seed)

    def grow(self, W: Array, seed: int = 0) -> Growth:
        """Add a neuron to a minimum W (K, d) in each way that helps, and descend.

        See `thalweg.solvable.two_layer_relu.growth.grow`.
        """
        return grow(self._one_student("W", W), self.V, self.d, seed)

    def zero_path(self, W0: Array, W1: Array) -> Float[Tensor, "corners K d"]:
        """Return the corners of a piecewise linear path of zero loss from W0 to W1.

        Raises:
            InputError: An end has loss above 1e-12, or K = M and the ends differ.
        """
        return zero_path(self._student(W0), self._student(W1), self.V)

    def symmetric_minimum(self, p: Sequence[float], seed: int = 0) -> SymmetricPoint:
        """Return the lowest critical point of isotropy p apart from W = V.

        For V with orthonormal rows and K = M = Σ p; `W` is in this space.

        Raises:
            InputError: The teacher is not orthonormal, K != M or Σ p != K.
        """
        gram = self.V @ self.V.mT
        eye = torch.eye(self.M, dtype=gram.dtype, device=gram.device)
        if self.K != self.M or float((gram - eye).abs().max()) > 1e-10:
            raise InputError(
                "symmetric_minimum needs an orthonormal teacher and K = M, got "
                f"K = {self.K}, M = {self.M}"
            )
        if sum(p) != self.K or any(size != int(size) for size in p):
            raise InputError(
                f"p must be integers that sum to K = {self.K}, got {tuple(p)}"
            )
        point = symmetric_minimum(p, seed)
        assert point.W is not None
        return replace(point, W=point.W.to(self.V) @ self.V)

    # One-pass SGD -------------------------------------------------------------------

    def ode(
        self,
        W0: Array | tuple[Array, Array],
        eta: float = 1.0,
        delta: float = 0.0,
        *,
        t_max: float,
        record: int | Iterable[float] = 101,
        noise: bool = True,
        method: Integrator = "rk4",
        step: float | None = None,
    ) -> OverlapTrajectory:
        """Integrate the overlaps of one-pass SGD as d -> ∞.

        Args:
            W0: Initial student (K, d), or its overlaps (Q, R).
            eta: Learning rate η of the step η/d.
            delta: Variance Δ of the label noise.
            t_max: Final time, in units of step / d.
            record: Times, or how many evenly spaced ones; duplicates are merged.
            noise: Keep the η² term; without it this is gradient flow, time times η.
            method: "rk4" (fixed step, 0.05 / η by default) or "rk45" (adaptive).
            step: Fixed step, or the first one of "rk45".

        Raises:
            InputError: eta <= 0, delta < 0, t_max <= 0, overlaps that are none, or a
                step that is too long.
        """
        check_rates(eta, delta, t_max)
        P = self.V @ self.V.mT
        Q, R = self._initial_overlaps(W0)
        flow = OverlapFlow(P, eta, delta, noise)
        return integrate(flow, Q, R, t_max, record=record, method=method, step=step)

    def simulate_sgd(
        self,
        W0: Array | tuple[Array, Array],
        eta: float,
        delta: float = 0.0,
        *,
        t_max: float,
        seeds: Sequence[int] = (0,),
        d: int | None = None,
        record: int | Iterable[float] = 101,
    ) -> OverlapTrajectory:
        """Run one-pass SGD in dimension d from a start of exactly these overlaps.

        Overlaps have a leading axis of seeds. They deviate from `ode` by O(d^-1/2).

        Args:
            W0: Initial student (K, self.d), or its overlaps (Q, R).
            eta: Learning rate η of the step η/d.
            delta: Variance Δ of the label noise.
            t_max: Final time; t_max d steps are made.
            seeds: One run each.
            d: Input dimension, this landscape's by default.
            record: Times, or how many evenly spaced ones; duplicates are merged.

        Raises:
            InputError: See `ode`, or d < rank V + rank of what lies outside span(V).
        """
        d = self.d if d is None else d
        if not isinstance(W0, tuple) and d == self.d:
            W, V = self._one_student("W0", W0), self.V
        else:
            Q, R = self._initial_overlaps(W0)
            basis = reduction.span(self.V)
            coordinates = self.V @ basis
            C = R @ torch.linalg.pinv(coordinates).mT
            W = reduction.lift(C, Q - C @ C.mT, basis, d)
            V = torch.nn.functional.pad(self.V, (0, d - self.d))
        return simulate_sgd(
            W, V, eta=eta, delta=delta, t_max=t_max, seeds=seeds, record=record
        )

    def _initial_overlaps(
        self, W0: Array | tuple[Array, Array]
    ) -> tuple[Tensor, Tensor]:
        if isinstance(W0, tuple):
            Q, R, _ = as_overlaps(*W0, self.V @ self.V.mT)
            if Q.shape != (self.K, self.K) or R.shape != (self.K, self.M):
                raise InputError(
                    f"overlaps must be ({self.K}, {self.K}) and ({self.K}, {self.M}), "
                    f"got {tuple(Q.shape)} and {tuple(R.shape)}"
                )
            return Q, R
        W = self._one_student("W0", W0)
        return W @ W.mT, W @ self.V.mT

    def ode_jacobian(self, W: Array) -> FlowJacobian:
        """Return the spectrum of the small-η overlap flow's Jacobian at W.

        Raises:
            InputError: W is no critical point, or leaves span(V).
        """
        return ode_jacobian(self._one_student("W", W), self.V)


class ReLUHessian(LinearOperator):
    """The Hessian of a `ReLUTeacherStudent` at one point.

    A product costs O((K² + KM) d); the geometry of the pairs is computed once.
    """

    def __init__(
        self,
        land: ReLUTeacherStudent,
        point: Tensor,
        zero_neuron: str,
    ) -> None:
        super().__init__(
            land.dim, dtype=point.dtype, device=point.device, layout=land.layout
        )
        W = land._student(land.weights(point))
        alive = ~zero_neurons(W, land.V)
        if zero_neuron == "raise":
            check_neurons(W, land.V)
        elif zero_neuron != "drop":
            raise InputError(
                f'zero_neuron must be "raise" or "drop", got {zero_neuron!r}'
            )
        self.dropped: tuple[int, ...] = tuple((~alive).nonzero()[:, 0].tolist())
        self._kept = alive.nonzero()[:, 0]
        self._sizes = land.K, land.d
        self._curvature = Curvature(W[alive], land.V)

    def _product(self, v: Tensor) -> Tensor:
        return self._products(v[:, None])[:, 0]

    def _products(self, V: Tensor) -> Tensor:
        X = V.double().mT.unflatten(-1, self._sizes)
        product = torch.zeros_like(X)
        product[:, self._kept] = self._curvature.product(X[:, self._kept])
        return product.flatten(-2).mT.to(self.dtype)

    def dense(self) -> Tensor:
        """Return the matrix in closed form, exactly symmetric, without a product."""
        (K, d), n = self._sizes, len(self._kept)
        H = self._curvature.W.new_zeros(K, d, K, d)
        block = self._curvature.dense().reshape(n, d, n, d)
        kept = self._kept
        H[kept[:, None], :, kept] = block.permute(0, 2, 1, 3)
        return H.reshape(K * d, K * d).to(self.dtype)
