"""Certified lower bounds on the loss over a whole component."""

from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Literal

import numpy as np
import torch

from thalweg.errors import InputError, StructureError
from thalweg.seeding import numpy_generator
from thalweg.solvable.relu_topology.conservation import Array
from thalweg.solvable.relu_topology.convex_fit import Logistic, Squares, convex_fit
from thalweg.solvable.relu_topology.convex_losses import ConvexLoss, least_losses
from thalweg.solvable.relu_topology.labels import Components

Loss = Literal["mse", "logistic"]
Method = Literal["sign", "convexity", "nnls"]
ActivationName = Literal["relu", "leaky_relu", "abs", "identity"]
_MAX_ATOMS = 4000


@dataclass(frozen=True)
class Floor:
    """A lower bound on the training loss, or an estimate of the best one.

    Attributes:
        value: The bound; an upper estimate of the floor where not certified.
        method: "sign", "convexity", "nnls", or "trivial" where signs differ.
        certified: Whether no network on the component has a lower loss.
        exact: Whether networks of unlimited width come arbitrarily close.
        gap: What optimality of the fit is short of, relative to the loss of f = 0.
        share: Part of the examples that the bound uses; the value is scaled by it.
        note: What the value is, in a sentence.
    """

    value: float
    method: str
    certified: bool
    exact: bool
    gap: float
    share: float
    note: str


def loss_floor(
    x: Array,
    y: Array,
    component: Components | int,
    *,
    bias: bool = False,
    output_bias: bool = False,
    loss: Loss | ConvexLoss = "mse",
    activation: ActivationName = "relu",
    method: Method = "nnls",
    max_points: int = 200,
    flow: bool = True,
    seed: int = 0,
) -> Floor:
    """Return a lower bound on the training loss over a component of equal signs.

    Where every neuron is locked and all output signs are +, f >= 0 is convex and
    positively homogeneous (mirrored for -). The bounds, each at least the one before:

    - "sign": mean_i inf_{z >= 0} loss(z, y_i);
    - "convexity": the best fit by values z_i with slopes g_i, z_i = <g_i, x_i> and
      0 <= z_j >= <g_i, x_j>: a quadratic program of n² constraints;
    - "nnls": non-negative least squares on relu(<r, x>) over the rays r on which d - 1
      of the examples vanish. Within a cell of these the activity is constant and each
      r is a non-negative sum of its rays, so that this is the floor of unlimited
      width. Beyond 4,000 rays a random sample of directions: an estimate from above.

    Args:
        x: Inputs (n, inputs).
        y: Targets (n,); labels of -1 and +1 for "logistic".
        component: `components(...)`, or +1 or -1 where all signs agree.
        bias: Whether hidden neurons have a bias.
        output_bias: Whether the output has a free one; only convexity is left then.
        loss: "mse" is ½ mean (f - y)²; "logistic" mean log(1 + exp(-y f)), without
            "nnls"; or a function of outputs and targets (n,) to losses (n,), convex in
            the outputs and not negative, with the sign bound alone.
        activation: "relu", "leaky_relu" (only convexity is left), "abs", or "identity"
            (no bound: w1 may turn around instead of w2).
        method: The bound.
        max_points: Examples in the quadratic program; of more a random subset is taken
            and the bound scaled by its share.
        flow: Count marginal neurons as locked, as exact gradient flow does.
        seed: Of the subset and of sampled directions.

    Raises:
        StructureError: x and y do not fit.
        InputError: An option not listed, values not finite, or a method that does not
            hold for the loss or activation.
    """
    inputs, targets = _data(x, y, bias)
    _check(loss, activation, method, targets, max_points)
    sign = _common_sign(component, flow)
    if sign == 0:
        return Floor(
            0.0,
            "trivial",
            True,
            False,
            0.0,
            1.0,
            "neurons of both signs, or free ones: no bound but 0; ask `reachable`",
        )
    if activation == "identity":
        note = "a linear network turns w1 instead of w2: no sign obstructs it"
        return Floor(0.0, "trivial", True, False, 0.0, 1.0, note)
    bounded = not output_bias and activation != "leaky_relu"
    if not isinstance(loss, str):
        return _general_sign_floor(targets, loss, bounded, sign)
    targets = sign * targets
    if method == "sign":
        return _sign_floor(targets, loss, bounded)
    if method == "convexity":
        return _convexity_floor(
            inputs, targets, loss, bounded, output_bias, max_points, seed
        )
    return _nnls_floor(inputs, targets, output_bias, seed)


_NO_BOUND = Floor(
    0.0,
    "sign",
    True,
    False,
    0.0,
    1.0,
    "outputs of both signs are possible: the sign gives no bound",
)


def _general_sign_floor(
    targets: np.ndarray, loss: ConvexLoss, bounded: bool, sign: int
) -> Floor:
    if not bounded:
        return _NO_BOUND
    value = float(least_losses(loss, torch.from_numpy(targets), sign).mean())
    note = "the least loss of each example over outputs of the sign"
    return Floor(value, "sign", True, False, 0.0, 1.0, note)


def _sign_floor(targets: np.ndarray, loss: Loss, bounded: bool) -> Floor:
    if not bounded:
        return _NO_BOUND
    if loss == "mse":
        value = 0.5 * float(np.mean(np.minimum(targets, 0) ** 2))
    else:
        value = float(np.mean(targets < 0)) * float(np.log(2))
    note = "no output has the sign of these targets"
    return Floor(value, "sign", True, False, 0.0, 1.0, note)


