"""Batched L-BFGS whose members start, finish and are replaced one by one.

Every iteration is one evaluation of all members. The metric is I + 11ᵀ over neurons,
the Hessian of orthogonal neurons up to a factor: the sum of the neurons is K + 1 times
stiffer than their differences, and nothing else about the problem is that stiff.
"""

import torch
from torch import Tensor

from thalweg.solvable.two_layer_relu.objective import Objective

_MEMORY = 5
_FIRST_SCALE = 4.0  # H ≈ (I + 11ᵀ) / 4 at orthogonal neurons
_ARMIJO = 1e-4
_SHRINK = 0.4
_SHORTEST = 1e-8


class QuasiNewton:
    """The state of B descents; rows never see each other.

    A step is accepted on sufficient decrease of the loss, or, where the predicted
    decrease is below the rounding floor of the loss, on a gradient that does not grow.
    """

    def __init__(self, objective: Objective, W: Tensor) -> None:
        self.objective = objective
        self.shape = W.shape[1:]
        B, n = len(W), W[0].numel()
        self.steps = W.new_zeros(_MEMORY, B, n)
        self.changes = W.new_zeros(_MEMORY, B, n)
        self.rho = W.new_zeros(_MEMORY, B)
        self.head = 0
        self.evaluations = torch.zeros(B, dtype=torch.long, device=W.device)
        self.x = W.reshape(B, n).clone()
        self._restart(slice(None), self.x)

    def _restart(self, rows: slice | Tensor, x: Tensor) -> None:
        loss, gradient = self._evaluate(x)
        direction = self._precondition(gradient).mul_(-_FIRST_SCALE)
        if isinstance(rows, slice):
            self.loss, self.gradient, self.direction = loss, gradient, direction
            self.scale = torch.full_like(loss, _FIRST_SCALE)
            self.length = torch.ones_like(loss)
            self.norm = gradient.norm(dim=1)
            self.slope = torch.linalg.vecdot(gradient, direction)
        else:
            self.loss[rows], self.gradient[rows] = loss, gradient
            self.direction[rows] = direction
            self.scale[rows], self.length[rows] = _FIRST_SCALE, 1.0
            self.norm[rows] = gradient.norm(dim=1)
            self.slope[rows] = torch.linalg.vecdot(gradient, direction)
        self.rho[:, rows] = 0.0
        self.evaluations[rows] = 1

    def replace(self, rows: Tensor, W: Tensor) -> None:
        """Put fresh starts into `rows`."""
        x = W.reshape(len(rows), -1)
        self.x[rows] = x
        self._restart(rows, x)

    def keep(self, rows: Tensor) -> None:
        """Drop all members but `rows`."""
        for name in (
            "x", "loss", "gradient", "direction", "scale", "length", "norm", "slope",
            "evaluations",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name)[rows])
        for name in ("steps", "changes", "rho"):
            setattr(self, name, getattr(self, name)[:, rows])

    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradient = self.objective(x.view(-1, *self.shape))
        return loss, gradient.view(x.shape)

    def _precondition(self, x: Tensor) -> Tensor:
        """Return (I + 11ᵀ)⁻¹ x over neurons."""
        K = self.shape[0]
        x = x.view(-1, *self.shape)
        return (x - x.sum(1, keepdim=True) / (K + 1)).view(x.shape[0], -1)

    def advance(self) -> None:
        """Try one step of every member, and choose the next directions."""
        trial = torch.addcmul(self.x, self.length[:, None], self.direction)
        loss, gradient = self._evaluate(trial)
        self.evaluations += 1
        norm = torch.linalg.vector_norm(gradient, dim=1)
        predicted = self.length * self.slope
        accepted = loss <= self.loss + _ARMIJO * predicted
        accepted |= (predicted > -1e-11) & (norm <= self.norm)
        accepted |= self.length < _SHORTEST  # a stuck member restarts from here
        self._remember(gradient, accepted)
        if bool(accepted.all()):
            self.x, self.gradient, self.loss, self.norm = trial, gradient, loss, norm
        else:
            rows = accepted[:, None]
            self.x = torch.where(rows, trial, self.x)
            self.gradient = torch.where(rows, gradient, self.gradient)
            self.loss = torch.where(accepted, loss, self.loss)
            self.norm = torch.where(accepted, norm, self.norm)
        self.direction = self._two_loop(self.gradient)
        self.slope = torch.linalg.vecdot(self.gradient, self.direction)
        self.length = torch.where(accepted, 1.0, self.length * _SHRINK)

    def _remember(self, gradient: Tensor, accepted: Tensor) -> None:
        self.head = (self.head + 1) % _MEMORY
        step, change = self.steps[self.head], self.changes[self.head]
        torch.mul(self.direction, self.length[:, None], out=step)
        torch.sub(gradient, self.gradient, out=change)
        curvature = torch.linalg.vecdot(step, change)
        total = change.view(-1, *self.shape).sum(1)  # change·P change, P as above
        weighted = torch.linalg.vecdot(change, change)
        weighted -= torch.linalg.vecdot(total, total) / (self.shape[0] + 1)
        useful = accepted & (curvature > 1e-14 * weighted)
        self.rho[self.head] = torch.where(useful, 1 / curvature, 0.0)
        self.scale = torch.where(useful, curvature / weighted, self.scale)

    def _two_loop(self, gradient: Tensor) -> Tensor:
        q = gradient.clone()
        order = [(self.head - i) % _MEMORY for i in range(_MEMORY)]
        weights = {}
        for i in order:
            weights[i] = self.rho[i] * torch.linalg.vecdot(self.steps[i], q)
            q.addcmul_(weights[i][:, None], self.changes[i], value=-1)
        q = self._precondition(q).mul_(self.scale[:, None])
        for i in reversed(order):
            inner = self.rho[i] * torch.linalg.vecdot(self.changes[i], q)
            q.addcmul_((weights[i] - inner)[:, None], self.steps[i])
        return q.neg_()
