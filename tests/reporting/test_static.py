"""Static figures: each kind is written, and matplotlib's state is left alone."""

import matplotlib
import numpy as np
import pytest
import xarray as xr
from PIL import Image

from thalweg.errors import InputError
from thalweg.reporting import save_figure


def surface(values):
    dims = tuple(f"x{j}" for j in range(np.ndim(values)))
    coords = {d: np.linspace(-1, 1, n) for d, n in zip(dims, values.shape, strict=True)}
    return xr.Dataset({"loss": (dims, values)}, coords)


def bowl():
    x = np.linspace(-1, 1, 9)
    values = 0.01 + x[:, None] ** 2 + x**2
    values[0, 0], values[8, 8] = np.nan, np.inf
    return values


def adaptive():
    """Four corners evaluated, one of them NaN, and what lies between."""
    data = surface(np.ones((3, 3)) + np.eye(3)).assign(
        status=(("x0", "x1"), np.diag([0, 5, 1])),
        interpolated=(("x0", "x1"), ~np.eye(3, dtype=bool)),
        point_loss=("point", [1.0, 2.0, np.nan]),
        point_round=("point", [0, 0, 1]),
    )
    data["loss"].values[[1, 2], [1, 2]] = np.nan
    at = [-1.0, 0.0, 1.0]
    return data.assign_coords(point_x0=("point", at), point_x1=("point", at))


DATASETS = {
    "spectrum": xr.Dataset(
        {"density": ("t", np.exp(-(np.linspace(-1, 3, 50) ** 2)))},
        {"t": np.linspace(-1, 3, 50)},
        {"sigma": "0.1"},
    ),
    "line": xr.Dataset(
        {"loss": ("t", [1.0, np.nan, 2.0]), "loss_stderr": ("t", [0.1, 0.1, 0.1])},
        {"t": [0.0, 0.5, 1.0]},
    ),
    "eigenvalues": xr.Dataset(
        {"value": ("pair", [2.0, 1.0]), "converged": ("pair", [1, 0])}
    ),
    "persistence": xr.Dataset(
        {"birth": ("pair", [0.0, 1.0]), "death": ("pair", [np.inf, 2.0])}
    ),
    "tracking": xr.Dataset(
        {
            "lambda_max": ("step", [4.0, np.nan, 9.0]),
            "lambda_max_residual": ("step", [0.1, np.nan, 0.2]),
            "loss": ("step", [1.0, 0.1, 0.01]),
            "learning_rate": ("step", [0.2] * 3),
            "threshold": ("step", [10.0] * 3),
        },
        {"step": [0, 10, 20]},
    ),
    "surface": surface(bowl()),
    "adaptive": adaptive(),
    "line over x0": surface(np.array([1.0, 2.0])),
    "one point": surface(np.ones((1, 1))),
    "constant": surface(np.ones((3, 3))),
    "nothing finite": surface(np.full((3, 3), np.nan)),
}


@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_has_a_picture(tmp_path, name):
    path = save_figure(DATASETS[name], tmp_path / "new" / "a.png", dpi=60)
    with Image.open(path) as picture:
        assert picture.format == "PNG" and len(picture.getcolors(1 << 20)) > 2
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["contour", "cells", "3d"])
@pytest.mark.parametrize("name", ["surface", "adaptive", "constant", "nothing finite"])
def test_every_kind_of_picture_of_a_surface(tmp_path, kind, name):
    path = np.array([[0.5, 0.5], [0.0, 0.0]])
    written = save_figure(
        DATASETS[name],
        tmp_path / "a.png",
        kind,
        clip=1.5,
        trajectory=path,
        residuals=np.array([0.9, 0.1]),
        dpi=60,
    )
    assert written.stat().st_size > 1000


def test_the_state_of_matplotlib_is_left_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    save_figure(DATASETS["surface"], tmp_path / "a.png", dpi=60)
    assert dict(matplotlib.rcParams) == before


def test_a_table_of_other_values_is_not_taken_for_eigenvalues(tmp_path):
    table = xr.Dataset({"value": ("kind", [1.0, 2.0])}, {"kind": ["zeroth", "first"]})
    with pytest.raises(InputError, match="no surface, line.*variables are: value"):
        save_figure(table, tmp_path / "a.png")


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(InputError, match=r"must end in .png, .svg, .pdf, got 'a.jpg'"):
        save_figure(DATASETS["surface"], tmp_path / "a.jpg")
    with pytest.raises(InputError, match="no surface, line.*variables are: z"):
        save_figure(xr.Dataset({"z": 1.0}), tmp_path / "a.png")
    with pytest.raises(InputError, match="over 2 axes, the dataset has 1"):
        save_figure(DATASETS["line over x0"], tmp_path / "a.png", "3d")
