"""The one resumable training loop, and what it reports."""

from thalweg.training.history import History
from thalweg.training.loop import fit
from thalweg.training.state import Hook, State

__all__ = ["History", "Hook", "State", "fit"]
