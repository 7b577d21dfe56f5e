"""Where a Ray cluster is, and whether something answers there.

Ray itself tries for minutes to reach an address where nobody is; here the socket is
asked first.
"""

import os
import socket
from urllib.parse import urlsplit

from thalweg.errors import ExecutionError, InputError

TIMEOUT = 5.0
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex(
    "000000040000000000"
)
_SETTINGS = 4


def check_address(address: str) -> None:
    """Raise unless a Ray cluster answers.

    Args:
        address: "auto" (the environment's RAY_ADDRESS, else the cluster running on
            this machine) or "host:port".

    Raises:
        InputError: The address is neither.
        ExecutionError: Nothing answers there within seconds, or it is no Ray cluster.
    """
    found = _running() if address == "auto" else address
    host, port = _parts(found)
    whence = repr(address) if found == address else f"{address!r} ({found})"
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT) as connection:
            greeted = _speaks_grpc(connection)
    except OSError as error:
        raise ExecutionError(
            f"no Ray cluster answers at address={whence}: {error}. Start one with "
            "`ray start --head`, or leave the address out to start one for the job"
        ) from None
    if not greeted:
        raise ExecutionError(
            f"what listens at address={whence} is no Ray cluster: give the address "
            "that `ray start --head` printed (port 6379 unless chosen)"
        )


def _running() -> str:
    # Ray offers no public name for what `ray.init(address="auto")` looks up.
    from ray._private.services import get_ray_address_from_environment

    try:
        return str(get_ray_address_from_environment("auto", None))
    except ConnectionError:
        raise ExecutionError(
            "address='auto' found no Ray cluster: none runs on this machine and "
            "RAY_ADDRESS is not set. Start one with `ray start --head`, give "
            "host:port, or leave the address out to start one for the job"
        ) from None


def _parts(address: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{address}")
        if parts.hostname and parts.port and "/" not in address:
            return parts.hostname, parts.port
    except ValueError:  # a port that is no number
        pass
    raise InputError(f"address must be 'auto' or 'host:port', got {address!r}")


def _speaks_grpc(connection: socket.socket) -> bool:
    """Whether an HTTP/2 greeting is answered by one; not asked under TLS."""
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return True
    connection.sendall(_HTTP2_PREFACE)
    header = b""
    try:
        while len(header) < 9 and (more := connection.recv(9 - len(header))):
            header += more
    except OSError:  # silence until the time is over
        return False
    return len(header) == 9 and header[3] == _SETTINGS
