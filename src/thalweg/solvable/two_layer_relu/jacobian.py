"""Fixed points of the small-η overlap flow and minima of the loss: one spectrum.

At a critical point with every neuron in span(V), the Jacobian of the flow of (R, Q)
has the spectrum {-λ: λ of H_E} ∪ {-(s_i + s_j), i <= j: s of S}: a fixed point attracts
iff the point is a non-degenerate local minimum of the loss.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg.errors import InputError
from thalweg.solvable.two_layer_relu.derivatives import Curvature
from thalweg.solvable.two_layer_relu.reduction import span

_STATIONARY = 1e-6


@dataclass(frozen=True)
class FlowJacobian:
    """The Jacobian's spectrum at a fixed point of the overlap flow.

    Attributes:
        inside: -λ for the eigenvalues λ of H on span(V), (K r,), ascending.
        outside: -(s_i + s_j), i <= j, for the eigenvalues of S, (K (K + 1) / 2,),
            ascending.
    """

    inside: Tensor
    outside: Tensor

    @property
    def eigenvalues(self) -> Tensor:
        """Return all eigenvalues, ascending."""
        return torch.cat([self.inside, self.outside]).sort().values

    @property
    def attractive(self) -> bool:
        """Return whether the fixed point attracts, to 1e-8 of the largest rate."""
        values = self.eigenvalues
        return float(values[-1]) < -1e-8 * max(1.0, float(values.abs().max()))


def ode_jacobian(W: Tensor, V: Tensor) -> FlowJacobian:
    """Return the spectrum of the overlap flow's Jacobian at a critical point.

    For linearly dependent teachers the coordinates are those in an orthonormal basis
    of span(V), instead of R. Nothing is differenced; cost O((K r)³).

    Raises:
        InputError: W has gradient norm above 1e-6, or leaves span(V) by more.
    """
    basis = span(V)
    w = W @ basis
    rest = float((W - w @ basis.mT).norm())
    if rest > _STATIONARY:
        raise InputError(f"W must lie in span(V), it leaves it by {rest:.1e}")
    curvature = Curvature(w, V @ basis)
    norm = float(curvature.gradient().norm())
    if norm > _STATIONARY:
        raise InputError(f"W must be a critical point, its gradient is {norm:.1e}")
    s = torch.linalg.eigvalsh(curvature.S)
    i, j = torch.triu_indices(len(s), len(s))
    inside = -torch.linalg.eigvalsh(curvature.dense())
    return FlowJacobian(inside.flip(0), (-(s[i] + s[j])).sort().values)
