"""Results come back from disk bit for bit."""

import numpy as np
import pytest
import xarray

from thalweg.errors import InputError, StoreError
from thalweg.execution import load_dataset, save_dataset


def dataset():
    awkward = np.array([[np.nan, np.inf, -np.inf], [-0.0, 5e-324, 1.7976e308]])
    nan = np.array([0x7FF8DEADBEEF0001], dtype=np.uint64).view(np.float64)
    return xarray.Dataset(
        {
            "loss": (("x0", "x1"), awkward),
            "single": (("x0", "x1"), awkward.clip(-1e30, 1e30).astype(np.float32)),
            "status": (("x0", "x1"), np.array([[1, 2, 3], [0, 0, 5]], np.int8)),
            "count": (("x1",), np.array([2**62 + 1, -1, 0])),
            "flag": (("x1",), np.array([True, False, True])),
            "name": (("x1",), np.array(["a", "éß", ""])),
            "scalar": ((), nan[0]),
        },
        coords={
            "x0": [0.1, -0.0],
            "x1": [1, 2, 3],
            "displacement": (("x0", "x1"), awkward),
        },
        attrs={"cost": '{"seconds": 1.5}', "note": "é → NaN", "empty": ""},
    )


@pytest.mark.parametrize("name", ["a.nc", "a.zarr"])
def test_a_round_trip_keeps_every_bit(name, tmp_path):
    original = dataset()
    for _ in range(2):  # the second one replaces the first
        save_dataset(original, tmp_path / name)
    read = load_dataset(tmp_path / name)
    assert read.attrs == original.attrs
    assert all(type(value) is str for value in read.attrs.values())
    assert set(read.variables) == set(original.variables)
    assert set(read.coords) == set(original.coords)
    for key, variable in original.variables.items():
        assert read[key].dims == variable.dims, key
        assert read[key].dtype.kind == variable.dtype.kind, key
        assert read[key].attrs == {}, key
        if variable.dtype.kind == "U":
            assert read[key].values.tolist() == variable.values.tolist()
        else:
            assert read[key].dtype == variable.dtype, key
            assert read[key].values.tobytes() == variable.values.tobytes(), key
    assert [p.name for p in tmp_path.iterdir()] == [name]
    save_dataset(read, tmp_path / name)


def test_what_cannot_be_kept_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"\.nc or \.zarr"):
        save_dataset(dataset(), tmp_path / "a.csv")
    with pytest.raises(InputError, match="attribute 'seed'"):
        save_dataset(dataset().assign_attrs(seed=3), tmp_path / "a.nc")
    with pytest.raises(InputError, match="'coordinates' belongs"):
        save_dataset(dataset().assign_attrs(coordinates="x"), tmp_path / "a.nc")
    with pytest.raises(StoreError, match="no result"):
        load_dataset(tmp_path / "a.nc")
    (tmp_path / "b.nc").write_bytes(b"not a file of results")
    with pytest.raises(StoreError, match="damaged"):
        load_dataset(tmp_path / "b.nc")
