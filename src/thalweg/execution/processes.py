"""The executor of worker processes on this machine."""

import os
import pickle
import subprocess
import sys
from typing import Any

from thalweg.execution.channel import receive, send
from thalweg.execution.pool import Worker, WorkerDied, WorkerPool, python_path


class ProcessExecutor(WorkerPool):
    """Run tasks in `workers` processes, started when the first tasks come.

    Each holds the constant of one job and computes with one torch thread unless the
    plan says otherwise. A worker that dies is started again and its task done again,
    at most three times. Use as a context manager, or `close` it.

    Args:
        workers: Number of processes; one a core by default.
    """

    def __init__(self, workers: int | None = None) -> None:
        super().__init__((os.cpu_count() or 1) if workers is None else workers)
        self._processes: dict[int, subprocess.Popen] = {}

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers that are running."""
        alive = [p for p in list(self._processes.values()) if p.poll() is None]
        return tuple(process.pid for process in alive)

    def _start(self, index: int) -> "_Process":
        worker = _Process()
        self._processes[index] = worker.process
        return worker


class _Process(Worker):
    """One process and the recipe whose constant it holds."""

    def __init__(self) -> None:
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "thalweg.execution.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ
                | {
                    "PYTHONPATH": python_path(),
                    "OMP_NUM_THREADS": "1",
                    "MKL_NUM_THREADS": "1",
                },
            )
        except OSError as error:
            raise WorkerDied(f"it could not be started: {error}") from error
        self._send(pickle.dumps(sys.path))

    def ask(self, kind: str, payload: Any) -> tuple[bool, Any]:
        self._send(pickle.dumps((kind, payload)))
        try:
            frame = receive(self.process.stdout)  # type: ignore[arg-type]  # PIPE was asked for
        except (EOFError, OSError):
            raise self._death() from None
        return pickle.loads(frame)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _send(self, frame: bytes) -> None:
        try:
            send(self.process.stdin, frame)  # type: ignore[arg-type]  # PIPE was asked for
        except OSError:
            raise self._death() from None

    def _death(self) -> WorkerDied:
        code = self.process.wait()
        hint = ", usually lack of memory" if code == -9 else ""
        return WorkerDied(f"exit code {code}{hint}")
