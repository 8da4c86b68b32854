"""Writing files so that a reader, a crash or a full disk finds the old content or the new, never a part."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from dtrl.errors import InputError

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


def fill(stream: BinaryIO, content: Content) -> None:
    if isinstance(content, bytes):
        stream.write(content)
    else:
        content(stream)


def cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path} cannot be written ({error.strerror or error}); free some space, or choose another place."
    )


def sync_folder(folder: Path) -> None:
    """Make a rename in the folder survive a power cut, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
