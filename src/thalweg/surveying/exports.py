"""Single results of a stored survey as files of other programs."""

from pathlib import Path

from thalweg.errors import InputError
from thalweg.reporting import export
from thalweg.surveying.archive import Archive


def export_step(directory: str | Path, path: str | Path) -> Path:
    """Write the result of the step that a file is named for, and return its path.

    `surface.vts` is the step `surface` for ParaView, `spectrum.svg` a figure,
    `layers.nc` the numbers; see `thalweg.reporting.export`.

    Raises:
        StoreError: There is no survey in `directory`.
        InputError: The survey has no such step, or it does not go into that format.
    """
    archive = Archive.open(Path(directory))
    step = Path(path).stem
    if step not in archive.datasets:
        done = ", ".join(archive.datasets) or "none"
        raise InputError(
            f"export={str(path)!r} must be named for a finished step of {directory}, "
            f"for example surface.vts; finished are: {done}"
        )
    return export(archive.datasets[step], path)