def _convexity_floor(
    x: np.ndarray,
    y: np.ndarray,
    loss: Loss,
    bounded: bool,
    output_bias: bool,
    max_points: int,
    seed: int,
) -> Floor:
    share = 1.0
    if len(y) > max_points:
        share = max_points / len(y)
        rows = numpy_generator(seed, "subset").permutation(len(y))[:max_points]
        x, y = x[rows], y[rows]
    if output_bias:
        x = np.pad(x, ((0, 0), (0, 1)), constant_values=1.0)
    fitted = Squares(y) if loss == "mse" else Logistic(y)
    value, gap = convex_fit(x, fitted, nonnegative=bounded)
    note = "the best convex and positively homogeneous fit"
    if output_bias:
        note = "the best convex fit"
    if share < 1:
        note += f" to {max_points} examples, scaled by their share {share:.3g}"
    return Floor(share * value, "convexity", True, False, gap, share, note)


def _nnls_floor(x: np.ndarray, y: np.ndarray, output_bias: bool, seed: int) -> Floor:
    from scipy.optimize import nnls

    # Directions that no example sees change nothing: work in the span of the data.
    _, singular, frame = np.linalg.svd(x, full_matrices=False)
    rank = int(np.sum(singular > 1e-12 * max(singular.max(initial=0.0), 1e-300)))
    x = x @ frame[:rank].T
    complete = comb(len(x), max(rank - 1, 0)) * 2 <= _MAX_ATOMS
    rays = _rays(x) if complete else _sample_rays(x, seed)
    atoms = np.maximum(_cleaned(x @ rays.T), 0.0)
    if output_bias:
        ones = np.ones((len(x), 1))
        atoms = np.concatenate([atoms, ones, -ones], 1)
    lengths = np.linalg.norm(atoms, axis=0)
    atoms = atoms[:, lengths > 0] / lengths[lengths > 0]
    weights, _ = nnls(atoms, y, maxiter=30 * atoms.shape[1] + 100)
    residual = y - atoms @ weights
    value = 0.5 * float(np.mean(residual**2))
    size = float(np.linalg.norm(y)) or 1.0
    gap = max(float((atoms.T @ residual).max(initial=0.0)) / size, 0.0)
    note = "the best fit of unlimited width: non-negative least squares on all kinks"
    if not complete:
        note = "an estimate: non-negative least squares on a sample of directions"
    return Floor(
        value, "nnls" if complete else "estimate", complete, complete, gap, 1.0, note
    )


def _rays(x: np.ndarray) -> np.ndarray:
    """Return both orientations of each line on which rank - 1 examples vanish."""
    rank = x.shape[1]
    if rank == 1:
        return np.array([[1.0], [-1.0]])
    lines = []
    for rows in combinations(range(len(x)), rank - 1):
        _, singular, frame = np.linalg.svd(x[list(rows)])
        if singular[-1] > 1e-10 * singular[0]:
            lines.append(frame[-1])
    return np.concatenate([lines, -np.array(lines)])


def _sample_rays(x: np.ndarray, seed: int) -> np.ndarray:
    draw = numpy_generator(seed, "directions").standard_normal
    rays = draw((_MAX_ATOMS // 2, x.shape[1]))
    return np.concatenate([rays, x, -x])


def _cleaned(values: np.ndarray) -> np.ndarray:
    """Set to zero what vanishes but for rounding: examples on their own kink."""
    return np.where(np.abs(values) > 1e-12 * np.abs(values).max(), values, 0.0)


def _common_sign(component: Components | int, flow: bool) -> int:
    if not isinstance(component, Components):
        if component not in (-1, 1):
            raise InputError(
                f"component must be Components, +1 or -1, got {component!r}"
            )
        return component
    if component.e != 1:
        return 0
    positive, negative, free = component.counts(flow=flow)
    if free or (positive and negative):
        return 0
    return 1 if positive else -1 if negative else 0


def _data(x: Array, y: Array, bias: bool) -> tuple[np.ndarray, np.ndarray]:
    inputs = np.asarray(x, dtype=np.float64)
    targets = np.asarray(y, dtype=np.float64)
    if inputs.ndim != 2 or targets.shape != inputs.shape[:1] or not len(targets):
        raise StructureError(
            "x must have shape (n, inputs) and y (n,) with n >= 1, got "
            f"{inputs.shape} and {targets.shape}"
        )
    if not (np.isfinite(inputs).all() and np.isfinite(targets).all()):
        raise InputError("x and y must be finite, got a NaN or infinite entry")
    if bias:
        inputs = np.pad(inputs, ((0, 0), (0, 1)), constant_values=1.0)
    return inputs, targets


def _check(
    loss: str | ConvexLoss,
    activation: str,
    method: str,
    targets: np.ndarray,
    max_points: int,
) -> None:
    for name, value, accepted in (
        ("loss", loss, ("mse", "logistic")),
        ("activation", activation, ("relu", "leaky_relu", "abs", "identity")),
        ("method", method, ("sign", "convexity", "nnls")),
    ):
        if value not in accepted and not (name == "loss" and callable(value)):
            raise InputError(f"{name} must be one of {accepted}, got {value!r}")
    if max_points < 1:
        raise InputError(f"max_points must be at least 1, got {max_points}")
    if loss == "logistic" and method == "nnls":
        raise InputError(
            'loss "logistic" needs method="sign" or "convexity", got "nnls"'
        )
    if loss == "logistic" and not np.isin(targets, (-1, 1)).all():
        raise InputError('loss "logistic" needs labels of -1 and +1 in y')
    if callable(loss) and method != "sign":
        raise InputError(f'a loss of your own needs method="sign", got {method!r}')
    if method == "nnls" and activation not in ("relu", "identity"):
        raise InputError(
            f'method "nnls" needs activation "relu", got {activation!r}: take '
            '"convexity"'
        )
