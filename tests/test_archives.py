"""What an archive states is compared with what it holds before memory is taken."""

import io
import struct
import zipfile

import h5py
import numpy as np
import pytest

from dtrl.archives import EXPANSION, anything, check_dataset, check_size, read_npz
from dtrl.errors import InputError


@pytest.fixture
def path(tmp_path):
    np.savez_compressed(
        tmp_path / "a.npz",
        zeros=np.zeros(50_000),
        words=np.array("text"),
        whole=np.asfortranarray(np.arange(6).reshape(2, 3)),
    )
    return tmp_path / "a.npz"


def test_arrays_are_those_that_numpy_reads(path):
    arrays, others = read_npz(path, "a", lambda name: name != "words")
    assert others == ["words"]
    with np.load(path) as expected:
        for name in ("zeros", "whole"):
            np.testing.assert_array_equal(arrays[name], expected[name], strict=True)
        assert arrays["whole"].flags.writeable
        np.testing.assert_array_equal(read_npz(path, "a", anything)[0]["words"], expected["words"], strict=True)


def test_no_honest_compression_is_refused(path):
    """Zeros are what deflate makes smallest."""
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("zeros.npy")
    assert member.file_size / member.compress_size < EXPANSION
    check_size(1032 * 10**6, 10**6, "x")


def patched(path, field, form, number):
    """The archive with another number in the table of its first member."""
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, data.index(b"PK\x01\x02") + field, number)
    path.write_bytes(data)


WRONG = {
    "a size of 4 GiB": ((24, "<I", 2**32 - 1), "states values of"),
    "a compressed size of 4 GiB": ((20, "<I", 2**32 - 2), "ends after the archive"),
    "another method": ((10, "<H", zipfile.ZIP_LZMA), "another method than deflate"),
    "a password": ((8, "<H", 1), "encrypted"),
    "another place": ((42, "<I", 2**31), "ends after the archive"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_false_tables_are_refused(path, wrong):
    (change, message) = WRONG[wrong]
    patched(path, *change)
    with pytest.raises(InputError, match=message):
        read_npz(path, str(path), anything)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,), }", r"states 8,796,093,022,208 bytes, and the file holds fewer"),
        ("{'descr': '<U999999', 'fortran_order': False, 'shape': (9,), }", "the file holds fewer"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", "Object arrays"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }", "the file holds fewer"),
        ("[" * 3000, "cannot be read as NPZ"),
        ("{" + " " * 20_000 + "}", "cannot be read as NPZ"),
    ],
)  # fmt: skip
def test_false_headers_are_refused(tmp_path, header, message):
    text = header.encode() + b"\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text + bytes(64))
    with pytest.raises(InputError, match=message):
        read_npz(tmp_path / "a.npz", "a", anything)


def test_a_member_that_is_there_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", b"")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.npy", b"")
    with pytest.raises(InputError, match=r"'a\.npy' twice"):
        read_npz(tmp_path / "a.npz", "a", anything)


def test_more_than_this_machine_has_is_refused(monkeypatch):
    monkeypatch.setattr("dtrl.archives.machine_memory", lambda: 2**30)
    with pytest.raises(InputError, match=r"x states values of 2\.0 GiB, and this machine has 1\.0 GiB"):
        check_size(2**31, 2**31, "x")


def test_datasets_that_lie_elsewhere_or_state_too_much_are_refused(tmp_path):
    (tmp_path / "raw").write_bytes(bytes(80))
    with h5py.File(io.BytesIO(), "w") as file:
        layout = h5py.VirtualLayout((10,), "f8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.hdf5"), "x", (10,))
        wrong = {
            "empty": file.create_dataset("empty", data=h5py.Empty("f8")),
            "another file": file.create_dataset("raw", (10,), "f8", external=[(str(tmp_path / "raw"), 0, 80)]),
            "in another file": file.create_virtual_dataset("virtual", layout),
            "holds 0 bytes": file.create_dataset("stated", (2**40,), "f8"),
            "states values of": file.create_dataset(
                "chunk", data=np.zeros(4), maxshape=(None,), chunks=(2**20,), compression="gzip"
            ),
        }
        for message, data in wrong.items():
            with pytest.raises(InputError, match=message):
                check_dataset(data.id, 1_000_000 if message != "states values of" else 1000, "x")
        for options in ({}, {"chunks": True}, {"compression": "gzip", "shuffle": True}):
            check_dataset(file.create_dataset(f"good {options}", data=np.zeros(10_000), **options).id, 10**5, "x")
