"""Files of other tools → trajectories. `FORMATS` has them all; which one a file is, is told by its content."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dtrl.errors import InputError, did_you_mean
from dtrl.trajectories.columns import Origin, Trajectories
from dtrl.trajectories.formats import hdf5, npz, pickled_episodes, table
from dtrl.trajectories.formats.environment import Environment, look_up
from dtrl.trajectories.formats.flat import Flat, to_trajectories

Columns = Mapping[str, Sequence[str]]
"""Role ("observation", "action", …) → the table's columns that hold it."""


@dataclass(frozen=True)
class Format:
    title: str
    read: Callable[[Path, Environment | None, Columns | None], Flat]


FORMATS: dict[str, Format] = {
    "d4rl": Format("D4RL's HDF5", hdf5.read_d4rl),
    "d3rlpy": Format("d3rlpy's HDF5", hdf5.read_d3rlpy),
    "pickle": Format("a pickle of episodes, as the Decision Transformer's own code writes them", pickled_episodes.read),
    "npz": Format("NumPy's NPZ", npz.read),
    "csv": Format("a table in CSV", table.read_csv),
    "parquet": Format("a table in Parquet", table.read_parquet),
}
"""What `--from` takes."""


def guess(path: Path) -> str:
    """The format of a file, from its first bytes and, in HDF5, its names."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(4096)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    if head.startswith(hdf5.SIGNATURE):
        return "d3rlpy" if hdf5.is_d3rlpy(path) else "d4rl"
    if head.startswith(b"PK\x03\x04"):
        return "npz"
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"\x80") or path.suffix in (".pkl", ".pickle"):
        return "pickle"
    if table.is_text(head):
        return "csv"
    raise InputError(
        f"{path} is none of {', '.join(FORMATS)} by its content; unpack it if it is compressed, or name its format (--from)."
    )


def read_file(
    path: Path, format: str | None = None, env: str | None = None, columns: Columns | None = None
) -> tuple[Trajectories, dict[str, str]]:
    """The trajectories of a file, and what had to be assumed, by subject.

    `format` is a name in FORMATS, guessed when not given. `env` is the id of a registered environment, whose spaces and number of steps then hold.
    `columns` says which columns of a table are what. Raises InputError naming the file, the field and the row; nothing in a file is executed."""
    if format is not None and format not in FORMATS:
        raise InputError(f"there is no format {format!r}; {did_you_mean(format, list(FORMATS))}")
    name = format or guess(path)
    if columns and name not in ("csv", "parquet"):
        raise InputError(f"columns were named, and {path} is {FORMATS[name].title}, whose columns have fixed names.")
    environment = None if env is None else look_up(env)
    flat = FORMATS[name].read(path, environment, columns)
    with open(path, "rb") as stream:
        fingerprint = hashlib.file_digest(stream, "sha256").hexdigest()
    if chosen := {name: value for name, value in (("format", format), ("env", env), ("columns", columns)) if value}:
        fingerprint = hashlib.sha256(
            f"{fingerprint} {json.dumps(chosen, sort_keys=True, default=list)}".encode()
        ).hexdigest()
    origin = Origin(path.name, environment.spec if environment else None, fingerprint=fingerprint)
    flat.assumed["environment"] = env or "none was named; evaluating a policy will need one"
    trajectories = to_trajectories(flat, str(path), environment, origin)
    how = "as asked" if format else "by its content"
    return trajectories, {"format": f"{FORMATS[name].title} ({name}, {how})", **flat.assumed}
