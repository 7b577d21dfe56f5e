"""Every exception and warning that thalweg raises on purpose: one base for each."""


class ThalwegError(Exception):
    """Base of all errors raised by thalweg."""


class InputError(ThalwegError, ValueError):
    """An argument cannot be used; the message names it and what is accepted."""


class StructureError(InputError):
    """Two objects do not have the same structure: names, shapes or dimension differ."""


class DataError(InputError):
    """The data cannot be used: empty, one-shot, labels out of range."""


class CheckpointError(ThalwegError, ValueError):
    """A checkpoint cannot be read, or does not fit the model."""


class TargetError(ThalwegError, ValueError):
    """A TARGET does not import, or names something that is no landscape."""


class LossError(ThalwegError, TypeError):
    """A loss function or model returned something that is no differentiable scalar."""


class NonFiniteLossError(ThalwegError, FloatingPointError):
    """The loss of a training step is NaN or infinite."""


class NondeterministicLossError(ThalwegError, RuntimeError):
    """Two evaluations of the loss at one point differ."""


class AsymmetryError(ThalwegError, RuntimeError):
    """An operator that must be symmetric is not, to the precision of its dtype."""


class StoreError(ThalwegError, RuntimeError):
    """A directory of results is missing, damaged or belongs to another plan."""


class ExecutionError(ThalwegError, RuntimeError):
    """A chunk of work failed; the message names it and the error."""


class MissingExtraError(ThalwegError, ImportError):
    """An optional package is needed; the message names the extra that installs it."""


class ThalwegWarning(UserWarning):
    """Base of all warnings raised by thalweg."""


class PrecisionWarning(ThalwegWarning):
    """The dtype cannot hold the step, or cannot reach the tolerance."""


class ConvergenceWarning(ThalwegWarning):
    """An iteration stopped before its tolerance was met."""


class DataWarning(ThalwegWarning):
    """The data is usable, but not as it seems: shuffled, truncated, subsampled."""


class DirectionWarning(ThalwegWarning):
    """Directions are used at another point than the one they were scaled at."""


class DynamicsWarning(ThalwegWarning):
    """A stochastic process explodes, or collapses onto a point."""


class DegeneracyWarning(ThalwegWarning):
    """Vectors are not unique: only the space that they span means anything."""
