"""IDX and CIFAR files written by hand, byte by byte."""

import gzip
import struct

import pytest
import torch

from thalweg.data import cifar_binary, idx_dataset, read_idx
from thalweg.errors import DataError, InputError


def idx(code, shape, payload):
    return (
        bytes([0, 0, code, len(shape)])
        + struct.pack(f">{len(shape)}I", *shape)
        + payload
    )


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_pair(tmp_path, pack):
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.write_bytes(pack(idx(8, (2, 2, 3), bytes(range(0, 240, 20)))))
    labels.write_bytes(pack(idx(8, (2,), bytes([3, 0]))))
    data = idx_dataset(images, labels, name="mine")
    expected = torch.arange(0, 240, 20).reshape(2, 1, 2, 3) / 255.0
    assert torch.equal(data.inputs, expected)
    assert data.targets.tolist() == [3, 0] and data.name == "mine"


def test_idx_values_are_big_endian(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(idx(0x0E, (2,), struct.pack(">2d", 1.5, -2.0)))
    assert read_idx(file).tolist() == [1.5, -2.0]
    file.write_bytes(idx(0x0B, (1, 2), struct.pack(">2h", 258, -1)))
    assert read_idx(file).tolist() == [[258, -1]]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\1\0\x08\1", "no IDX file"),
        (b"\0\0\x07\1\0\0\0\1", "unknown IDX type code 0x07"),
        (b"\0\0\x08\3\0\0", "ends inside its header of 16 bytes"),
        (idx(8, (4,), b"abc"), r"truncated: shape \(4,\) needs 12 bytes, it has 11"),
        (idx(8, (2,), b"abc"), "bytes left over"),
        (gzip.compress(idx(8, (4,), b"abcd"), mtime=0)[:-9], "damaged gzip"),
    ],
)
def test_malformed_idx_is_refused(tmp_path, raw, message):
    file = tmp_path / "x"
    file.write_bytes(raw)
    with pytest.raises(DataError, match=message):
        read_idx(file)


def test_idx_files_that_do_not_belong_together(tmp_path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.write_bytes(idx(8, (2, 1, 1), b"ab"))
    labels.write_bytes(idx(8, (1,), b"\0"))
    with pytest.raises(DataError, match="holds 2 images.*1 labels"):
        idx_dataset(images, labels)
    with pytest.raises(DataError, match="cannot be read: No such file"):
        idx_dataset(tmp_path / "none", labels)


def record(label_bytes, value):
    planes = bytes([value]) * 1024 + bytes([value + 1]) * 1024 + bytes(range(256)) * 4
    return bytes(label_bytes) + planes


def test_cifar10(tmp_path):
    first, second = tmp_path / "1.bin", tmp_path / "2.bin"
    first.write_bytes(record([9], 10) + record([0], 20))
    second.write_bytes(record([1], 30))
    data = cifar_binary([first, second])
    assert data.targets.tolist() == [9, 0, 1] and data.classes[9] == "truck"
    bytes_ = (data.inputs * 255).round()
    assert bytes_[:, 0].unique().tolist() == [10, 20, 30]
    assert bytes_[:, 1].unique().tolist() == [11, 21, 31]
    assert torch.equal(bytes_[0, 2, 0], torch.arange(32.0))  # row by row


def test_cifar100(tmp_path):
    file = tmp_path / "train.bin"
    file.write_bytes(record([4, 77], 1))
    assert cifar_binary(file, labels="fine").targets.tolist() == [77]
    assert cifar_binary(file, labels="coarse").targets.tolist() == [4]


def test_malformed_cifar_is_refused(tmp_path):
    file = tmp_path / "x.bin"
    file.write_bytes(record([1], 1)[:-1])
    with pytest.raises(DataError, match="3072 bytes, which is no whole number"):
        cifar_binary(file)
    file.write_bytes(record([200], 1))
    with pytest.raises(DataError, match=r"\[0, 10\), got 200"):
        cifar_binary(file)
    with pytest.raises(InputError, match="at least one file"):
        cifar_binary([])
