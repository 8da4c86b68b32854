"""Texts and images in HDF5: the same bytes as HDF5 itself finds, and nothing from outside the file."""

import struct

import h5py
import numpy as np
import pytest

from dtrl.errors import InputError
from dtrl.trajectories.heaps import HEAP, objects_of, pieces_of

LAYOUTS = {
    "contiguous": {},
    "chunked": {"chunks": (3,), "maxshape": (None,)},
    "deflate": {"chunks": (4,), "compression": "gzip"},
    "shuffle and deflate": {"chunks": (4,), "compression": "gzip", "shuffle": True},
}


def written(path, pieces, **options):
    with h5py.File(path, "w") as file:
        data = file.create_dataset("x", (len(pieces),), h5py.vlen_dtype(np.uint8), **options)
        for i, piece in enumerate(pieces):
            data[i] = np.frombuffer(piece, np.uint8)
        file.create_dataset("texts", data=["a", "", "längst"], dtype=h5py.string_dtype())
    return path


def read(path, name="x"):
    with h5py.File(path) as file:
        return list(pieces_of(file[name].id, path.read_bytes(), "x"))


@pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS)
def test_pieces_are_those_that_hdf5_finds(tmp_path, options):
    random = np.random.default_rng(0)
    pieces = [random.bytes(int(n)) for n in (0, 1, 7, 8, 9, 300, 5000, 70_000, 3, 3)]
    path = written(tmp_path / "a.hdf5", pieces, **options)
    assert read(path) == pieces
    assert read(path, "texts") == [b"a", b"", "längst".encode()]


@pytest.mark.parametrize(
    ("offset", "form", "number"),
    [(0, "<I", 2**31), (4, "<Q", 2**40), (4, "<Q", 2**64 - 1), (12, "<I", 999)],
    ids=["length", "place", "place at the end of all", "number"],
)
def test_a_reference_that_leads_nowhere_is_refused(tmp_path, offset, form, number):
    path = written(tmp_path / "a.hdf5", [b"one", b"two"])
    content = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        struct.pack_into(form, content, file["x"].id.get_offset() + offset, number)
        with pytest.raises(InputError, match=r"refer to a piece of .* bytes that the file does not have"):
            list(pieces_of(file["x"].id, content, "x"))


def test_a_heap_that_goes_on_for_ever_ends(tmp_path):
    """Objects of no length, or of one that leads back by overflow, keep some versions of HDF5 busy for ever."""
    content = bytearray(HEAP.pack(b"GCOL", 1, 4096) + bytes(4096 - HEAP.size))
    assert objects_of(content, 0) == {}
    content[HEAP.size :: 16] = b"\x01" * len(content[HEAP.size :: 16])
    assert objects_of(content, 0) == {1: (4096, 0)}
    struct.pack_into("<HHIQ", content, HEAP.size, 1, 0, 0, 2**64 - 16)
    assert objects_of(content, 0) == {}
    assert objects_of(content, 4090) == {}
    assert objects_of(b"no heap at all" * 10, 3) == {}


def test_another_filter_is_named(tmp_path):
    path = written(tmp_path / "a.hdf5", [b"one"] * 200, chunks=(200,), compression="lzf")
    with pytest.raises(InputError, match="compressed by a filter that dtrl does not read"):
        read(path)
