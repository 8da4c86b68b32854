"""Zip archives and compressed files from elsewhere, of which a few bytes may state any size: what they state is checked before memory is taken."""

import math
import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from dtrl.errors import InputError, reason_of

Array = npt.NDArray[Any]
EXPANSION = 1_100
"""Deflate, which zip and HDF5 use, makes nothing smaller than 1 : 1,032."""
OF_WEIGHTS = 64
"""The same for trained weights, which hardly get smaller."""
SLACK = 2**16
"""Bytes that need no reason."""
PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
PIECE = 2**20
"""Bytes that are read at a time."""
LONGEST_HEADER = 10_000
"""Bytes of the header of an array, as NumPy itself reads them."""


def check_size(size: int, held: int, where: str, most: int = EXPANSION) -> None:
    """Raise InputError for values of `size` bytes from a file that holds `held` bytes of them, where these are no `most`th, or this machine has less."""
    if size > most * held + SLACK:
        raise InputError(
            f"{where} states values of {size:,} bytes, and holds {held:,} bytes, which is too little for them however compressed; get the file again."
        )
    if size > (memory := machine_memory()):
        raise InputError(
            f"{where} states values of {size / 2**30:,.1f} GiB, and this machine has {memory / 2**30:,.1f} GiB; if it is right, cut it into parts."
        )


def check_dataset(data: Any, held: int, where: str) -> None:
    """`check_size` of a dataset of HDF5 (an `h5py.h5d.DatasetID`) in a file of `held` bytes, and of the pieces in which it is stored.

    Raises InputError also for one that is empty, or lies in another file."""
    from h5py import h5d

    if data.shape is None:
        raise InputError(f"{where} is empty, where values are expected; get the file again.")
    stored, width = data.get_create_plist(), data.get_type().get_size()
    layout = stored.get_layout()
    if layout == h5d.VIRTUAL or (layout == h5d.CONTIGUOUS and stored.get_external_count()):
        raise InputError(f"{where} lies in another file; make it one file.")
    if layout == h5d.CHUNKED:
        check_size(math.prod(stored.get_chunk()) * width, held, where)
    check_size(math.prod(data.shape) * width, min(data.get_storage_size(), held), where)


def machine_memory() -> int:
    with suppress(AttributeError, OSError, ValueError):  # not a POSIX system
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2**36


def members_of(archive: zipfile.ZipFile, size: int, where: str, most: int = EXPANSION) -> dict[str, zipfile.ZipInfo]:
    """The members of an archive of `size` bytes, by name. Raises InputError where they are not plain, or state more than `most` times its size."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        if member.compress_type not in PLAIN or member.flag_bits & 1:
            raise InputError(
                f"{where}: {member.filename[:80]!r} in it is encrypted, or compressed by another method than deflate; save it again."
            )
        if member.header_offset + member.compress_size > size:
            raise InputError(f"{where}: {member.filename[:80]!r} in it ends after the archive; get the file again.")
        if member.filename in members:
            raise InputError(f"{where} holds {member.filename[:80]!r} twice; get the file again.")
        members[member.filename] = member
    check_size(sum(member.file_size for member in members.values()), size, where, most)
    return members


def read_npz(
    path: str | os.PathLike[str], where: str, wanted: Callable[[str], bool]
) -> tuple[dict[str, Array], list[str]]:
    """The wanted arrays of an .npz file by name, and the names of the others.

    Raises InputError, which `where` begins, for any other file, for arrays of objects, and for one that states more than it holds."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = members_of(archive, os.path.getsize(path), where)
            named = {name.removesuffix(".npy"): member for name, member in members.items()}
            arrays = {}
            for name, member in named.items():
                if wanted(name):
                    with archive.open(member) as stream:
                        arrays[name] = read_array(stream, member.file_size, f"{name} of {where}")
            return arrays, sorted(named.keys() - arrays.keys())
    except InputError:
        raise
    except OSError as error:
        raise InputError(
            f"{where} cannot be read ({error.strerror or error}); give the path of an .npz file."
        ) from error
    except Exception as error:  # zipfile, zlib and numpy raise many kinds
        raise InputError(
            f"{where} cannot be read as NPZ ({reason_of(error)}); save plain arrays with numpy.savez, for nothing is unpickled."
        ) from error


def anything(name: str) -> bool:
    """What `read_npz` is told where every array is wanted."""
    return True


def read_array(stream: IO[bytes], held: int, where: str) -> Array:
    """The array in an .npy file of `held` bytes, whose header is compared with that first."""
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = read_header(stream, max_header_size=LONGEST_HEADER)
    except (MemoryError, RecursionError):  # Python's parser has so little room
        raise ValueError("the header is nested too deep") from None
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded")
    count = int(np.prod(shape, dtype=object))
    if not all(type(n) is int and n >= 0 for n in shape) or count * dtype.itemsize > held:
        raise InputError(f"{where} states {count * dtype.itemsize:,} bytes, and the file holds fewer; get it again.")
    data = bytearray(count * dtype.itemsize)
    room, filled = memoryview(data), 0
    while filled < len(data):  # piece by piece, as a zip reads what it is asked for into memory of its own first
        if not (got := stream.readinto(room[filled : filled + PIECE])):  # type: ignore[attr-defined]
            raise ValueError("the array ends early")
        filled += got
    array = np.frombuffer(data, dtype, count) if count else np.zeros(0, dtype)
    return array.reshape(shape, order="F" if fortran else "C")
