"""Where a study keeps finished pieces of work."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from thalweg.execution import Store


class StudyStore:
    """Keep pieces of work under their keys; without a folder, compute each anew.

    Args:
        path: Folder, or None.
        plan: What a resumed study must share.
        resume: Whether to go on with a folder that holds this plan.

    Raises:
        StoreError: The folder holds something else, or another plan.
    """

    def __init__(
        self, path: Path | None, plan: Mapping[str, object], *, resume: bool
    ) -> None:
        self.path = path
        if path is None:
            self._store = None
        else:
            open_ = Store.resume if resume else Store.create
            self._store = open_(path, plan)

    def once(
        self, key: str, compute: Callable[[], Mapping[str, object]]
    ) -> dict[str, np.ndarray]:
        """Return the arrays that `compute` gives, from the folder where they are.

        Args:
            key: Name of this piece: letters, digits and `._=+-`.
            compute: Returns numbers, texts or arrays by name; numbers and texts come
                back as arrays without axes.
        """
        if self._store is not None and key in self._store.done():
            return self._store.read(key)
        arrays = {name: np.asarray(value) for name, value in compute().items()}
        if self._store is not None:
            self._store.write(key, arrays)
        return arrays

    def abandon(self) -> None:
        """Leave the folder free for other settings, if nothing was computed yet."""
        if self._store is not None:
            self._store.abandon()
