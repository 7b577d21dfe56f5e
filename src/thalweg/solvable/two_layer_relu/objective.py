"""Loss and gradient of many students at once, at the lowest cost: the inner loop.

Angles come from overlaps by the fast route, angle and sine from the same cosine, so
that the error of the gradient stays at rounding level even between collinear neurons.
`derivatives.py` is the accurate form that checks the ends.
"""

import math

import torch
from torch import Tensor

from thalweg.solvable.two_layer_relu.angles import pairs
from thalweg.solvable.two_layer_relu.kernel import TWO_PI

_TINY = 1e-300


class Objective:
    """(B, K, d) -> loss (B,) and gradient (B, K, d) for one teacher (M, d) and one K.

    About 6 K (K + M) d flops and K (K + M) angles a student.
    """

    def __init__(self, V: Tensor, K: int) -> None:
        self.V = V
        p = pairs(V, V)
        self.units = p.unit_x
        self.one = V.new_ones(())
        self.half_sum = V.sum(0) / 2
        self.weights = V.new_zeros(1, K + len(V), 2)
        self.weights[0, K:, 0] = -p.norm_x
        self.weights[0, K:, 1] = p.norm_x
        kernel = p.products * (p.sin + (math.pi - p.theta) * p.cos) / TWO_PI
        self.teacher_energy = float(kernel.sum())
        self.evaluations = 0

    def __call__(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """Return losses and gradients; the loss's floor is about 1e-16 of Σh."""
        B, K, d = W.shape
        M = self.V.shape[0]
        self.evaluations += B
        norm = torch.linalg.vector_norm(W, dim=-1).clamp_min_(_TINY)
        units = torch.cat([W / norm[:, :, None], self.units.expand(B, M, d)], 1)
        cos = torch.bmm(units[:, :K], units.mT)
        sin = torch.addcmul(self.one, cos, cos, value=-1).clamp_min_(0.0).sqrt_()
        theta = torch.atan2(sin, cos)
        # Columns: sums over all with sign, and over teachers alone.
        weights = self.weights.repeat(B, 1, 1)
        weights[:, :K, 0] = norm
        sums = torch.bmm(sin, weights).mul_(1 / TWO_PI)
        to_teachers = torch.baddbmm(
            self.half_sum.expand(B, K, d),
            theta[:, :, K:],
            self.V.expand(B, M, d),
            alpha=-1 / TWO_PI,
        )
        gradient = torch.baddbmm(
            W.sum(1, keepdim=True).expand(B, K, d),
            theta[:, :, :K],
            W,
            beta=0.5,
            alpha=-1 / TWO_PI,
        )
        gradient -= to_teachers
        gradient.addcmul_((sums[:, :, 0] / norm)[:, :, None], W)
        # h is homogeneous: L = ½ <W, ∇L> - ½ Σ h(w, v) + ½ Σ h(v, v)
        inner = (W * (gradient - to_teachers)).sum((1, 2))
        inner -= (norm * sums[:, :, 1]).sum(1)
        return (inner + self.teacher_energy) / 2, gradient
