"""A worker process: `python -m thalweg.execution.worker`, spoken to over its pipes.

Not `multiprocessing`, which would run the user's script again. The first frame is the
parent's import path; then come recipes and tasks, each answered by one frame.
"""

import os
import pickle
import signal
import sys
import traceback
from typing import Any, BinaryIO


class Bench:
    """Where a worker works: holds one constant and answers in bytes."""

    def __init__(self) -> None:
        self._constant: Any = None

    def answer(self, kind: str, payload: bytes) -> bytes:
        """Return the pickle of (True, result) or (False, exception).

        Args:
            kind: "open" builds the constant of a packed recipe in place of the one
                held, "run" does a packed task on it.
            payload: The recipe or the task.
        """
        try:
            if kind == "open":
                self._constant = None  # two at once may not fit
                self._constant = pickle.loads(payload)()
                return pickle.dumps((True, None))
            function, args = pickle.loads(payload)
            return pickle.dumps((True, function(self._constant, *args)))
        except Exception as error:
            return _failure(error)


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer frames until the parent closes the pipe or is gone."""
    from thalweg.execution.channel import receive, send

    sys.path[:] = pickle.loads(receive(source))
    bench = Bench()
    while True:
        try:
            kind, payload = pickle.loads(receive(source))
        except EOFError:
            return
        send(sink, bench.answer(kind, payload))


def _failure(error: Exception) -> bytes:
    import cloudpickle

    error.add_note(
        f"in a worker process:\n{''.join(traceback.format_exception(error))}"
    )
    answer: tuple[bool, Any] = False, error
    try:
        frame = cloudpickle.dumps(answer)
        pickle.loads(frame)  # some exceptions are pickled and not unpickled
    except Exception:
        text = f"{type(error).__name__}: {error}"
        frame = pickle.dumps((False, RuntimeError(text)))
    return frame


def main() -> None:
    """Take over the pipes; what the user's code prints goes to stderr."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    source = os.fdopen(os.dup(0), "rb")
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    try:
        serve(source, sink)
    except (BrokenPipeError, EOFError):
        os._exit(1)  # the parent is gone: nobody to tell


if __name__ == "__main__":
    main()
