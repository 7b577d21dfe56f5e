"""Descents from many random starts at once, each to a certified minimum."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from thalweg.errors import InputError
from thalweg.seeding import normal
from thalweg.solvable.two_layer_relu.checks import Array, as_weights
from thalweg.solvable.two_layer_relu.derivatives import Curvature
from thalweg.solvable.two_layer_relu.kernel import loss as exact_loss
from thalweg.solvable.two_layer_relu.objective import Objective
from thalweg.solvable.two_layer_relu.polish import (
    certify,
    chunks,
    newton_polish,
    tolerance,
)
from thalweg.solvable.two_layer_relu.quasi_newton import QuasiNewton
from thalweg.solvable.two_layer_relu.reduction import span

Method = Literal["auto", "gd"]
STATUS = ("converged", "max_iter", "diverged")
KIND = ("minimum", "degenerate", "saddle", "unknown")

_PAIRS = 80_000  # angles evaluated together: what fits in the second-level cache
_SWITCH = 1e-5  # gradient norm below which Newton steps may take over
_PATIENCE = 60  # first-order steps that are granted below it
_ESCAPE = 1e-3
_ESCAPES = 20
_BLOCK = 256  # starts drawn with one key


@dataclass(frozen=True)
class Descents:
    """The ends of n descents, one row a start.

    Attributes:
        W: Ends, (n, K, d).
        loss: Their losses.
        grad_norm: |∇L| there, from the accurate gradient.
        n_iter: Evaluations of the gradient, Newton steps not counted.
        status: Index into `STATUS`: converged, max_iter, diverged.
        kind: Index into `KIND`: minimum (proved: H - τI and S - τI have Cholesky
            factors, or all eigenvalues are above τ), degenerate (no eigenvalue below
            -τ, some within ±τ), saddle, unknown (not converged).
        by_loss: The loss met `loss_tol` while the gradient was still above `tol`.
        n_escapes: How often the descent was pushed off a saddle.
        shrunk: How often gradient descent had to halve its step.
    """

    W: Tensor
    loss: Tensor
    grad_norm: Tensor
    n_iter: Tensor
    status: Tensor
    kind: Tensor
    by_loss: Tensor
    n_escapes: Tensor
    shrunk: Tensor

    def __len__(self) -> int:
        return len(self.W)

    @property
    def converged(self) -> Tensor:
        """Return which descents converged, (n,)."""
        return self.status == STATUS.index("converged")

    def __repr__(self) -> str:
        counts = ", ".join(
            f"{int((self.kind == i).sum())} {name}" for i, name in enumerate(KIND)
        )
        return f"Descents({len(self)} starts: {counts})"


def find_minima(
    V: Tensor,
    K: int,
    n_starts: int,
    *,
    init: str | Array = "gaussian",
    scale: float | None = None,
    d: int | None = None,
    tol: float = 1e-10,
    loss_tol: float | None = None,
    max_iter: int | None = None,
    seed: int = 0,
    method: Method = "auto",
    escape_saddles: bool = True,
) -> Descents:
    """Descend from `n_starts` random students to minima of the loss.

    "auto" is batched L-BFGS in the metric I + 11ᵀ of the neurons, then Newton steps
    where it is slow, then a certificate. "gd" is gradient descent with the fixed step
    5 / max(K, 4), halved for a member whenever its loss rises (`shrunk` counts); with
    `escape_saddles=False` it is the plain protocol of the literature.

    The loss sees W in span(V) and its Gram matrix outside, so that the descent runs in
    min(d, r + K) dimensions and is turned back at the end.

    Args:
        V: Teacher (M, d0).
        K: Number of students.
        n_starts: Number of starts; start i depends on (seed, i) only.
        init: "gaussian", or the starts themselves (n_starts, K, d).
        scale: Standard deviation of the entries of W, 1/√d by default.
        d: Input dimension, rank V by default.
        tol: Gradient norm at which a descent has converged.
        loss_tol: Loss at which it has converged, whatever the gradient: for K > M,
            where the loss is flat to third order at its global minima.
        max_iter: Gradient evaluations of one start: 5,000, or 200,000 with "gd".
        seed: Seed of the starts.
        method: "auto" or "gd".
        escape_saddles: Push a descent that ends at a saddle along its most negative
            direction and go on.

    Raises:
        InputError: n_starts < 1, K < 1, a `tol` or `scale` that is not positive,
            max_iter < 1, or an unknown `init` or `method`.
    """
    if n_starts < 1:
        raise InputError(f"n_starts must be at least 1, got {n_starts}")
    if K < 1:
        raise InputError(f"K must be at least 1, got {K}")
    if not tol > 0:
        raise InputError(f"tol must be positive, got {tol}")
    if max_iter is not None and max_iter < 1:
        raise InputError(f"max_iter must be at least 1, got {max_iter}")
    if method not in ("auto", "gd"):
        raise InputError(f'method must be "auto" or "gd", got {method!r}')
    space = _WorkingSpace(V, K, d)
    starts = space.starts(n_starts, init, scale, seed)
    if max_iter is None:
        max_iter = 5_000 if method == "auto" else 200_000
    engine = _Engine(
        space.teacher,
        tol,
        -math.inf if loss_tol is None else loss_tol,
        max_iter,
        space.fresh,
        escape_saddles,
        method,
    )
    return space.turn_back(engine.run(starts))


class _WorkingSpace:
    """Coordinates in which a descent runs, and the way back to R^d."""

    def __init__(self, V: Tensor, K: int, d: int | None) -> None:
        basis = span(V)
        d0, rank = basis.shape
        # Without d the space is span(V) itself, embedded in the teacher's space.
        self.d = rank if d is None else d
        if self.d < rank or (d is not None and d < d0):
            raise InputError(
                f"d must be at least the teacher's dimension {d0}, got {self.d}"
            )
        self.K, self.rank = K, rank
        self.ambient = max(d0, self.d)
        self.width = min(self.d, rank + K)
        padded = V.new_zeros(self.ambient, rank)
        padded[:d0] = basis
        self.axes = torch.linalg.qr(padded, mode="complete").Q
        self.axes[:, :rank] = padded
        self.teacher = V.new_zeros(len(V), self.width)
        self.teacher[:, :rank] = V @ basis
        self.fresh = self.d > self.width  # the others are in the working space
        self._turns: Tensor | None = None

    def starts(
        self, n: int, init: str | Array, scale: float | None, seed: int
    ) -> Tensor:
        scale = 1 / math.sqrt(self.d) if scale is None else scale
        if not scale > 0:
            raise InputError(f"scale must be positive, got {scale}")
        if not isinstance(init, str):
            W = as_weights(init, self.axes)
            if W.shape[:-1] != (n, self.K):
                raise InputError(
                    f"init must have shape ({n}, {self.K}, {self.ambient}), got "
                    f"{tuple(W.shape)}"
                )
            coordinates = W @ self.axes
        elif init == "gaussian":
            shape = (_BLOCK, self.K, self.d)
            blocks = [
                normal(shape, seed, "two-layer-relu", b, like=self.teacher)
                for b in range(-(-n // _BLOCK))
            ]
            coordinates = scale * torch.cat(blocks)[:n]
        else:
            raise InputError(f'init must be "gaussian" or a tensor, got {init!r}')
        if coordinates.shape[-1] <= self.width:
            return coordinates
        inside, outside = coordinates.split(
            [self.rank, coordinates.shape[-1] - self.rank], -1
        )
        self._turns, triangular = torch.linalg.qr(outside.mT)
        return torch.cat([inside, triangular.mT], -1)

    def turn_back(self, ends: Descents) -> Descents:
        W = ends.W
        if self._turns is not None:
            outside = W[..., self.rank :] @ self._turns.mT
            W = torch.cat([W[..., : self.rank], outside], -1)
        W = W @ self.axes[:, : W.shape[-1]].mT
        others = {f.name: getattr(ends, f.name) for f in fields(ends)}
        return Descents(**(others | {"W": W}))


@dataclass(frozen=True)
class _Engine:
    """One run: first-order phase, Newton steps, certificates, escapes."""

    V: Tensor
    tol: float
    loss_tol: float
    max_iter: int
    fresh: bool
    escape: bool
    method: Method

    def run(self, starts: Tensor) -> Descents:
        n, device = len(starts), starts.device
        W = starts.clone()
        iterations = torch.zeros(n, dtype=torch.long, device=device)
        escapes, shrunk = torch.zeros_like(iterations), torch.zeros_like(iterations)
        kind = torch.full_like(iterations, KIND.index("unknown"))
        status = torch.full_like(iterations, STATUS.index("max_iter"))
        norm, value = W.new_zeros(n), W.new_zeros(n)
        rows = torch.arange(n, device=device)
        for attempt in range(_ESCAPES + 1):
            first = self._quasi_newton if self.method == "auto" else self._fixed_step
            for index, x, count, halved in first(W[rows]):
                which = rows[index]
                W[which] = x
                iterations[which] += count
                shrunk[which] += halved
            self._finish(W, rows, norm, value, status, kind)
            saddles = rows[kind[rows] == KIND.index("saddle")]
            if not self.escape or not len(saddles) or attempt == _ESCAPES:
                break
            W[saddles] = self._pushed(W[saddles])
            escapes[saddles] += 1
            rows = saddles
        by_loss = (status == 0) & (norm > self.tol)
        return Descents(
            W, value, norm, iterations, status, kind, by_loss, escapes, shrunk
        )

    # First-order phase --------------------------------------------------------------

    def _quasi_newton(
        self, starts: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
        """Yield (rows, ends, evaluations, 0) as members finish; slots are refilled."""
        K, M = starts.shape[1], len(self.V)
        size = min(len(starts), max(32, _PAIRS // (K * (K + M))))
        members = torch.arange(size, device=starts.device)
        state = QuasiNewton(Objective(self.V, starts.shape[1]), starts[:size])
        below = torch.zeros_like(members)
        following = size
        while len(members):
            state.advance()
            below += state.norm < _SWITCH
            done = (state.norm <= self.tol) | ~torch.isfinite(state.norm)
            done |= (state.loss <= self.loss_tol) | (below >= _PATIENCE)
            done |= state.evaluations >= self.max_iter
            finished = done.nonzero()[:, 0]
            # Starting and dropping members costs an evaluation: not one by one.
            if len(finished) < max(1, len(members) // 16) and not bool(done.all()):
                continue
            yield (
                members[finished],
                state.x[finished].view(-1, *starts.shape[1:]),
                state.evaluations[finished],
                0,
            )
            fresh = min(len(finished), len(starts) - following)
            filled = finished[:fresh]
            if fresh:
                new = torch.arange(following, following + fresh, device=starts.device)
                following += fresh
                state.replace(filled, starts[new])
                members[filled], below[filled] = new, 0
            if fresh < len(finished):
                alive = torch.ones_like(done)
                alive[finished[fresh:]] = False
                state.keep(alive)
                members, below = members[alive], below[alive]

    def _fixed_step(
        self, starts: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Yield (rows, ends, evaluations, halvings) of gradient descent."""
        K = starts.shape[1]
        objective = Objective(self.V, starts.shape[1])
        x, members = starts.clone(), torch.arange(len(starts), device=starts.device)
        step = starts.new_full((len(starts),), 5 / max(K, 4))
        halved = torch.zeros_like(members)
        value, gradient = objective(x)
        for count in range(1, self.max_iter + 1):
            norm = gradient.flatten(1).norm(dim=1)
            done = (norm <= self.tol) | (value <= self.loss_tol)
            done |= ~torch.isfinite(norm)
            if count == self.max_iter:
                done = torch.ones_like(done)
            if bool(done.any()):
                used = torch.full_like(members[done], count)
                yield members[done], x[done], used, halved[done]
                kept = ~done
                x, gradient, value = x[kept], gradient[kept], value[kept]
                members, step, halved = members[kept], step[kept], halved[kept]
            if not len(members):
                return
            trial = x - step[:, None, None] * gradient
            new_value, new_gradient = objective(trial)
            worse = new_value > value + 1e-13 * objective.teacher_energy
            step = torch.where(worse, step / 2, step)
            halved += worse
            rows = worse[:, None, None]
            x = torch.where(rows, x, trial)
            gradient = torch.where(rows, gradient, new_gradient)
            value = torch.where(worse, value, new_value)

    # The end ------------------------------------------------------------------------

    def _finish(
        self,
        W: Tensor,
        rows: Tensor,
        norm: Tensor,
        value: Tensor,
        status: Tensor,
        kind: Tensor,
    ) -> None:
        """Polish, certify and label the members `rows`, in place."""
        finite = W[rows].flatten(1).isfinite().all(1)
        status[rows[~finite]] = STATUS.index("diverged")
        kind[rows[~finite]] = KIND.index("unknown")
        norm[rows[~finite]] = value[rows[~finite]] = math.nan
        rows = rows[finite]
        for part in rows.split(4096):
            value[part] = exact_loss(W[part], self.V)
            gradient = Curvature(W[part], self.V).gradient()
            norm[part] = gradient.flatten(1).norm(dim=1)
        if self.method == "auto":
            slow = rows[
                (norm[rows] > self.tol)
                & (norm[rows] < _SWITCH)
                & (value[rows] > self.loss_tol)
            ]
            if len(slow):
                W[slow], norm[slow] = newton_polish(
                    W[slow], self.V, self.tol, self.loss_tol
                )
                value[slow] = exact_loss(W[slow], self.V)
        reached = (norm[rows] <= self.tol) | (value[rows] <= self.loss_tol)
        status[rows[reached]] = STATUS.index("converged")
        kind[rows[~reached]] = KIND.index("unknown")
        rows = rows[reached]
        if not len(rows):
            return
        proved = certify(W[rows], self.V, fresh=self.fresh)
        kind[rows[proved]] = KIND.index("minimum")
        rest = rows[~proved]
        if len(rest):
            kind[rest] = self._kind(W[rest])

    def _kind(self, W: Tensor) -> Tensor:
        """Return the kind of each student from the eigenvalues of H and S."""
        kinds = []
        for part in chunks(W):
            curvature = Curvature(part, self.V)
            values = torch.linalg.eigvalsh(curvature.dense())
            tau = tolerance(values[:, -1])
            lowest = values[:, 0]
            if self.fresh:
                outside = torch.linalg.eigvalsh(curvature.S)
                lowest = torch.minimum(lowest, outside[:, 0])
            kinds.append(
                torch.where(lowest > tau, 0, torch.where(lowest >= -tau, 1, 2))
            )
        return torch.cat(kinds)

    def _pushed(self, W: Tensor) -> Tensor:
        """Move each student by 1e-3 along its most negative direction, downhill."""
        moved = []
        for part in chunks(W):
            curvature = Curvature(part, self.V)
            _, vectors = torch.linalg.eigh(curvature.dense())
            direction = _ESCAPE * vectors[:, :, 0].reshape(part.shape)
            sides = torch.stack([part + direction, part - direction])
            losses = exact_loss(sides, self.V)
            moved.append(
                torch.where((losses[0] <= losses[1])[:, None, None], sides[0], sides[1])
            )
        return torch.cat(moved)
