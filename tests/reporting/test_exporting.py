"""Export by suffix: no bit lost, and VTK's own reader sees what was written."""

import xml.etree.ElementTree as ET
from base64 import b64decode

import numpy as np
import pytest
import xarray as xr

from thalweg.errors import DataWarning, InputError
from thalweg.execution import load_dataset
from thalweg.reporting import export

ENCODINGS = ["base64", "ascii"]
X0, X1 = np.array([-1.0, 0.0, 0.5, 2.0]), np.array([0.1, 0.2, 0.7])


def surface(values=None, **variables):
    grid = X0[:, None] ** 2 + 3 * X1 + 0.1 if values is None else values
    return xr.Dataset(
        {"loss": (("x0", "x1"), grid), **variables},
        {"x0": X0, "x1": X1},
        {"gram": "[[1.0, 0.0], [0.0, 1.0]]", "seed": "7", "ünï": "côdé ≤"},
    )


def broken():
    values = surface()["loss"].values.copy()
    values[0, 0], values[1, 2], values[3, 1] = np.nan, np.inf, -np.inf
    status = np.zeros((4, 3), np.int8)
    status[0, 0], status[1, 2], status[3, 1] = 1, 2, 3
    big = 2**62 + np.arange(12, dtype=np.int64).reshape(4, 3)
    return surface(values, status=(("x0", "x1"), status), big=(("x0", "x1"), big))


def read(path):
    """Read a file with VTK itself, as ParaView does."""
    io = pytest.importorskip("vtkmodules.vtkIOXML")
    kinds = {".vts": io.vtkXMLStructuredGridReader, ".vtp": io.vtkXMLPolyDataReader}
    reader = kinds[path.suffix]()
    assert reader.CanReadFile(str(path))
    reader.SetFileName(str(path))
    reader.Update()
    assert reader.GetErrorCode() == 0
    return reader.GetOutput()


def arrays(data):
    from vtkmodules.util.numpy_support import vtk_to_numpy

    found = data.GetPointData()
    return {
        found.GetArrayName(i): vtk_to_numpy(found.GetArray(i))
        for i in range(found.GetNumberOfArrays())
    }


def points(data):
    from vtkmodules.util.numpy_support import vtk_to_numpy

    return vtk_to_numpy(data.GetPoints().GetData())


def lines(data):
    """Return the indices along every line."""
    from vtkmodules.util.numpy_support import vtk_to_numpy

    cells = data.GetLines()
    ends = vtk_to_numpy(cells.GetOffsetsArray())
    flat = vtk_to_numpy(cells.GetConnectivityArray())
    return [flat[a:b].tolist() for a, b in zip(ends[:-1], ends[1:], strict=True)]


def text(data, name):
    return data.GetFieldData().GetAbstractArray(name).GetValue(0)


# NetCDF and Zarr


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_netcdf_and_zarr_keep_every_bit(tmp_path, suffix):
    dataset = broken()
    dataset["loss"].values[2, 0] = -0.0
    path = export(dataset, tmp_path / "new" / f"a{suffix}")
    back = load_dataset(path)
    assert back.identical(dataset)
    assert back["big"].dtype == np.int64 and back["status"].dtype == np.int8
    assert np.signbit(back["loss"].values[2, 0])


# Structured grids


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_surface_reads_back_in_vtk(tmp_path, encoding):
    dataset = surface(accuracy=(("x0", "x1"), np.arange(12.0).reshape(4, 3)))
    grid = read(export(dataset, tmp_path / "a.vts", scale="linear", encoding=encoding))
    assert grid.GetExtent() == (0, 3, 0, 2, 0, 0) and not grid.HasAnyBlankPoints()
    found = arrays(grid)
    assert set(found) == {"loss", "accuracy"}
    assert grid.GetPointData().GetScalars().GetName() == "loss"
    expected = [
        (x, y, dataset["loss"].values[i, j])
        for j, y in enumerate(X1)
        for i, x in enumerate(X0)
    ]
    np.testing.assert_array_equal(points(grid), expected)
    np.testing.assert_array_equal(
        found["accuracy"], dataset["accuracy"].values.T.ravel()
    )
    assert text(grid, "seed") == "7" and text(grid, "ünï") == "côdé ≤"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_values_that_are_not_finite_are_hidden_and_kept(tmp_path, encoding):
    dataset = broken()
    with pytest.warns(DataWarning, match="loss is not finite at 3 of 12 points"):
        path = export(dataset, tmp_path / "a.vts", scale="linear", encoding=encoding)
    grid = read(path)
    found = arrays(grid)
    values = dataset["loss"].values.T.ravel()
    np.testing.assert_array_equal(found["loss"], values)  # NaN and ±inf in place
    np.testing.assert_array_equal(found["big"], dataset["big"].values.T.ravel())
    assert found["big"].dtype == np.int64
    visible = [bool(grid.IsPointVisible(i)) for i in range(12)]
    assert visible == np.isfinite(values).tolist()
    assert np.isfinite(points(grid)).all()
    hidden = points(grid)[~np.isfinite(values), 2]
    assert (hidden == values[np.isfinite(values)].min()).all()
    # A cell is seen where its four corners are.
    finite = np.isfinite(dataset["loss"].values)
    corners = finite[1:, 1:] & finite[1:, :-1] & finite[:-1, 1:] & finite[:-1, :-1]
    seen = [bool(grid.IsCellVisible(i)) for i in range(6)]
    assert seen == corners.T.ravel().tolist()
    assert "3 of 12 points" in text(grid, "note")


