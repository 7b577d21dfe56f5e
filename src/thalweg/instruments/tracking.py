"""Curvature while a model trains: a few numbers at every so many steps."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from thalweg.errors import ConvergenceWarning, InputError
from thalweg.execution import save_dataset
from thalweg.instruments.eigenpairs import top_eigenpairs
from thalweg.instruments.flatness import sharpness
from thalweg.instruments.traces import trace
from thalweg.instruments.trajectories import Trajectory
from thalweg.landscapes import NetworkLandscape
from thalweg.provenance import attributes

if TYPE_CHECKING:
    import xarray

Quantity = Literal["lambda_max", "trace", "sharpness", "gradient_norm", "noise_scale"]
ALL: tuple[Quantity, ...] = get_args(Quantity)
FILE = "tracking.nc"


@runtime_checkable
class _State(Protocol):
    step: int
    optimizer: torch.optim.Optimizer


class Tracker:
    """Measures the landscape where its model stands; see `track`, which makes one.

    Args:
        land: See `track`, here and below.
        every: Steps.
        quantities: What to measure.
        store: Directory.
        sketch: Numbers kept of each state.
        rho: Radius.
        tol: Tolerance.
        probes: Probes.
        seed: Seed.
    """

    def __init__(
        self,
        land: NetworkLandscape,
        every: int,
        quantities: Sequence[Quantity],
        *,
        store: str | Path | None,
        sketch: int | None,
        rho: float,
        tol: float,
        probes: int,
        seed: int,
    ) -> None:
        self.land, self.quantities = land, tuple(quantities)
        self.rho, self.tol, self.probes, self.seed = rho, tol, probes, seed
        self.trajectory = Trajectory(
            land, every, store=store, buffer=8, sketch=sketch, seed=seed
        )
        self._handles: list[RemovableHandle] = []
        self._kept = store is not None
        self._last: Tensor | None = None  # eigenvector of the last measurement

    def __call__(
        self,
        step: int | None = None,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        learning_rate: float | None = None,
        **scalars: float | Tensor,
    ) -> dict[str, float] | None:
        """Measure at the model's weights if the step is due; return the numbers.

        Args:
            step: Number of the step; the one after the last call's by default.
            optimizer: Gives `learning_rate` and `threshold`.
            learning_rate: Without an optimizer: that of gradient descent.
            **scalars: Further numbers to keep with these.
        """
        if not self.trajectory.due(step):
            self.trajectory(step)  # counts it
            return None
        with torch.enable_grad():
            numbers = self._measure()
        if optimizer is not None:
            numbers |= _rates(optimizer)
        elif learning_rate is not None:
            threshold = 2 / learning_rate if learning_rate > 0 else math.nan
            numbers |= {"learning_rate": learning_rate, "threshold": threshold}
        numbers |= {name: float(value) for name, value in scalars.items()}
        self.trajectory(step, **numbers)
        return numbers

    def hook(self, model: nn.Module, state: _State) -> None:
        """Measure after a step of `thalweg.training.fit`: give it as `after_step`."""
        self(state.step, optimizer=state.optimizer)

    def attach(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Measure after every step of an optimizer, until `close` or the handle."""

        def after(*_: object) -> None:
            self(optimizer=optimizer)

        handle = optimizer.register_step_post_hook(after)
        self._handles.append(handle)
        return handle

    def lightning_callback(self) -> Any:
        """Return a callback for a Lightning `Trainer`.

        Raises:
            MissingExtraError: Lightning is not installed.
        """
        from thalweg.instruments.trainer_callbacks import lightning_callback

        return lightning_callback(self)

    def transformers_callback(self) -> Any:
        """Return a callback for a Hugging Face `Trainer`.

        Raises:
            MissingExtraError: transformers is not installed.
        """
        from thalweg.instruments.trainer_callbacks import transformers_callback

        return transformers_callback(self)

    def _measure(self) -> dict[str, float]:
        here = self.land.with_state(self.land.model)
        point = here.point()
        value, g = here.value_and_gradient(point)
        numbers = {"loss": float(value)}
        if "gradient_norm" in self.quantities:
            numbers["gradient_norm"] = float(g.double().norm())
        others = [name for name in self.quantities if name != "gradient_norm"]
        if not (math.isfinite(numbers["loss"]) and bool(torch.isfinite(g).all())):
            return numbers | dict.fromkeys(others, math.nan)
        with warnings.catch_warnings():
            # What a warning would say is in the dataset: residual, standard error.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return numbers | self._curvature(here, point, others)

    def _curvature(
        self, here: NetworkLandscape, point: Tensor, names: Sequence[str]
    ) -> dict[str, float]:
        numbers: dict[str, float] = {}
        with here.hessian(point) as H:
            if "lambda_max" in names:
                pairs = top_eigenpairs(
                    H, 1, tol=self.tol, start=self._last, seed=self.seed
                )
                self._last = pairs.vectors[:, 0]
                numbers["lambda_max"] = float(pairs.values[0])
                numbers["lambda_max_residual"] = float(pairs.residuals[0])
            if "trace" in names:
                estimate = trace(H, probes=self.probes, seed=self.seed)
                numbers["trace"] = estimate.value
                numbers["trace_stderr"] = estimate.stderr
            numbers["products"] = float(H.products)
        if "sharpness" in names:
            found = sharpness(here, rho=self.rho, method="one_step", seed=self.seed)
            numbers["sharpness"] = found.value
        if "noise_scale" in names:
            noise = here.noise_scale(point)
            numbers["noise_scale"] = noise.value
            numbers["noise_scale_stderr"] = noise.stderr
        return numbers

    def to_dataset(self) -> "xarray.Dataset":
        """Return all measurements over `step`, those of an earlier run included."""
        import xarray

        variables = {n: ("step", v) for n, v in self.trajectory.scalars.items()}
        return xarray.Dataset(
            variables,
            coords={"step": self.trajectory.steps},
            attrs=attributes(
                seed=self.seed,
                kind="tracking",
                landscape=self.land.describe(),
                settings={
                    "every": self.trajectory.every,
                    "quantities": self.quantities,
                    "rho": self.rho,
                    "tol": self.tol,
                    "probes": self.probes,
                },
            ),
        )

    def close(self) -> None:
        """Write what is in memory, the dataset too; let go of the optimizers."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.trajectory.close()
        if self._kept:
            save_dataset(self.to_dataset(), self.trajectory.path / FILE)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def track(
    land: NetworkLandscape,
    every: int = 1,
    quantities: Sequence[Quantity] = ALL,
    *,
    store: str | Path | None = None,
    sketch: int | None = None,
    rho: float = 0.05,
    tol: float = 1e-3,
    probes: int = 8,
    seed: int = 0,
) -> Tracker:
    """Return a tracker: called in a training loop, it measures curvature on the way.

    ```python
    tracker = ti.track(land, every=10)
    tracker(step, optimizer=optimizer)                      # a call in a loop,
    tracker.attach(optimizer)                               # or every optimizer step,
    fit(..., after_step=[tracker.hook])                     # or thalweg's loop,
    L.Trainer(callbacks=[tracker.lightning_callback()])     # or Lightning,
    Trainer(..., callbacks=[tracker.transformers_callback()])    # or Hugging Face
    tracker.to_dataset()
    ```

    It measures at the weights (and buffers) that the model has after the step, on the
    landscape's data and with its loss; model, optimizer and generators are as before.
    The weights are recorded with the numbers, in `tracker.trajectory`: with a `store`
    they are on disk, `tracking.nc` beside them from `close` on, and a tracker opened on
    it goes on.

    - `loss`, always, and `products` with the Hessian;
    - `lambda_max` with `lambda_max_residual` by `ti.top_eigenpairs`, started from the
      last eigenvector;
    - `trace` with `trace_stderr`, with the same probes each time;
    - `sharpness`: the rise of the loss after one ascent step of length `rho`;
    - `gradient_norm`;
    - `noise_scale` with `noise_scale_stderr`, from every example's gradient;
    - `learning_rate` η, and `threshold`: the curvature above which the optimizer is
      unstable on a quadratic. For SGD (2 + 2β) / ((1 - dampening) η), with Nesterov's
      momentum (2 + 2β) / ((1 + 2β) η), so 2/η without momentum; NaN for others, whose
      preconditioner H would have to be seen through, and where groups differ.

    Where loss or gradient are not finite the rest is NaN.

    Args:
        land: Landscape of the model that is trained, on the device it is trained on.
        every: Measure at the steps that are multiples of it, as the loop counts them:
            Lightning and Hugging Face count the steps done, from 0 before the first.
        quantities: Some of the above.
        store: Directory of the trajectory; a temporary one by default.
        sketch: Keep this many numbers of each state instead of all; see `Trajectory`.
        rho: Radius of `sharpness`.
        tol: Relative residual of `lambda_max`.
        probes: Probes of `trace`, two products each.
        seed: Seed of start vector and probes.

    Raises:
        InputError: An unknown quantity, or an argument out of range.
        StoreError: The store is of another model, or damaged.

    Cost: of a measurement, 1 + 2 gradients, about 10 products for `lambda_max`, 16 for
    `trace`, every example's gradient for `noise_scale`.

    Source of the threshold: "Gradient descent on neural networks typically occurs at
    the edge of stability", J. Cohen, S. Kaur, Y. Li, J. Z. Kolter, A. Talwalkar, 2021.
    """
    if not isinstance(land, NetworkLandscape):
        raise InputError(
            f"land must be a NetworkLandscape, whose model trains, got a "
            f"{type(land).__name__}"
        )
    unknown = [name for name in quantities if name not in ALL]
    if unknown or not quantities:
        raise InputError(f"quantities must be some of {ALL}, got {tuple(quantities)}")
    for name, value in (("rho", rho), ("tol", tol)):
        if not value > 0:
            raise InputError(f"{name} must be positive, got {value}")
    if probes < 2:
        raise InputError(f"probes must be at least 2 for an error, got {probes}")
    return Tracker(
        land,
        every,
        quantities,
        store=store,
        sketch=sketch,
        rho=rho,
        tol=tol,
        probes=probes,
        seed=seed,
    )


def _rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return the learning rate, and the curvature at which the optimizer diverges."""
    groups = optimizer.param_groups
    rate = max(float(group["lr"]) for group in groups)
    settings = {
        tuple(float(group.get(name, 0.0)) for name in _SETTINGS) for group in groups
    }
    inner = optimizer
    if type(optimizer).__module__.startswith("accelerate."):  # a wrapper, not a method
        inner = getattr(optimizer, "optimizer", optimizer)
    threshold = math.nan
    if type(inner) is torch.optim.SGD and len(settings) == 1 and rate > 0:
        _, momentum, dampening, nesterov = settings.pop()
        factor = 1 + 2 * momentum if nesterov else 1 - dampening if momentum else 1.0
        threshold = (2 + 2 * momentum) / (factor * rate)
    return {"learning_rate": rate, "threshold": threshold}


_SETTINGS = ("lr", "momentum", "dampening", "nesterov")
