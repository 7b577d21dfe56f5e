"""Single results of a stored survey as files of other programs."""

from collections.abc import Sequence
from pathlib import Path

from thalweg.errors import InputError
from thalweg.reporting import check_suffix, export
from thalweg.surveying.archive import Archive


def export_steps(
    directory: str | Path, paths: Sequence[str | Path]
) -> tuple[Path, ...]:
    """Write the result of the step that each file is named for; return their paths.

    `surface.vts` is the step `surface` for ParaView, `spectrum.svg` a figure,
    `layers.nc` the numbers; see `thalweg.reporting.export`.

    Raises:
        StoreError: There is no survey in `directory`.
        InputError: The survey has no such step, a suffix names no format (then nothing
            is written), or a result does not go into that format.
    """
    archive = Archive.open(Path(directory))
    for path in paths:
        check_suffix(path)
        if Path(path).stem not in archive.datasets:
            done = ", ".join(archive.datasets) or "none"
            raise InputError(
                f"export={str(path)!r} must be named for a finished step of "
                f"{directory}, for example surface.vts; finished are: {done}"
            )
    return tuple(export(archive.datasets[Path(path).stem], path) for path in paths)
