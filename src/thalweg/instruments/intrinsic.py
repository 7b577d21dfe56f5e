"""Intrinsic dimension: the smallest random subspace in which training succeeds."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError, NonFiniteLossError
from thalweg.execution import Item, Store, execute
from thalweg.instruments.minimizing import (
    BatchSize,
    Display,
    MakeOptimizer,
    name_of,
)
from thalweg.instruments.random_bases import BasisKind, random_basis
from thalweg.instruments.subspace_training import train_in_subspace
from thalweg.landscapes import Landscape, NetworkLandscape
from thalweg.provenance import Meter, attributes, fingerprint, versions
from thalweg.seeding import derive

if TYPE_CHECKING:
    import xarray

Metric = str | Callable[[Tensor], float]


@dataclass(frozen=True)
class IntrinsicDimension:
    """The result of a search.

    Args:
        value: The smallest dimension tried that reached the threshold; None where none
            did.
        below: The largest dimension tried under it, none of which reached it.
        threshold: What the mean of the metric over the seeds had to reach.
        baseline: The metric after training all parameters.
        start: The metric at θ₀.
        runs: All runs: `metric` and `loss` over the dims `d` and `seed`.
    """

    value: int | None
    below: int
    threshold: float
    baseline: float
    start: float
    runs: "xarray.Dataset"


def intrinsic_dimension(
    land: Landscape,
    metric: Metric = "accuracy",
    *,
    share: float = 0.9,
    baseline: float | None = None,
    kind: BasisKind = "dense",
    seeds: int = 3,
    first: int = 8,
    limit: int | None = None,
    tol: float = 0.1,
    at: Float[Tensor, " dim"] | None = None,
    steps: int = 1000,
    rate: float = 1e-2,
    optimizer: MakeOptimizer | None = None,
    batch_size: BatchSize = "auto",
    seed: int = 0,
    store: str | Path | None = None,
    executor: Any = None,
    progress: Display = None,
    threads: int = 1,
) -> IntrinsicDimension:
    """Find the least dimension d of random subspaces in which training succeeds.

    With `share=0.9` this is d₉₀: training z of θ = θ₀ + A z, A of d random columns,
    reaches 90 % of the metric that training all parameters reaches, in the mean over
    `seeds` bases. d is doubled from `first` until it does, then bisected. The bisection
    takes it that a larger d does no worse; where the seeds scatter that is not so of
    every two runs: look at `runs`, which holds all of them.

    It measures a landscape *and* an optimizer with its budget of steps: more steps, or
    another rate, give another number.

    Args:
        land: The landscape.
        metric: Name of a metric of the network, or point -> number; larger is better.
            A function may well evaluate other data.
        share: Share of the baseline to reach.
        baseline: The metric to compare with; by default training all parameters from θ₀
            with the same settings finds it.
        kind: As of `ti.random_basis`.
        seeds: Number of bases a dimension.
        first: The dimension to begin with; `limit` where that is smaller.
        limit: The largest dimension to try; that of the landscape by default.
        tol: Bisection ends when the bracket is this small, as a share of the value (or
            one).
        at: θ₀, an untrained point, the same in all runs; the landscape's origin by
            default.
        steps: Steps of each run.
        rate: As of `train_in_subspace`.
        optimizer: Likewise.
        batch_size: Likewise.
        seed: Seed of everything random.
        store: Directory in which finished runs are kept, to go on from.
        executor: Where runs go, see `ti.surface`.
        progress: Likewise.
        threads: torch threads of each run.

    Raises:
        InputError: A number is out of range, the metric is unknown, the baseline is not
            positive, or θ₀ reaches the threshold already.

    Cost: `steps` gradients of a minibatch a run. A run that meets a loss that is not
    finite counts as NaN, and its dimension as not reached.

    Source: "Measuring the Intrinsic Dimension of Objective Landscapes", C. Li,
    H. Farkhoor, R. Liu, J. Yosinski, 2018.
    """
    limit = land.dim if limit is None else limit
    _check(seeds=seeds, first=first, steps=steps)
    if not 1 <= limit <= land.dim:
        raise InputError(f"limit must lie in 1 ... dim = {land.dim}, got {limit}")
    first = min(first, limit)
    if not 0 < share <= 1:
        raise InputError(f"share must lie in (0, 1], got {share}")
    if not tol >= 0:
        raise InputError(f"tol must not be negative, got {tol}")
    measure = _metric(land, metric)
    settings = {
        "steps": steps,
        "rate": rate,
        "optimizer": optimizer,
        "batch_size": batch_size,
    }
    task = _Task(land, measure, land.point(at), kind, seed, settings)
    plan = _plan(task, metric, threads)
    kept = None if store is None else Store.resume(store, plan)

    def run(d: int, count: int) -> np.ndarray:
        """Return metric and loss of `count` runs."""
        items = [Item(f"d={d}-seed={s}", (d, s)) for s in range(count)]
        found = execute(
            items,
            _run,
            lambda: task,
            store=kept,
            executor=executor,
            progress=progress,
            threads=threads,
        )
        return np.stack([found[item.key]["found"] for item in items])

    with Meter() as meter:
        start = float(run(_START, 1)[0, 0])
        if baseline is None:
            baseline = float(run(_ALL, 1)[0, 0])
            meter.add(gradients=steps)
        if not 0 < baseline < float("inf"):
            raise InputError(f"baseline must be positive and finite, got {baseline}")
        threshold = share * baseline
        if start >= threshold:
            raise InputError(
                f"the start has {start:.4g} already, the threshold is {threshold:.4g}: "
                "give an untrained point as `at=`"
            )
        runs: dict[int, np.ndarray] = {}

        def reached(d: int) -> bool:
            runs[d] = run(d, seeds)
            meter.add(gradients=steps * seeds)
            return bool(runs[d][:, 0].mean() >= threshold)

        below, value = _search(reached, first, limit, tol)
    return IntrinsicDimension(
        value, below, threshold, baseline, start, _dataset(runs, plan, meter, seed)
    )


_START, _ALL = 0, -1  # in the place of a dimension


@dataclass(frozen=True)
class _Task:
    """What a worker holds."""

    land: Landscape
    measure: Callable[[Tensor], float]
    at: Tensor
    kind: BasisKind
    seed: int
    settings: dict[str, Any]

    def trained(self, d: int, number: int) -> tuple[Tensor, float]:
        """Return where a run ends, and the loss there."""
        if d == _START:
            return self.at, float(self.land.loss(self.at))
        seed = derive(self.seed, "run", number)
        basis = (
            _Everything(self.land.dim)
            if d == _ALL
            else random_basis(self.land.dim, d, self.kind, seed, dtype=self.at.dtype)
        )
        run = train_in_subspace(
            self.land, basis, at=self.at, seed=seed, progress="none", **self.settings
        )
        return run.point, run.loss


def _run(task: _Task, d: int, number: int) -> dict[str, np.ndarray]:
    try:
        point, loss = task.trained(d, number)
    except NonFiniteLossError:
        return {"found": np.full(2, np.nan)}
    return {"found": np.array([float(task.measure(point)), loss])}


class _Everything:
    """The identity, as a basis of the whole space."""

    def __init__(self, dim: int) -> None:
        self.shape = (dim, dim)

    @property
    def T(self) -> "_Everything":
        return self

    def __matmul__(self, c: Tensor) -> Tensor:
        return c


class _Named:
    """point -> one metric of a network."""

    def __init__(self, land: NetworkLandscape, name: str) -> None:
        self.land, self.name = land, name

    def __call__(self, point: Tensor) -> float:
        found = self.land.metrics(point)
        if self.name not in found:
            raise InputError(
                f"metric={self.name!r} is none of the landscape's: {sorted(found)}"
            )
        return found[self.name]


def _metric(land: Landscape, metric: Metric) -> Callable[[Tensor], float]:
    if not isinstance(metric, str):
        return metric
    if not isinstance(land, NetworkLandscape):
        raise InputError(
            f"metric={metric!r}: a {type(land).__name__} has no metrics, give a "
            "function of the point"
        )
    return _Named(land, metric)


def _search(
    reached: Callable[[int], bool], first: int, limit: int, tol: float
) -> tuple[int, int | None]:
    """Return the largest that failed under the smallest that reached, and that one."""
    below, value = 0, first
    while not reached(value):
        below = value
        if value == limit:
            return below, None
        value = min(2 * value, limit)
    while value - below > max(1.0, tol * value):
        middle = (below + value) // 2
        if reached(middle):
            value = middle
        else:
            below = middle
    return below, value


def _check(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name} must be at least 1, got {count}")


def _plan(task: _Task, metric: Metric, threads: int) -> dict[str, object]:
    optimizer = task.settings["optimizer"]
    settings = task.settings | {
        "optimizer": None if optimizer is None else name_of(optimizer)
    }
    return {
        "instrument": "intrinsic_dimension",
        "landscape": task.land.describe(),
        "at": fingerprint(task.at),
        "metric": metric if isinstance(metric, str) else name_of(metric),
        "kind": task.kind,
        "seed": task.seed,
        "threads": threads,
        "versions": versions(),
        **settings,
    }


def _dataset(
    runs: dict[int, np.ndarray], plan: dict[str, object], meter: Meter, seed: int
) -> "xarray.Dataset":
    import xarray

    ordered = sorted(runs)
    table = np.stack([runs[d] for d in ordered])
    entries = {k: v for k, v in plan.items() if k not in ("versions", "seed")}
    return xarray.Dataset(
        {
            "metric": (("d", "seed"), table[..., 0]),
            "loss": (("d", "seed"), table[..., 1]),
        },
        coords={"d": ordered, "seed": np.arange(table.shape[1])},
        attrs=attributes(seed=seed, cost=meter, **entries),
    )
