"""The store: bits kept, foreign and damaged directories refused."""

import json

import numpy as np
import pytest

from thalweg.errors import InputError, StoreError
from thalweg.execution import Store, atomic_file

PLAN = {"kind": "test", "axes": {"x0": [0.0, float("nan")]}, "seed": 2**60}


def test_arrays_come_back_bit_for_bit(tmp_path):
    store = Store.create(tmp_path / "s", PLAN)
    arrays = {
        "values": np.array([np.nan, np.inf, -np.inf, -0.0, 1e-310]),
        "count": np.array(2**62 + 1),
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "text": np.array("é"),
    }
    store.write("a+b=1.5", arrays)
    again = Store.open(tmp_path / "s", PLAN)
    assert again.done() == {"a+b=1.5"}
    read = again.read("a+b=1.5")
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype and read[name].shape == array.shape
        assert read[name].tobytes() == array.tobytes()


def test_another_plan_is_refused_and_the_entry_named(tmp_path):
    Store.create(tmp_path, PLAN)
    other = {**PLAN, "axes": {"x0": [1.0, 2.0]}}
    with pytest.raises(StoreError, match=r"another plan.*axes\.x0.*given \[1\.0, 2"):
        Store.resume(tmp_path, other)
    with pytest.raises(StoreError, match="extra"):
        Store.open(tmp_path, {**PLAN, "extra": 1})


def test_what_was_resolved_is_not_compared_and_the_stored_one_wins(tmp_path):
    Store.create(tmp_path, {**PLAN, "resolved": {"chunk": 7}})
    again = Store.resume(tmp_path, {**PLAN, "resolved": {"chunk": 9}})
    assert again.resolved == {"chunk": 7}


def test_foreign_directories_and_files_are_refused(tmp_path):
    with pytest.raises(StoreError, match="holds no plan"):
        Store.open(tmp_path / "absent")
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match=r"something else \(thesis\.tex\)"):
        Store.resume(tmp_path, PLAN)
    with pytest.raises(StoreError, match="is a file"):
        Store.resume(tmp_path / "thesis.tex", PLAN)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_damage_is_named(tmp_path):
    store = Store.create(tmp_path, PLAN)
    store.write("k", {"a": np.arange(100)})
    file = tmp_path / "items" / "k.npz"
    whole = file.read_bytes()
    file.write_bytes(whole[:-30])
    with pytest.raises(StoreError, match=r"k\.npz.*damaged.*delete it"):
        store.read("k")
    broken = bytearray(whole)
    broken[200] ^= 1
    file.write_bytes(bytes(broken))
    with pytest.raises(StoreError, match="damaged"):
        store.read("k")
    with pytest.raises(StoreError, match="not in"):
        store.read("other")
    (tmp_path / "plan.json").write_text('{"kind": ')
    with pytest.raises(StoreError, match=r"plan\.json cannot be read"):
        Store.open(tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps([1]))
    with pytest.raises(StoreError, match="no mapping"):
        Store.open(tmp_path)


def test_leftovers_of_a_killed_job_do_not_count(tmp_path):
    store = Store.create(tmp_path, PLAN)
    store.write("k", {"a": np.zeros(1)})
    (tmp_path / "items" / "j.npz.123.tmp").write_bytes(b"half")
    assert Store.open(tmp_path, PLAN).done() == {"k"}
    assert len(list((tmp_path / "items").iterdir())) == 1


def test_keys_must_name_files(tmp_path):
    store = Store.create(tmp_path, PLAN)
    for key in ("../x", "", "a b", ".hidden", "x" * 201):
        with pytest.raises(InputError, match="key"):
            store.write(key, {"a": np.zeros(1)})


def test_an_atomic_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_file(path) as file:
        file.write(b"new, but")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
