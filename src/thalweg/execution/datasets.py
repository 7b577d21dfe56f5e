"""Results on disk without loss: one NetCDF file, or a Zarr directory."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from thalweg.errors import InputError, StoreError

if TYPE_CHECKING:
    import xarray


def save_dataset(dataset: "xarray.Dataset", path: str | Path) -> None:
    """Write a result so that `load_dataset` gives it back bit for bit.

    NaN, infinities, signed zeros and 64-bit integers are kept; nothing is packed,
    masked or read as a time. It appears whole or not at all, replacing what was there.

    Args:
        dataset: Variables of numbers, booleans or text; attributes are text.
        path: Ends in `.nc` (NetCDF 4, through h5netcdf) or `.zarr`.

    Raises:
        InputError: Another suffix, or an attribute that is no text.
    """
    path = Path(path)
    for name, value in dataset.attrs.items():
        if type(value) is not str:
            raise InputError(
                f"attribute {name!r} must be a plain str, got {type(value).__name__}"
            )
        if name == "coordinates":
            raise InputError("the attribute name 'coordinates' belongs to the format")
    plain = dataset.drop_encoding()
    for name, variable in plain.variables.items():
        if variable.dtype.kind == "U":  # text of fixed width has no place in Zarr 3
            plain[name] = variable.dims, variable.values.astype(object)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        encoding = {
            name: {"_FillValue": None}
            for name, variable in plain.variables.items()
            if variable.dtype.kind in "fc"
        }
        if _suffix(path) == ".nc":
            plain.to_netcdf(temporary, engine="h5netcdf", encoding=encoding)
            os.replace(temporary, path)
        else:
            plain.to_zarr(
                temporary,
                mode="w",
                encoding=encoding,
                consolidated=False,
                write_empty_chunks=True,  # else NaN and -0.0 become the fill value
            )
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def load_dataset(path: str | Path) -> "xarray.Dataset":
    """Read a result that `save_dataset` wrote, into memory.

    Raises:
        InputError: Another suffix.
        StoreError: It is missing or damaged.
    """
    import xarray

    path = Path(path)
    options = (
        {"engine": "h5netcdf"}
        if _suffix(path) == ".nc"
        else {"engine": "zarr", "consolidated": False}
    )
    if not path.exists():
        raise StoreError(f"there is no result at {str(path)!r}")
    try:
        dataset = xarray.load_dataset(
            path, decode_times=False, mask_and_scale=False, **options
        )
    except Exception as error:  # each back end has its own kinds
        raise StoreError(f"{str(path)!r} is damaged: {error}") from error
    for name, variable in dataset.variables.items():
        if variable.dtype.kind in "OT":  # text comes back as objects
            dataset[name] = (
                variable.dims,
                variable.values.astype(object).astype(np.str_),
            )
    return dataset.drop_encoding()


def _suffix(path: Path) -> str:
    if path.suffix not in (".nc", ".zarr"):
        raise InputError(f"path must end in .nc or .zarr, got {path.name!r}")
    return path.suffix
