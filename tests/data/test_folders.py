"""Image folders."""

import numpy as np
import pytest
import torch
from PIL import Image

from thalweg.data import image_folder
from thalweg.errors import DataError, InputError


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def test_one_folder_a_class(tmp_path):
    pixels = np.arange(2 * 3 * 3).reshape(2, 3, 3)
    save(tmp_path / "cat" / "b.png", pixels)
    save(tmp_path / "cat" / "a.png", pixels + 100)
    save(tmp_path / "ant" / "a.png", pixels + 200)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    data = image_folder(tmp_path)
    assert data.classes == ("ant", "cat") and data.targets.tolist() == [0, 1, 1]
    expected = torch.from_numpy(pixels).permute(2, 0, 1)
    assert torch.equal((data.inputs[2] * 255).round().long(), expected)
    assert image_folder(tmp_path, mode="L", size=(4, 5)).inputs.shape == (3, 1, 4, 5)


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="is no folder"):
        image_folder(tmp_path / "none")
    with pytest.raises(DataError, match="holds no class folders"):
        image_folder(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        image_folder(tmp_path)
    save(tmp_path / "a" / "1.png", np.zeros((4, 4)))
    save(tmp_path / "a" / "2.png", np.zeros((4, 6)))
    with pytest.raises(DataError, match=r"2.png is 4 x 6 pixels.*`size=`"):
        image_folder(tmp_path)
    with pytest.raises(InputError, match="size must be"):
        image_folder(tmp_path, size=0)
    truncated = (tmp_path / "a" / "1.png").read_bytes()[:40]
    (tmp_path / "a" / "1.png").write_bytes(truncated)
    with pytest.raises(DataError, match="1.png cannot be read as an image"):
        image_folder(tmp_path, size=4)
