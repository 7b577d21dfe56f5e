"""Recording where training goes, with a bounded number of states in memory."""

import io
import json
import math
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from thalweg.errors import InputError, StoreError
from thalweg.execution import atomic_file
from thalweg.instruments.directions import Directions, Projection
from thalweg.landscapes import Layout, NetworkLandscape, Parameters
from thalweg.provenance import to_json
from thalweg.seeding import generator

_META = "trajectory.json"
_SKETCH_BLOCK = 1 << 20
DTYPES = (torch.float16, torch.float32, torch.float64)


@runtime_checkable
class _Step(Protocol):
    step: int


class _Row(NamedTuple):
    step: int
    scalars: dict[str, float]


class Trajectory:
    """A recorder of the points that a model passes through.

    Three ways of driving it:

    ```python
    rec = ti.Trajectory(model, every=10, store="run/trajectory")
    rec(step, loss=value)                        # a call in a loop
    fit(model, loss, data, optimizer, ..., after_step=[rec.hook])
    with ti.Trajectory(model) as rec:            # every optimizer step
        rec.attach(optimizer)
        ...
    ```

    States go to disk in chunks, each written whole or not at all; at most `buffer` of
    them are in memory. Opened again on the same store it goes on: steps that are
    recorded already are passed over, so a resumed run continues its trajectory.

    Args:
        model: The model, or a `NetworkLandscape` of it (whose selection of parameters
            then counts).
        every: Record the steps that are multiples of it.
        dtype: dtype of recorded states.
        store: Directory; a temporary one, gone with the recorder, by default.
        buffer: States in memory at most, and in a chunk.
        sketch: Keep a count-sketch R θ of this many numbers instead of θ, for PCA of
            very large models. Squared distances then carry a relative standard error
            of at most `distortion`.
        seed: Seed of the sketch.

    Raises:
        InputError: An argument is out of range.
        StoreError: The store is of another model, or damaged.

    Source of the sketch: Charikar, Chen, Farach-Colton, "Finding frequent items in
    data streams", 2002.
    """

    def __init__(
        self,
        model: nn.Module | NetworkLandscape,
        every: int = 1,
        *,
        dtype: torch.dtype = torch.float32,
        store: str | Path | None = None,
        buffer: int = 32,
        sketch: int | None = None,
        seed: int = 0,
    ) -> None:
        for name, count in (("every", every), ("buffer", buffer), ("sketch", sketch)):
            if count is not None and count < 1:
                raise InputError(f"{name} must be at least 1, got {count}")
        if dtype not in DTYPES:
            raise InputError(f"dtype must be one of {DTYPES}, got {dtype}")
        self._source: NetworkLandscape | Parameters = (
            model if isinstance(model, NetworkLandscape) else Parameters(model)
        )
        points = self._source.layout
        self.every, self.dtype, self.buffer = every, dtype, buffer
        self.source_dim, self.sketch, self.seed = points.dim, sketch, seed
        self.layout: Layout | None = points if sketch is None else None
        self.dim = points.dim if sketch is None else sketch
        self._handles: list[RemovableHandle] = []
        self._pending: list[tuple[_Row, np.ndarray]] = []
        self._chunks: list[np.ndarray] = []  # memory-mapped
        self._log: list[_Row] = []
        if store is None:
            directory = tempfile.TemporaryDirectory(prefix="trajectory-")
            self._cleanup = weakref.finalize(self, directory.cleanup)
            store = directory.name
        self.path = Path(store)
        self._open(points)
        self._next = self._log[-1].step + 1 if self._log else 0

    # Recording ----------------------------------------------------------------------

    def __call__(self, step: int | None = None, **scalars: float | Tensor) -> bool:
        """Record the model's point if the step is due; return whether it was.

        Args:
            step: Number of the step; the one after the last call's by default.
            **scalars: Numbers to keep with it, the loss for example.
        """
        step = self._next if step is None else int(step)
        due = self.due(step)
        self._next = step + 1
        if not due:
            return False
        state = self._read()
        if self.sketch is not None:
            state = self._sketched(state)
        array = state.to(device="cpu", dtype=self.dtype).numpy().copy()
        numbers = {name: float(value) for name, value in scalars.items()}
        self._pending.append((_Row(step, numbers), array))
        if len(self._pending) >= self.buffer:
            self.flush()
        return True

    def due(self, step: int | None = None) -> bool:
        """Return whether a call with this step would record it."""
        step = self._next if step is None else int(step)
        last = self._pending[-1][0] if self._pending else None
        last = self._log[-1] if last is None and self._log else last
        return step % self.every == 0 and (last is None or step > last.step)

    def hook(self, model: nn.Module, state: _Step) -> None:
        """Record after a step of `thalweg.training.fit`: give it as `after_step`."""
        self(state.step)

    def attach(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Record after every step of an optimizer, until `close` or the handle."""

        def after(*_: object) -> None:
            self()

        handle = optimizer.register_step_post_hook(after)
        self._handles.append(handle)
        return handle

    def _read(self) -> Tensor:
        if isinstance(self._source, NetworkLandscape):
            return self._source.flatten(self._source.model)
        return self._source.read()

    def flush(self) -> None:
        """Write the states in memory as one chunk: temporary file, sync, rename."""
        if not self._pending:
            return
        rows, states = zip(*self._pending, strict=True)
        name = f"chunk-{len(self._chunks):06d}"
        content = io.BytesIO()
        np.save(content, np.stack(states))
        with atomic_file(self.path / f"{name}.npy") as file:
            file.write(content.getbuffer())
        # A chunk counts once its log is there.
        with atomic_file(self.path / f"{name}.json") as file:
            log = {
                "steps": [r.step for r in rows],
                "scalars": [r.scalars for r in rows],
            }
            file.write(to_json(log).encode())
        self._chunks.append(self._map(name))
        self._log += rows
        self._pending = []

    def close(self) -> None:
        """Write what is in memory and let go of the optimizers."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.flush()

    def __enter__(self) -> "Trajectory":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # Reading ------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._log) + len(self._pending)

    def __getitem__(self, i: int) -> Float[Tensor, " dim"]:
        """Return the i-th recorded state."""
        i = range(len(self))[i]
        for chunk in self._chunks:
            if i < len(chunk):
                return torch.from_numpy(np.array(chunk[i]))
            i -= len(chunk)
        return torch.from_numpy(self._pending[i][1].copy())

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    @property
    def shape(self) -> tuple[int, int]:
        """(states, dim)."""
        return len(self), self.dim

    @property
    def steps(self) -> list[int]:
        """Numbers of the recorded steps."""
        return [row.step for row in self._rows()]

    @property
    def scalars(self) -> dict[str, list[float]]:
        """Numbers kept with the states, by name; NaN where a step had none."""
        rows = [row.scalars for row in self._rows()]
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: [row.get(name, math.nan) for row in rows] for name in names}

    def _rows(self) -> list[_Row]:
        return self._log + [row for row, _ in self._pending]

    @property
    def distortion(self) -> float:
        """Relative standard error of squared distances: sqrt(2 / sketch), or 0."""
        return 0.0 if self.sketch is None else (2 / self.sketch) ** 0.5

    def columns(self, start: int, stop: int) -> Float[Tensor, "states width"]:
        """Return coordinates start to stop of every state."""
        parts = [chunk[:, start:stop] for chunk in self._chunks]
        parts += [state[None, start:stop] for _, state in self._pending]
        if not parts:
            return torch.empty(0, stop - start, dtype=self.dtype)
        return torch.from_numpy(np.concatenate(parts))

    def project(
        self, directions: Directions, origin: Float[Tensor, " dim"] | None = None
    ) -> Projection:
        """Return the states' coordinates and residuals in a plane, one at a time."""
        found = [directions.project(state, origin) for state in self]
        if not found:
            raise InputError("the trajectory has no states yet")
        return Projection(
            torch.stack([one.coordinates for one in found]),
            torch.stack([one.residual for one in found]),
        )

    # Files --------------------------------------------------------------------------

    def _open(self, points: Layout) -> None:
        meta = {
            "format": 1,
            "names": list(points.names),
            "shapes": [list(block.shape) for block in points.blocks],
            "dtype": str(self.dtype),
            "sketch": self.sketch,
            "seed": self.seed if self.sketch is not None else None,
        }
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / _META).exists():
            if any(self.path.iterdir()):
                raise StoreError(
                    f"{self.path} is not empty and holds no trajectory: give a new "
                    "directory"
                )
            with atomic_file(self.path / _META) as file:
                file.write(to_json(meta, indent=1).encode())
            return
        stored = _json(self.path / _META)
        differing = [key for key in meta if stored.get(key) != meta[key]]
        if differing:
            raise StoreError(
                f"{self.path} holds a trajectory of something else: its "
                f"{', '.join(differing)} differ"
            )
        while (self.path / f"chunk-{len(self._chunks):06d}.json").exists():
            name = f"chunk-{len(self._chunks):06d}"
            log = _json(self.path / f"{name}.json")
            self._chunks.append(self._map(name))
            rows = zip(log["steps"], log["scalars"], strict=True)
            self._log += [_Row(step, _numbers(scalars)) for step, scalars in rows]

    def _map(self, name: str) -> np.ndarray:
        path = self.path / f"{name}.npy"
        try:
            states = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read: {error}") from None
        if states.ndim != 2 or states.shape[1] != self.dim:
            raise StoreError(
                f"{path} has shape {states.shape}, expected (n, {self.dim})"
            )
        return states

    def _sketched(self, state: Tensor) -> Tensor:
        """Return R θ: every coordinate is added to one of the numbers, with a sign."""
        assert self.sketch is not None
        total = torch.zeros(self.sketch, dtype=torch.float64)
        for i, part in enumerate(state.split(_SKETCH_BLOCK)):
            draws = generator(self.seed, "sketch", i)
            target = torch.randint(self.sketch, part.shape, generator=draws)
            sign = 2 * torch.randint(2, part.shape, generator=draws) - 1
            total.index_add_(0, target, sign * part.double().cpu())
        return total


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from None


def _numbers(scalars: dict[str, float | str]) -> dict[str, float]:
    return {name: float(value) for name, value in scalars.items()}
