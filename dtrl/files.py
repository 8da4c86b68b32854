"""Writing files so that a reader, a crash or a full disk finds the old content or the new, never a part; and folders that one process writes at a time."""

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dtrl.errors import InputError

if sys.platform != "win32":
    import fcntl

Content = bytes | Callable[[BinaryIO], object]
"""What to write: the bytes, or a function that writes them to a stream."""


def write_atomically(path: str | os.PathLike[str], content: Content) -> None:
    """Write a temporary file in the same folder, fsync it, and rename it to `path`.

    A device or a pipe (/dev/stdout) is written as it is, and a link stays a link. Raises InputError, naming the path and the reason, where the folder
    cannot be written or the disk is full; what was there stays, and nothing is left behind."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            with open(path, "wb") as stream:
                fill(stream, content)
        else:
            replace(Path(os.path.realpath(path)), content)
    except OSError as error:
        raise cannot_write(path, error) from error


def replace(path: Path, content: Content) -> None:
    """`write_atomically` for a plain file; raises OSError."""
    writer = f"{os.getpid()}-{threading.get_ident()}"
    temporary = path.with_name(f".{path.name}.{writer}.tmp")  # not mkstemp: its files are for their owner's eyes only
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as stream:
            fill(stream, content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # gone already, unless something was raised


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise InputError where a file of this name plainly cannot be written, before what is to be in it is worked for."""
    path = Path(path)
    above = next(folder for folder in path.absolute().parents if folder.exists())
    code = 0
    if path.is_dir():
        code = errno.EISDIR
    elif not above.is_dir():
        code = errno.ENOTDIR
    elif not os.access(path if path.exists() else above, os.W_OK):
        code = errno.EACCES
    if code:
        raise cannot_write(path, OSError(code, os.strerror(code)))


def fill(stream: BinaryIO, content: Content) -> None:
    if isinstance(content, bytes):
        stream.write(content)
    else:
        content(stream)


def cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path} cannot be written ({error.strerror or error}); free some space, or choose another place."
    )


@contextmanager
def held(folder: Path, refusal: str) -> Iterator[None]:
    """Make the folder, and hold it against other processes until the block or the process ends, however it ends. If it is empty then, it is removed.

    Raises InputError with this text where another process holds it. Where there are no such locks, as on Windows and some network file systems, nothing
    is held."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = None if sys.platform == "win32" else os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        if handle is not None:
            with suppress(OSError):  # of a file system without locks
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise InputError(refusal) from error
            if not is_open_at(handle, folder):  # the one who held it has just ended, and removed it
                raise InputError(refusal)
        try:
            yield
        finally:
            with suppress(OSError):
                folder.rmdir()
    finally:
        if handle is not None:
            os.close(handle)


def is_open_at(handle: int, path: Path) -> bool:
    """Whether an open handle is of what has this path now."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def sync_folder(folder: Path) -> None:
    """Make a rename in the folder survive a power cut, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
