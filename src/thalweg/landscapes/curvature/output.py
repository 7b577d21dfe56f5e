"""Curvature of a loss in the model's output: B, and a square root S with B = S Sᵀ.

Closed forms for softmax cross-entropy, squared error and BCE with logits; any other
loss by a double backward through the loss alone. Nothing here knows of parameters.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from inspect import signature

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OutputCurvature(ABC):
    """The symmetric matrix B of one batch, acting on tensors shaped as the output."""

    @abstractmethod
    def apply(self, u: Tensor) -> Tensor:
        """Return B u."""

    def root(self, u: Tensor) -> Tensor | None:
        """Return Sᵀ u with B = S Sᵀ, or None where no square root is known."""
        return None

    def gram(self, columns: Tensor) -> Tensor:
        """Return Tᵀ B T for columns (k, *output), in float64.

        Positive semi-definite by construction where a square root is known.
        """
        roots = [self.root(u) for u in columns.unbind(0)]
        if roots and all(r is not None for r in roots):
            S = torch.stack([r.reshape(-1) for r in roots if r is not None]).double()
            return S @ S.T
        images = torch.stack([self.apply(u) for u in columns.unbind(0)])
        matrix = columns.flatten(1).double() @ images.flatten(1).double().T
        return (matrix + matrix.T) / 2


class ModelCurvature(OutputCurvature):
    """A B that is the Fisher information of a known distribution of the target."""

    @property
    @abstractmethod
    def draws(self) -> int:
        """Number of uniform variates that one sample of the batch's targets needs."""

    @abstractmethod
    def score(self, uniforms: Tensor) -> Tensor:
        """Return r, shaped as the output, with E[r rᵀ] = B over uniform variates."""


class SoftmaxCurvature(ModelCurvature):
    """B = s_i (diag p_i - p_i p_iᵀ) at every location i; classes on `axis`."""

    def __init__(self, logits: Tensor, scale: Tensor, axis: int) -> None:
        self._axis = axis
        self._p = logits.movedim(axis, -1).softmax(-1)
        self._scale = scale.unsqueeze(-1)

    def apply(self, u: Tensor) -> Tensor:
        """Return s (p u - p (p.u))."""
        weighted = self._p * u.movedim(self._axis, -1)
        weighted -= self._p * weighted.sum(-1, keepdim=True)
        return weighted.mul_(self._scale).movedim(-1, self._axis)

    def root(self, u: Tensor) -> Tensor:
        """Return √s √p (u - p.u)."""
        u = u.movedim(self._axis, -1)
        centered = u - (self._p * u).sum(-1, keepdim=True)
        return (self._p * self._scale).sqrt() * centered

    @property
    def draws(self) -> int:
        """One variate a location."""
        return self._p.shape[:-1].numel()

    def score(self, uniforms: Tensor) -> Tensor:
        """Return √s (p - e_y) with y drawn from p."""
        cumulative = self._p.double().cumsum(-1)
        drawn = uniforms.view(self._scale.shape) * cumulative[..., -1:]
        y = torch.searchsorted(cumulative, drawn, right=True)
        y = y.clamp_(max=self._p.shape[-1] - 1)
        r = self._p.scatter_add(-1, y, -torch.ones_like(self._p[..., :1]))
        return (self._scale.sqrt() * r).movedim(-1, self._axis)


class GaussianCurvature(ModelCurvature):
    """B = s I of a squared error."""

    def __init__(self, output: Tensor, scale: float) -> None:
        self._like, self._scale = output, scale

    def apply(self, u: Tensor) -> Tensor:
        """Return s u."""
        return self._scale * u

    def root(self, u: Tensor) -> Tensor:
        """Return √s u."""
        return self._scale**0.5 * u

    @property
    def draws(self) -> int:
        """One variate an entry."""
        return self._like.numel()

    def score(self, uniforms: Tensor) -> Tensor:
        """Return √s ε, ε standard normal."""
        # The smallest variate above 0 that float64 distinguishes from 1 by symmetry.
        normal = torch.special.ndtri(uniforms.clamp(min=2.0**-53))
        return self._scale**0.5 * normal.to(self._like).view(self._like.shape)


class BernoulliCurvature(ModelCurvature):
    """B = diag(s p (1 - p)) of binary cross-entropy with logits."""

    def __init__(self, logits: Tensor, scale: Tensor) -> None:
        self._p = logits.sigmoid()
        self._scale = scale
        # p (1 - p) from both tails: 1 - sigmoid(o) rounds to 0 for large o.
        self._diagonal = scale * self._p * (-logits).sigmoid()

    def apply(self, u: Tensor) -> Tensor:
        """Return s p (1 - p) u."""
        return self._diagonal * u

    def root(self, u: Tensor) -> Tensor:
        """Return √(s p (1 - p)) u."""
        return self._diagonal.sqrt() * u

    @property
    def draws(self) -> int:
        """One variate an entry."""
        return self._p.numel()

    def score(self, uniforms: Tensor) -> Tensor:
        """Return √s (p - y) with y drawn from Bernoulli(p)."""
        y = (uniforms.view(self._p.shape) < self._p).to(self._p)
        return self._scale.sqrt() * (self._p - y)


