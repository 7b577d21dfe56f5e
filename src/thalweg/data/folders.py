"""Image folders: one folder a class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from thalweg.data.labeled import LabeledData
from thalweg.errors import DataError, InputError

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"}


def image_folder(
    path: str | Path,
    *,
    size: int | Sequence[int] | None = None,
    mode: Literal["RGB", "L"] = "RGB",
) -> LabeledData:
    """Read `path/CLASS/*.png` (and jpg, bmp, gif, webp, tif, ppm), float32 in [0, 1].

    Classes and files are taken in the order of their names; files of other suffixes
    and names that begin with a dot are passed over.

    Args:
        path: The folder of class folders.
        size: Height and width (one number: both) that every image is resized to,
            bilinearly; None where all have one size.
        mode: "RGB" gives rows (3, height, width), "L" gray rows (1, height, width).

    Raises:
        InputError: Another mode or a size that is not positive.
        DataError: No such folder, no images, a class without images, an image that
            cannot be read (named), images of different sizes without `size`.
    """
    if mode not in ("RGB", "L"):
        raise InputError(f"mode must be 'RGB' or 'L', got {mode!r}")
    shape = _shape(size)
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"{root} is no folder")
    folders = sorted(
        p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")
    )
    if not folders:
        raise DataError(f"{root} holds no class folders: one folder a class is read")
    images: list[np.ndarray] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        files = sorted(
            p
            for p in folder.iterdir()
            if p.suffix.lower() in _SUFFIXES and not p.name.startswith(".")
        )
        if not files:
            raise DataError(
                f"{folder} holds no images ({', '.join(sorted(_SUFFIXES))})"
            )
        for file in files:
            image = _read(file, mode, shape)
            if images and image.shape != images[0].shape:
                raise DataError(
                    f"{file} is {image.shape[0]} x {image.shape[1]} pixels, the first "
                    f"image {images[0].shape[0]} x {images[0].shape[1]}: give `size=`"
                )
            images.append(image)
            labels.append(label)
    pixels = torch.from_numpy(np.stack(images))
    return LabeledData(
        pixels.permute(0, 3, 1, 2).contiguous().float() / 255.0,
        torch.tensor(labels),
        tuple(folder.name for folder in folders),
        root.name,
    )


def _shape(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    shape = (size, size) if isinstance(size, int) else tuple(size)
    if len(shape) != 2 or any(side < 1 for side in shape):
        raise InputError(f"size must be one or two positive integers, got {size!r}")
    return shape


def _read(file: Path, mode: str, shape: tuple[int, int] | None) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(file) as opened:
            image = opened.convert(mode)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{file} cannot be read as an image: {error}") from None
    if shape is not None:
        image = image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels
