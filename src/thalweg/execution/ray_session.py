"""The connection to a Ray cluster: who opened it, and what it leaves behind."""

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from thalweg.errors import ExecutionError, InputError, MissingExtraError
from thalweg.execution.pool import python_path
from thalweg.execution.ray_address import check_address

AUTH_MODE = "RAY_AUTH_MODE"


def import_ray() -> Any:
    """Return Ray, where it is installed."""
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise MissingExtraError(
            "executor='ray' needs Ray: pip install 'thalweg[ray]'"
        ) from None
    return ray


class Session:
    """The connection to a cluster: found open, joined, or started."""

    def __init__(
        self, ray: Any, address: str | None, runtime_env: Mapping[str, Any] | None
    ) -> None:
        self._ray, self.opened = ray, False
        self._runtime_env = dict(runtime_env or {})
        self._owned = not ray.is_initialized()
        self._address = address
        if self._owned:
            if address is not None:
                check_address(address)
            return
        here = ray.get_runtime_context().gcs_address
        if address not in (None, "auto", here):
            raise InputError(
                f"address={address!r} is not that of the open Ray session ({here}): "
                "end it with ray.shutdown() first, or leave the address out"
            )
        if runtime_env is not None:
            raise InputError(
                "runtime_env= cannot be given to a Ray session that is open: give it "
                "to ray.init"
            )

    def open(self, cpus: int | None) -> None:
        """Join the cluster, or start one of so many CPUs."""
        if not self._owned:
            self.opened = True
            return
        self._handler = signal.getsignal(signal.SIGTERM)
        options: dict[str, Any] = {"address": self._address}
        if self._address is None:
            options = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        if self._runtime_env:
            options["runtime_env"] = self._runtime_env
        options |= {"log_to_driver": False, "configure_logging": False}
        before = dict(os.environ)
        try:
            with _importable():
                self._ray.init(**options, logging_level="ERROR")
        except Exception as error:
            where = "start" if self._address is None else f"join {self._address!r}"
            raise ExecutionError(
                f"Ray could not {where}: {type(error).__name__}: {error}. A cluster "
                f"that asks for a token needs {AUTH_MODE}=token in the environment, "
                "and its token on this machine"
            ) from error
        self.opened = True
        self._changed = _changed(before)  # by Ray, until `close`

    def close(self) -> None:
        """Leave or end what was joined or started here."""
        if not (self.opened and self._owned):
            return
        self.opened = False
        before = dict(os.environ)
        self._ray.shutdown()
        for name, value in (_changed(before) | self._changed).items():
            _set(name, value)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._handler)


@contextmanager
def _importable() -> Iterator[None]:
    """Let workers that are started now import thalweg; do not report usage."""
    settings = {
        "PYTHONPATH": python_path(),
        "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0"),
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            _set(name, value)


def _changed(before: Mapping[str, str]) -> dict[str, str | None]:
    """Return the earlier values of what has changed in the environment."""
    names = before.keys() | os.environ.keys()
    return {n: before.get(n) for n in names if before.get(n) != os.environ.get(n)}


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
