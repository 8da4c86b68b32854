"""Pieces of bytes in HDF5, such as texts and JPEG images: found in the file here, as HDF5 itself believes what a damaged reference or heap states.

A dataset of pieces holds references of 16 bytes: the length of the piece, the place of a *global heap* in the file, and a number in it. A heap is the
word GCOL, its size, and objects one after the other, each with its number and size [HDF5 file format specification, III.E]."""

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from dtrl.archives import check_size
from dtrl.errors import InputError

REFERENCE = np.dtype([("length", "<u4"), ("heap", "<u8"), ("number", "<u4")])
HEAP, OBJECT = struct.Struct("<4sB3xQ"), struct.Struct("<HH4xQ")


def pieces_of(data: Any, content: Any, where: str) -> Iterator[bytes]:
    """The pieces that a dataset (an `h5py.h5d.DatasetID`) refers to, in `content`, the bytes of its file.

    Raises InputError where a reference leads to no whole piece, or is compressed by another filter than shuffle and deflate."""
    heaps: dict[int, dict[int, tuple[int, int]]] = {}
    for length, place, number in references_of(data, content, where).tolist():
        if not length:
            yield b""
            continue
        if place not in heaps:
            heaps[place] = objects_of(content, place)
        begin, size = heaps[place].get(number, (0, 0))
        if length > size:
            raise InputError(f"{where} refer to a piece of {length:,} bytes that the file does not have; get it again.")
        yield bytes(content[begin : begin + length])


def references_of(data: Any, content: Any, where: str) -> Any:
    """(T,) the references of a dataset of one axis."""
    from h5py import h5d

    stored, count = data.get_create_plist(), data.shape[0]
    if stored.get_layout() == h5d.CONTIGUOUS:
        begin = data.get_offset() or 0
        raw = bytearray(content[begin : begin + data.get_storage_size()])
    elif stored.get_layout() == h5d.CHUNKED:
        (width,) = stored.get_chunk()
        raw = bytearray(-(-count // width) * width * REFERENCE.itemsize)
        for i in range(data.get_num_chunks()):
            chunk = data.get_chunk_info(i)
            check_size(chunk.size, len(content), where)
            part = bytes(content[chunk.byte_offset : chunk.byte_offset + chunk.size])
            part = unfiltered(part, width, stored, chunk.filter_mask, where)
            begin = chunk.chunk_offset[0] * REFERENCE.itemsize
            raw[begin : begin + len(part)] = part
    else:
        raise InputError(f"{where} are stored in a way that dtrl does not read; record the dataset again.")
    if len(raw) < count * REFERENCE.itemsize:
        raise InputError(f"{where} are {count} pieces, and the file refers to fewer; get it again.")
    return np.frombuffer(bytes(raw), REFERENCE, count)


def unfiltered(part: bytes, width: int, stored: Any, skipped: int, where: str) -> bytes:
    """The references of a chunk of so many; `skipped` has a bit for each filter that it did not go through."""
    from h5py import h5z

    size = width * REFERENCE.itemsize
    for i in reversed(range(stored.get_nfilters())):
        if skipped >> i & 1:
            continue
        kind = stored.get_filter(i)[0]
        if kind == h5z.FILTER_DEFLATE:
            part = zlib.decompressobj().decompress(part, size)
        elif kind == h5z.FILTER_SHUFFLE and len(part) == size:
            part = np.frombuffer(part, np.uint8).reshape(REFERENCE.itemsize, -1).T.tobytes()
        else:
            raise InputError(f"{where} are compressed by a filter that dtrl does not read; store them without.")
    if len(part) != size:
        raise InputError(f"{where} are not whole; get the file again.")
    return part


def objects_of(content: Any, place: int) -> dict[int, tuple[int, int]]:
    """Number → begin and size of each object of a global heap; none where there is no heap."""
    found: dict[int, tuple[int, int]] = {}
    if place + HEAP.size > len(content):
        return found
    word, _, size = HEAP.unpack_from(content, place)
    end = min(place + size, len(content))
    at = place + HEAP.size
    while word == b"GCOL" and at + OBJECT.size <= end:
        number, _, length = OBJECT.unpack_from(content, at)
        begin = at + OBJECT.size
        if number == 0 or begin + length > end:  # the free space, which is last
            break
        found[number] = begin, length
        at = begin + -(-length // 8) * 8
    return found
