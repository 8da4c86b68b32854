"""The cache: columns of a dataset as memory-mapped .npy files, in a folder named after the content of the dataset's files.

Reading a Minari dataset costs about a millisecond an episode, mapping its columns about a millisecond in all. The folder is keyed on the
sha256 of the files; so that the second load need not read them, a small index remembers size, times and inode of each file with the hash."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dtrl.documents import parse_json
from dtrl.files import cannot_write, is_open_at, replace
from dtrl.trajectories.columns import Array

if sys.platform != "win32":
    import fcntl

BUILDING = ".building-"
"""Prefix of a folder until it is whole."""
LAYOUT_VERSION = 1
"""Part of every key: raise it when the columns change their meaning, and old folders are no longer found."""


def cache_folder() -> Path:
    """$DTRL_CACHE, else dtrl's folder in $XDG_CACHE_HOME, else ~/.cache/dtrl."""
    if path := os.environ.get("DTRL_CACHE"):
        return Path(path)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dtrl"


def fingerprint(files: list[Path], root: Path) -> str:
    """sha256 over names and content of the dataset's files, from the index where no file has changed since it was hashed."""
    marks = [
        [str(f.relative_to(root)), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for f in files for s in [f.stat()]
    ]
    index = cache_folder() / "index" / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:32]}.json"
    try:
        known = parse_json(index.read_text())
        if known["files"] == marks:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no index, or not ours: hash the files
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode())
        with open(path, "rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    try:
        replace(index, json.dumps({"files": marks, "sha256": total.hexdigest()}).encode())
    except OSError:
        pass  # the cache folder cannot be written; `store` says so
    return total.hexdigest()


def folder_of(key: str) -> Path:
    return cache_folder() / "trajectories" / f"v{LAYOUT_VERSION}-{key[:40]}"


def find(key: str, fits: Callable[[dict[str, Array]], bool]) -> dict[str, Array] | None:
    """The columns cached under `key`, memory-mapped read-only; None when there are none, or not all of them, or not of the form that `fits`."""
    folder = folder_of(key)
    try:
        names = parse_json((folder / "columns.json").read_text())
        columns = {name: np.load(folder / Path(file).name, mmap_mode="r") for name, file in names.items()}
    except Exception:  # what was damaged since may break any line of numpy's
        return None
    arrays = all(isinstance(column, np.ndarray) for column in columns.values())
    return columns if arrays and fits(columns) else None


def store(
    key: str,
    build: Callable[[Callable[..., Array]], dict[str, Array]],
    fits: Callable[[dict[str, Array]], bool],
) -> dict[str, Array]:
    """The columns that `build(allocate)` makes, written straight into the cache and memory-mapped from there.

    The folder gets its name only when it is whole, so that a process that is killed, or one that builds the same at the same moment, leaves
    no broken cache; what a killed one has left is removed here. When the cache cannot be written, the columns stay in memory, with a warning."""
    folder = folder_of(key)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder.parent)
        temporary, claimed = claim_folder(folder.parent)
    except OSError as error:
        warnings.warn(
            f"the cache folder {cache_folder()} cannot be written ({error}); set DTRL_CACHE to one that can",
            stacklevel=2,
        )
        return build(lambda name, shape, dtype: np.empty(shape, dtype))

    numbers: dict[str, int] = {}

    def number_of(name: str) -> int:
        """A column's file is numbered: a name may be as a dataset's author likes, and be none for a file."""
        return numbers.setdefault(name, len(numbers))

    def allocate(name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        if 0 in shape:  # an empty file cannot be mapped
            return np.empty(shape, dtype)
        path = temporary / f"{number_of(name)}.npy"
        column = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        reserve(path)
        return column

    try:
        columns = build(allocate)
        names = {}
        for name, column in columns.items():
            names[name] = f"{number_of(name)}.npy"
            if isinstance(column, np.memmap):
                column.flush()
            else:
                np.save(temporary / names[name], column)
        del columns
        replace(temporary / "columns.json", json.dumps(names).encode())
        try:
            os.replace(temporary, folder)
        except OSError:  # another process was faster, or an old broken folder is in the way
            if find(key, fits) is None:
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(temporary, folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if claimed is not None:
            os.close(claimed)
    found = find(key, fits)
    if found is None:
        raise OSError(f"the cache {folder} vanished while it was written")
    return found


def claim_folder(parent: Path) -> tuple[Path, int | None]:
    """A new folder to build in, and the handle by which it is locked until that is closed or the process dies; None where the system has no such lock."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=BUILDING))
        if sys.platform == "win32":
            return folder, None
        with contextlib.suppress(FileNotFoundError):
            handle = os.open(folder, os.O_RDONLY)
            with contextlib.suppress(OSError):  # a file system without locks, on which nothing is ever removed
                fcntl.flock(handle, fcntl.LOCK_EX)
            if is_open_at(handle, folder):
                return folder, handle
            os.close(handle)
        # another process has taken it for a leftover before it was locked


def remove_leftovers(parent: Path) -> None:
    """Delete the folders of builds whose process was killed. One that is being built is locked by its process, and is left alone."""
    if sys.platform == "win32":
        return
    for folder in parent.glob(f"{BUILDING}*"):
        with contextlib.suppress(OSError):  # locked, gone, or another user's
            handle = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_open_at(handle, folder):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)


def reserve(path: Path) -> None:
    """Take a file's space now. The system would take it when a page of the map is written, and kill the process where the disk is full."""
    if sys.platform == "linux":
        with open(path, "r+b") as stream:
            try:
                os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):  # others: a file system that does not know the call
                    raise
