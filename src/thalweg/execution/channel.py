"""Frames of bytes over a pipe: eight bytes of length, then the bytes."""

import struct
from typing import BinaryIO

_LENGTH = struct.Struct("<Q")


def send(pipe: BinaryIO, frame: bytes) -> None:
    """Write one frame."""
    pipe.write(_LENGTH.pack(len(frame)))
    pipe.write(frame)
    pipe.flush()


def receive(pipe: BinaryIO) -> bytes:
    """Read one frame.

    Raises:
        EOFError: The other end is gone.
    """
    (length,) = _LENGTH.unpack(_exactly(pipe, _LENGTH.size))
    return _exactly(pipe, length)


def _exactly(pipe: BinaryIO, length: int) -> bytes:
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError("the other end of the pipe is gone")
    return data