def test_heights_are_logarithms_where_values_are_far_apart(tmp_path):
    dataset = surface(10.0 ** np.arange(12.0).reshape(4, 3))
    grid = read(export(dataset, tmp_path / "a.vts", clip=1e9))
    heights = np.minimum(np.arange(12.0), 9).reshape(4, 3).T.ravel()
    np.testing.assert_allclose(points(grid)[:, 2], heights, atol=1e-12)
    np.testing.assert_array_equal(arrays(grid)["height"], points(grid)[:, 2])
    np.testing.assert_array_equal(
        arrays(grid)["loss"], dataset["loss"].T.values.ravel()
    )
    note = text(grid, "note")
    assert "log10 of loss" in note and "2 values above 1e+09" in note


def test_three_directions_are_a_volume(tmp_path):
    values = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    axes = {f"x{j}": np.arange(n) * 1.0 for j, n in enumerate(values.shape)}
    volume = xr.Dataset({"loss": (tuple(axes), values)}, axes)
    grid = read(export(volume, tmp_path / "a.vts"))
    assert grid.GetExtent() == (0, 1, 0, 2, 0, 3)
    found = arrays(grid)["loss"]
    assert found.dtype == np.float32
    for point, value in zip(points(grid).astype(int), found, strict=True):
        assert value == values[tuple(point)]


def test_nothing_finite_is_all_hidden(tmp_path):
    with pytest.warns(DataWarning, match="12 of 12"):
        path = export(surface(np.full((4, 3), np.nan)), tmp_path / "a.vts")
    grid = read(path)
    assert np.isfinite(points(grid)).all()
    assert not any(grid.IsPointVisible(i) for i in range(12))


# Poly data


def scattered(dim):
    values = np.array([1.0, 2.0, np.nan, 3.0, 4.0, np.inf])
    return xr.Dataset(
        {"loss": (dim, values), "status": (dim, np.int8([0, 0, 1, 0, 0, 2]))},
        {"x0": (dim, np.arange(6.0)), "x1": (dim, np.arange(6.0) ** 2)},
    )


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("dim", ["point", "step"])
def test_scattered_points_are_vertices_and_steps_are_joined(tmp_path, dim, encoding):
    dataset = scattered(dim)
    with pytest.warns(DataWarning, match="2 of 6 points"):
        path = export(dataset, tmp_path / "a.vtp", encoding=encoding)
    data = read(path)
    np.testing.assert_array_equal(points(data)[:, 0], dataset["x0"])
    np.testing.assert_array_equal(points(data)[:, 1], dataset["x1"])
    np.testing.assert_array_equal(points(data)[:, 2], [1, 2, 1, 3, 4, 1])
    np.testing.assert_array_equal(arrays(data)["loss"], dataset["loss"])
    np.testing.assert_array_equal(arrays(data)["status"], dataset["status"])
    assert data.GetNumberOfVerts() == 4  # the finite ones
    assert lines(data) == ([[0, 1], [3, 4]] if dim == "step" else [])


def test_the_points_of_an_adaptive_surface_are_those_evaluated(tmp_path):
    dataset = surface().assign(point_loss=("point", [1.0, 2.0]))
    places = {"point_x0": ("point", [0.5, -1.0]), "point_x1": ("point", [0.1, 0.7])}
    dataset = dataset.assign_coords(places)
    data = read(export(dataset, tmp_path / "a.vtp"))
    np.testing.assert_array_equal(points(data), [[0.5, 0.1, 1], [-1.0, 0.7, 2]])
    assert read(export(dataset, tmp_path / "a.vts")).GetNumberOfPoints() == 12


def test_points_in_three_directions(tmp_path):
    dataset = scattered("point").isel(point=[0, 1])
    dataset = dataset.assign_coords(x2=("point", [5.0, 6.0]))
    data = read(export(dataset, tmp_path / "a.vtp"))
    np.testing.assert_array_equal(points(data), [[0, 0, 5], [1, 1, 6]])


