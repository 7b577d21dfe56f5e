"""Watch what flow conserves while a torch model trains; the risk that signs cross."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.errors import InputError
from thalweg.landscapes import NetworkLandscape
from thalweg.solvable.relu_topology.drift import DriftHistory
from thalweg.solvable.relu_topology.layer_pairs import LayerPair
from thalweg.solvable.relu_topology.layer_weights import (
    by_neuron,
    squared_norms,
    weight_parameter,
)
from thalweg.solvable.relu_topology.scanning import conserved_pairs, scan_pair

_SETTINGS = ("momentum", "dampening", "weight_decay")


@dataclass
class _Watched:
    """One pair of layers and what was recorded of it."""

    pair: LayerPair
    first: nn.Module
    second: nn.Module
    single: Tensor  # whether a neuron has one weight out
    watches_signs: bool  # whether any has
    start: dict[str, Any]
    c: list[Tensor] = field(default_factory=list)
    outer: list[Tensor] = field(default_factory=list)
    drift: dict[str, list[Tensor]] = field(default_factory=dict)
    settings: list[list[float]] = field(default_factory=list)


class Monitor:
    """Record the invariants of a model and the signs of its neurons as it trains.

    Hooks into the optimizer's steps; what it adds to one that it records is a pass over
    the weights. Training, weights and random numbers stay as they are.

    Args:
        model: The network.
        optimizer: What trains it. The law is that of plain SGD, see `law`.
        every: Steps between records.
        example_input: A batch to trace the model with, see `scan`.
        pairs: Names of layers to watch, see `scan`.
        drift: Also record what `predict_drift` needs of each step, for `history`; this
            needs every=1.

    Raises:
        InputError: every below 1, drift without every=1, or what `scan` raises.

    Examples:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> with Monitor(net, optimizer, every=1) as monitor:
        ...     net(torch.ones(2, 3)).sum().backward()
        ...     optimizer.step()
        >>> monitor.steps
        [0, 1]
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        every: int = 20,
        example_input: Tensor | None = None,
        pairs: Sequence[tuple[str, str]] | None = None,
        drift: bool = False,
    ) -> None:
        if every < 1:
            raise InputError(f"every must be at least 1, got {every}")
        if drift and every != 1:
            raise InputError(f"drift=True needs every=1, got every={every}")
        self._model, self._optimizer = model, optimizer
        self.every, self._drift = every, drift
        taken, _ = conserved_pairs(model, example_input, pairs)
        self._watched = []
        for pair in taken:
            scanned = scan_pair(model, pair)
            layers = model.get_submodule(pair.first), model.get_submodule(pair.second)
            single = torch.from_numpy(scanned.outs == 1)
            single = single.to(weight_parameter(layers[0]).device)
            self._watched.append(
                _Watched(pair, *layers, single, bool(single.any()), scanned.to_dict())
            )
        self._step = 0
        self.steps: list[int] = []
        self._record()
        self._hook = optimizer.register_step_post_hook(self._after)

    def close(self) -> None:
        """Stop recording."""
        self._hook.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def law(self) -> str:
        """Say whether the optimizer, as it is set, keeps the conserved quantities."""
        name = type(self._optimizer).__name__
        if type(self._optimizer) is not torch.optim.SGD:
            return (
                f"{name}: not conserved, not even to first order in the step, unless "
                "its steps are multiples of the gradient"
            )
        held = {
            id(p): group
            for group in self._optimizer.param_groups
            for p in group["params"]
        }
        decay = 0.0
        for watched in self._watched:
            groups = [held.get(id(p)) for p in self._parameters(watched)]
            if None in groups:
                return f"{name}: not conserved, as it does not hold all the weights"
            for key in ("lr", *_SETTINGS):
                values = {float(group[key]) for group in groups if group}
                if len(values) > 1:
                    return f"{name}: not conserved, as {key} differs between layers"
                if key == "weight_decay":
                    decay = max(decay, *values)
        text = f"{name}: conserved to first order in the step"
        if decay:
            text += (
                f"; with weight decay {decay:g}, c shrinks by exp(-2 x {decay:g} x lr) "
                "a step and keeps its sign to that order"
            )
        return text

    def trajectory(self, index: int = 0) -> np.ndarray:
        """Return the recorded c (records, neurons) of a pair, in float64."""
        return torch.stack(self._watched[index].c).double().cpu().numpy()

    def flips(self, index: int = 0) -> list[tuple[int, int]]:
        """Return (step, neuron) of each sign of w2 found changed at a record."""
        watched = self._watched[index]
        if not watched.watches_signs:
            return []
        signs = torch.stack(watched.outer).sign()
        changed = (signs[1:] * signs[:-1] < 0) & watched.single
        return [(self.steps[k + 1], j) for k, j in changed.nonzero().tolist()]

    def history(self, index: int = 0) -> DriftHistory:
        """Return what `predict_drift` checks a run of SGD with.

        Raises:
            InputError: Not recorded with drift=True, or another optimizer than SGD.
        """
        if not self._drift or type(self._optimizer) is not torch.optim.SGD:
            raise InputError(
                "a history needs Monitor(..., drift=True, every=1) and torch's SGD, "
                f"got drift={self._drift} and {type(self._optimizer).__name__}"
            )
        watched, columns = self._watched[index], {}
        for name in ("gradient", "velocity", "mixed"):
            rows = watched.drift.get(name, [])
            empty = np.zeros((0, len(watched.single)))
            columns[name] = torch.stack(rows).cpu().numpy() if rows else empty
        table = np.array(watched.settings, dtype=np.float64).reshape(-1, 4)
        settings = dict(zip(("lr", *_SETTINGS), table.T, strict=True))
        nesterov = any(group["nesterov"] for group in self._optimizer.param_groups)
        return DriftHistory(
            self.trajectory(index), **columns, **settings, nesterov=nesterov
        )

    def report(self) -> dict[str, Any]:
        """Return what was seen as plain values, for JSON; the ends are in float64."""
        return {
            "optimizer": type(self._optimizer).__name__,
            "law": self.law,
            "every": self.every,
            "steps": list(self.steps),
            "pairs": [
                {
                    "first": watched.pair.first,
                    "second": watched.pair.second,
                    "start": watched.start,
                    "end": scan_pair(self._model, watched.pair).to_dict(),
                    "flips": [list(flip) for flip in self.flips(i)],
                    "c": self.trajectory(i).tolist(),
                }
                for i, watched in enumerate(self._watched)
            ],
        }

    def _parameters(self, watched: _Watched) -> list[Tensor]:
        bias = watched.first.bias
        weights = [weight_parameter(watched.first), weight_parameter(watched.second)]
        return weights + ([bias] if isinstance(bias, Tensor) else [])

    def _after(self, *_: object) -> None:
        self._step += 1
        if self._drift:
            self._record_drift()
        if self._step % self.every == 0:
            self._record()

    def _record(self) -> None:
        self.steps.append(self._step)
        with torch.no_grad():
            for watched in self._watched:
                inner, outer, total = squared_norms(watched.first, watched.second)
                watched.c.append(inner.sub_(outer, alpha=watched.pair.kappa))
                if watched.watches_signs:
                    watched.outer.append(total)

    @torch.no_grad()
    def _record_drift(self) -> None:
        state = self._optimizer.state
        for watched in self._watched:
            group = self._group(watched)
            watched.settings.append(
                [float(group.get(key, 0.0)) for key in ("lr", *_SETTINGS)]
            )
            sign = -1.0 if group.get("maximize") else 1.0

            def gradient(p: Tensor, sign: float = sign) -> Tensor:
                return torch.zeros_like(p) if p.grad is None else sign * p.grad

            def velocity(p: Tensor, sign: float = sign) -> Tensor:
                buffer = state[p].get("momentum_buffer") if p in state else None
                return gradient(p, sign) if buffer is None else buffer

            g1, g2 = by_neuron(watched.first, watched.second, gradient)
            v1, v2 = by_neuron(watched.first, watched.second, velocity)
            for name, one, other in (
                ("gradient", g1 * g1, g2 * g2),
                ("velocity", v1 * v1, v2 * v2),
                ("mixed", g1 * v1, g2 * v2),
            ):
                change = one.double().sum(1) - watched.pair.kappa * other.double().sum(
                    1
                )
                watched.drift.setdefault(name, []).append(change)

    def _group(self, watched: _Watched) -> dict[str, Any]:
        weight = weight_parameter(watched.first)
        for group in self._optimizer.param_groups:
            if any(p is weight for p in group["params"]):
                return group
        return {}