class DiagonalCurvature(OutputCurvature):
    """B = diag(d), d >= 0, one entry an output."""

    def __init__(self, diagonal: Tensor) -> None:
        self.diagonal = diagonal

    def apply(self, u: Tensor) -> Tensor:
        """Return d u."""
        return self.diagonal * u

    def root(self, u: Tensor) -> Tensor:
        """Return √d u."""
        return self.diagonal.sqrt() * u


class SampledCurvature(OutputCurvature):
    """B = (1/m) Σ_j r_j r_jᵀ, block diagonal over the rows of the output."""

    def __init__(self, scores: Tensor) -> None:
        self._scores = scores / scores.shape[0] ** 0.5

    def apply(self, u: Tensor) -> Tensor:
        """Return Σ_j r_j (r_j.u), row by row."""
        dots = self.root(u)
        weights = dots.view(*dots.shape, *(1,) * (u.ndim - 1))
        return (self._scores * weights).sum(0)

    def root(self, u: Tensor) -> Tensor:
        """Return r_j.u, one number a sample and row."""
        return (self._scores * u).reshape(*self._scores.shape[:2], -1).sum(-1)


class LossCurvature(OutputCurvature):
    """B of any loss: one backward pass through the gradient's graph of the loss."""

    def __init__(self, output: Tensor, value: Tensor) -> None:
        self._output = output
        (self._gradient,) = torch.autograd.grad(
            value, output, create_graph=True, materialize_grads=True
        )

    def apply(self, u: Tensor) -> Tensor:
        """Return B u; zero where the loss is linear in the output."""
        if not self._gradient.requires_grad:
            return torch.zeros_like(u)
        (product,) = torch.autograd.grad(
            self._gradient, self._output, u, retain_graph=True, materialize_grads=True
        )
        return product


# Recognized losses ------------------------------------------------------------------


def model_curvature(
    loss: Callable[..., Tensor], output: Tensor, target: Tensor
) -> ModelCurvature | None:
    """Return B in closed form where `loss` is one that is known, else None.

    Known are the functions `cross_entropy`, `mse_loss` and
    `binary_cross_entropy_with_logits` of `torch.nn.functional`, also as
    `functools.partial` with keywords, and the modules of these losses, with class
    weights, `ignore_index`, label smoothing, soft labels and all scalar reductions.
    """
    function, options = _function_and_options(loss)
    for known, build in _KNOWN:
        if function is known and options.keys() <= signature(build).parameters.keys():
            return build(output, target, **options)
    return None


def _function_and_options(loss):  # type: ignore[no-untyped-def]  # any callable
    match type(loss):
        case nn.CrossEntropyLoss:
            names = ("weight", "ignore_index", "reduction", "label_smoothing")
            return F.cross_entropy, {n: getattr(loss, n) for n in names}
        case nn.MSELoss:
            return F.mse_loss, {"reduction": loss.reduction}
        case nn.BCEWithLogitsLoss:
            own = ("weight", "pos_weight", "reduction")
            known = F.binary_cross_entropy_with_logits
            return known, {n: getattr(loss, n) for n in own}
        case functools.partial if not loss.args:
            return loss.func, dict(loss.keywords)
    return loss, {}


def _cross_entropy(  # noqa: D417
    output: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> SoftmaxCurvature:
    """Cross-entropy is Σ_c t_c (lse(o) - o_c): B = (Σ_c t_c) (diag p - p pᵀ)."""
    axis = 0 if output.ndim == 1 else 1
    classes = output.shape[axis]
    weight = output.new_ones(classes) if weight is None else weight.to(output)
    if target.is_floating_point():
        soft = target.to(output) * (1 - label_smoothing) + label_smoothing / classes
        scale = soft.movedim(axis, -1) @ weight
        total: Tensor | float = scale.numel()
    else:
        kept = target != ignore_index
        own = weight[target.where(kept, 0)] * kept
        total = own.sum()
        smooth = kept * weight.mean()
        scale = (1 - label_smoothing) * own + label_smoothing * smooth
    return SoftmaxCurvature(
        output, scale / total if reduction == "mean" else scale, axis
    )


def _squared_error(  # noqa: D417
    output: Tensor, target: Tensor, reduction: str = "mean"
) -> GaussianCurvature | None:
    """Mean over all entries of (o - y)²: B = (2/n) I."""
    if output.shape != target.shape:  # broadcasting couples entries
        return None
    return GaussianCurvature(output, 2 / output.numel() if reduction == "mean" else 2.0)


def _binary_cross_entropy(  # noqa: D417
    output: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> BernoulliCurvature:
    """-w (q y log p + (1 - y) log(1 - p)): B = diag(w (q y + 1 - y) p (1 - p))."""
    scale = torch.ones_like(output)
    if pos_weight is not None:
        scale = pos_weight * target + 1 - target
    if weight is not None:
        scale = scale * weight
    scale = scale.to(output).expand_as(output)
    return BernoulliCurvature(
        output, scale / output.numel() if reduction == "mean" else scale
    )


_Builder = Callable[..., ModelCurvature | None]
_KNOWN: tuple[tuple[Callable[..., Tensor], _Builder], ...] = (
    (F.cross_entropy, _cross_entropy),
    (F.mse_loss, _squared_error),
    (F.binary_cross_entropy_with_logits, _binary_cross_entropy),
)