def test_lines_stand_upright_and_break_at_gaps(tmp_path):
    t = np.linspace(0, 1, 5)
    values = np.array([[1.0, 2, 3, 2, 1], [1, np.nan, 3, 4, 5]])
    dataset = xr.Dataset(
        {"loss": (("pair", "t"), values)}, {"t": t, "pair": ["a – b", "a – c"]}
    )
    with pytest.warns(DataWarning, match="1 of 10"):
        path = export(dataset, tmp_path / "a.vtp")
    data = read(path)
    np.testing.assert_array_equal(points(data)[:, 0], np.tile(t, 2))
    assert not points(data)[:, 1].any()
    np.testing.assert_array_equal(arrays(data)["loss"], values.ravel())
    np.testing.assert_array_equal(arrays(data)["line"], np.repeat([0, 1], 5))
    assert lines(data) == [[0, 1, 2, 3, 4], [7, 8, 9]]
    assert text(data, "lines") == "a – b\na – c"


def test_a_line_in_one_direction(tmp_path):
    dataset = surface().isel(x1=0, drop=True)
    data = read(export(dataset, tmp_path / "a.vtp"))
    assert lines(data) == [[0, 1, 2, 3]]
    np.testing.assert_array_equal(points(data)[:, 2], dataset["loss"])


# The files themselves, read without VTK


def test_the_file_is_the_xml_that_the_format_asks_for(tmp_path):
    root = ET.parse(export(surface(), tmp_path / "a.vts")).getroot()
    assert root.tag == "VTKFile" and root.get("type") == "StructuredGrid"
    assert root.get("byte_order") == "LittleEndian"
    element = root.find(".//PointData/DataArray[@Name='loss']")
    content = b64decode(element.text)
    assert int.from_bytes(content[:8], "little") == len(content) - 8 == 12 * 8
    values = np.frombuffer(content[8:], "<f8")
    np.testing.assert_array_equal(values, surface()["loss"].values.T.ravel())


def test_ascii_numbers_are_written_to_the_last_digit(tmp_path):
    path = export(surface(), tmp_path / "a.vts", encoding="ascii")
    element = ET.parse(path).getroot().find(".//PointData/DataArray[@Name='loss']")
    values = np.array(element.text.split(), dtype=float)
    np.testing.assert_array_equal(values, surface()["loss"].values.T.ravel())


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".vts", ".nc"])
def test_the_same_dataset_is_the_same_file(tmp_path, suffix):
    first, second = (
        export(surface(), tmp_path / f"{name}{suffix}").read_bytes() for name in "ab"
    )
    if suffix != ".nc":  # HDF5 keeps times
        assert first == second
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"a{suffix}", f"b{suffix}"]


@pytest.mark.parametrize(
    ("dataset", "name", "message"),
    [
        (surface(), "a.obj", r"\.nc or \.zarr .*\.vts .*\.png, \.svg, \.pdf .*'a.obj'"),
        (surface(), "a", r"path must end in \.nc or \.zarr"),
        (surface(), "a.vtp", "2 axes goes into a .vts"),
        (scattered("point"), "a.vts", "scattered points go into a .vtp"),
        (surface().isel(x1=0, drop=True), "a.vts", "1: a line goes into a .vtp"),
        (xr.Dataset({"value": ("pair", [1.0])}), "a.vts", "no variable over axes"),
        (xr.Dataset({"value": ("pair", [1.0])}), "a.vtp", "no variable over t or x0"),
        (surface().assign_attrs(number=3), "a.nc", "must be a plain str"),
    ],
)
def test_what_does_not_go_into_a_format_is_said(tmp_path, dataset, name, message):
    with pytest.raises(InputError, match=message):
        export(dataset, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_refused_export_makes_no_folder(tmp_path):
    for name in ("a.stl", "a.vtp", "a.vts"):
        with pytest.raises(InputError):
            export(surface(), tmp_path / "new" / name, variable="acc")
    assert list(tmp_path.iterdir()) == []


def test_bad_options_are_named(tmp_path):
    with pytest.raises(InputError, match="variable must be one of loss, got 'acc'"):
        export(surface(), tmp_path / "a.vts", variable="acc")
    with pytest.raises(InputError, match="scale 'log' needs positive values"):
        export(surface(-np.ones((4, 3))), tmp_path / "a.vts", scale="log")
    line = surface(acc=(("x0", "x1"), np.zeros((4, 3)))).isel(x1=0, drop=True)
    for name in ("a.vtp", "a.svg"):
        with pytest.raises(InputError, match="variable must be one of loss, acc, got"):
            export(line, tmp_path / name, variable="error")


def test_a_figure_of_a_line_shows_the_variable_asked_for(tmp_path):
    values = np.arange(12.0).reshape(4, 3)
    line = surface(acc=(("x0", "x1"), values)).isel(x1=0, drop=True)
    files = {
        name: export(line, tmp_path / f"{name}.svg", variable=name).read_bytes()
        for name in ("loss", "acc")
    }
    alone = export(line[["acc"]], tmp_path / "alone.svg").read_bytes()
    assert files["acc"] == alone != files["loss"]
