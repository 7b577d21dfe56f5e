"""A tracker as callback of the trainers of Lightning and of Hugging Face."""

import importlib
import sys
from typing import TYPE_CHECKING, Any

import torch

from thalweg.errors import MissingExtraError

if TYPE_CHECKING:
    from thalweg.instruments.tracking import Tracker

_LIGHTNING = ("lightning.pytorch", "pytorch_lightning")  # two packages, one code


def lightning_callback(tracker: "Tracker") -> Any:
    """Return a Lightning callback that measures before the first step and after each.

    Raises:
        MissingExtraError: Lightning is not installed.
    """

    class TrackerCallback(_lightning().Callback):  # type: ignore[misc]  # found at run time
        def on_train_start(self, trainer: Any, *_: Any) -> None:
            tracker(trainer.global_step, optimizer=_single(trainer.optimizers))

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            tracker(trainer.global_step, optimizer=_single(trainer.optimizers))

        def on_train_end(self, *_: Any) -> None:
            tracker.close()

        def on_exception(self, *_: Any) -> None:
            tracker.close()

    return TrackerCallback()


def transformers_callback(tracker: "Tracker") -> Any:
    """Return a `TrainerCallback` that measures before the first step and after each.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise _missing("transformers") from error

    class TrackerCallback(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, *_: Any, **given: Any) -> None:
            tracker(state.global_step, optimizer=given.get("optimizer"))

        def on_step_end(self, args: Any, state: Any, *_: Any, **given: Any) -> None:
            tracker(state.global_step, optimizer=given.get("optimizer"))

        def on_train_end(self, *_: Any, **given: Any) -> None:
            tracker.close()

    return TrackerCallback()


def _lightning() -> Any:
    """Return the package that is in use already, or else installed."""
    loaded = [name for name in _LIGHTNING if name in sys.modules]
    for name in (*loaded, *_LIGHTNING):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise _missing("lightning")


def _missing(package: str) -> MissingExtraError:
    return MissingExtraError(
        f"this callback needs {package}: pip install 'thalweg[trainers]'"
    )


def _single(optimizers: list[torch.optim.Optimizer]) -> torch.optim.Optimizer | None:
    return optimizers[0] if len(optimizers) == 1 else None