@dataclass(frozen=True)
class CrossingRisk:
    """How near one gradient step brings the sign-locked neurons of a pair to crossing.

    Attributes:
        pair: The layers.
        neurons: The sign-locked neurons.
        step: lr |g2| / |w2|: above 1 a step can change the sign of w2.
        drift: lr² (|g1|² - kappa |g2|²) / |c|: at 1 a step takes c to zero.
    """

    pair: LayerPair
    neurons: np.ndarray
    step: np.ndarray
    drift: np.ndarray


def crossing_risk(
    model: nn.Module,
    loss: Any,
    data: Any,
    lr: float,
    *,
    example_input: Tensor | None = None,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> tuple[CrossingRisk, ...]:
    """Return how near a step of full-batch gradient descent is to unlocking neurons.

    One gradient of the loss over the data, in eval mode; in float64 from there.

    Args:
        model: The network.
        loss: As `NetworkLandscape` takes it.
        data: Likewise.
        lr: Learning rate.
        example_input: A batch to trace the model with, see `scan`.
        pairs: Names of layers to take, see `scan`.

    Raises:
        InputError: lr not positive, or what `scan` raises.
    """
    if not lr > 0:
        raise InputError(f"lr must be positive, got {lr}")
    land = NetworkLandscape(model, loss, data)
    by_name = land.layout.split(land.gradient(land.point()))
    gradient = {id(p): by_name.get(n) for n, p in model.named_parameters()}

    def values(p: Tensor) -> Tensor:
        found = gradient[id(p)]
        return torch.zeros_like(p) if found is None else found

    result = []
    taken, _ = conserved_pairs(model, example_input, pairs)
    for scanned in (scan_pair(model, pair) for pair in taken):
        first = model.get_submodule(scanned.pair.first)
        second = model.get_submodule(scanned.pair.second)
        k = scanned.locked
        _, weights = by_neuron(first, second, lambda p: p)
        gradients = by_neuron(first, second, values)
        w2, g1, g2 = (
            np.linalg.norm(rows.detach().double().cpu().numpy()[k], axis=1)
            for rows in (weights, *gradients)
        )
        change = g1**2 - scanned.pair.kappa * g2**2
        c = np.abs(scanned.invariants.c[k])
        result.append(CrossingRisk(scanned.pair, k, lr * g2 / w2, lr**2 * change / c))
    return tuple(result)
