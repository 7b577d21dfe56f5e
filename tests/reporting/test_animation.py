"""A path growing over a surface: frames, times, what is said, what is refused."""

import matplotlib
import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image

from thalweg.errors import InputError
from thalweg.reporting import animate

AXIS = np.linspace(-1, 1, 9)
VERMILLION = np.array([0xD5, 0x5E, 0x00])  # of the path


def bowl(k=2):
    grids = np.meshgrid(*[AXIS] * k, indexing="ij")
    dims = tuple(f"x{j}" for j in range(k))
    values = 0.1 + sum(grid**2 for grid in grids)
    return xr.Dataset({"loss": (dims, values)}, dict.fromkeys(dims, AXIS))


def spiral(count):
    t = np.linspace(0, 1, count)
    return (1 - t)[:, None] * np.stack([np.cos(6 * t), np.sin(6 * t)], axis=1) * 0.8


def frames(path):
    with Image.open(path) as animation:
        for index in range(animation.n_frames):
            animation.seek(index)
            yield np.array(animation.convert("RGB")), animation.info["duration"]


def painted(picture):
    """How much of a picture has the color of the path."""
    return int((np.abs(picture.astype(int) - VERMILLION).sum(axis=-1) < 30).sum())


def test_the_path_grows_frame_by_frame_over_a_still_surface(tmp_path):
    path = animate(bowl(), spiral(12), tmp_path / "new" / "a.gif", seconds=1.2, dpi=60)
    pictures, times = zip(*frames(path), strict=True)
    assert times == (100,) * 11 + (1500,)
    growing = [painted(picture) for picture in pictures]
    assert growing[0] > 0 and growing[-1] > 4 * growing[0]
    assert all(b > a - 40 for a, b in zip(growing, growing[1:], strict=False))
    # Where the path never is, nothing changes: a corner of the surface, the color bar.
    stacked = np.stack(pictures)
    changed = (stacked != stacked[-1]).any(axis=(0, -1)).mean()
    assert changed < 0.2
    assert list(path.parent.iterdir()) == [path]


def test_long_paths_take_no_more_frames_and_short_ones_fewer(tmp_path):
    for count, expected in ((500, 10), (1, 1), (4, 4)):
        path = animate(
            bowl(), torch.tensor(spiral(count)), tmp_path / "a.gif", frames=10, dpi=40
        )
        assert len(list(frames(path))) == expected


def test_a_path_that_leaves_the_surface_or_the_numbers_is_drawn_where_it_is(tmp_path):
    points = 3 * spiral(5)
    points[2] = np.nan
    path = animate(
        bowl(),
        points,
        tmp_path / "a.gif",
        residuals=np.array([0.9, 0.6, np.nan, 0.2, 0.0]),
        steps=[0, 10, 20, 30, 40],
        values=[5.0, np.nan, np.inf, 1.0, 0.1],
        dpi=40,
    )
    assert len(list(frames(path))) == 5
    path = animate(bowl(), np.full((2, 2), np.nan), tmp_path / "b.gif", dpi=40)
    assert len(list(frames(path))) == 2


def test_a_surface_with_gaps_is_drawn(tmp_path):
    surface = bowl()
    surface["loss"][2:4, 3:5] = np.nan
    animate(surface, spiral(3), tmp_path / "a.gif", clip=1.0, dpi=40)
    surface["loss"][:] = np.inf
    animate(surface, spiral(3), tmp_path / "a.gif", dpi=40)


def test_the_same_animation_is_the_same_file_and_changes_no_setting(tmp_path):
    before = dict(matplotlib.rcParams)
    first, second = (
        animate(bowl(), spiral(4), tmp_path / f"{name}.gif", dpi=40).read_bytes()
        for name in "ab"
    )
    assert first == second
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("surface", "trajectory", "name", "options", "message"),
    [
        (bowl(), spiral(3), "a.mp4", {}, "must end in .gif, got 'a.mp4'"),
        (bowl(), spiral(0), "a.gif", {}, "trajectory has no points"),
        (bowl(1), spiral(3), "a.gif", {}, "must have 2 axes, the dataset has 1"),
        (xr.Dataset(), spiral(3), "a.gif", {}, "no variable over axes x0, x1"),
        (bowl(), spiral(3), "a.gif", {"steps": [1, 2]}, r"steps has shape \(2,\).*3"),
        (
            bowl(),
            spiral(3),
            "a.gif",
            {"residuals": np.zeros(4)},
            r"residuals has shape \(4,\), the trajectory has 3 points",
        ),
        (bowl(), spiral(3), "a.gif", {"seconds": 0.0}, "seconds must be positive"),
        (bowl(), spiral(3), "a.gif", {"frames": 0}, "frames at least 1, got 6.0 and 0"),
        (bowl(), spiral(3), "a.gif", {"variable": "acc"}, "one of loss, got 'acc'"),
    ],
)
def test_bad_input_is_named(tmp_path, surface, trajectory, name, options, message):
    with pytest.raises(InputError, match=message):
        animate(surface, trajectory, tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []
