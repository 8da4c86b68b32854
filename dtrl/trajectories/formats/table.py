"""Tables with a row a step, in CSV or Parquet, whose columns the user names: observation=x,v action=a reward=r episode=id.

Without names, a role takes the column of its own name, or those numbered `observation_0`, `observation_1`, …"""

import csv
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dtrl.archives import check_size
from dtrl.errors import InputError, did_you_mean
from dtrl.trajectories.columns import Array
from dtrl.trajectories.formats.environment import Environment
from dtrl.trajectories.formats.flat import Flat, flags, from_fields, same_lengths

ROLES = {
    "observation": "observations",
    "action": "actions",
    "reward": "rewards",
    "terminal": "terminals",
    "timeout": "timeouts",
    "next_observation": "next_observations",
    "episode": "episode",
}
"""What `--columns` may name → the field it becomes."""
CHUNK = 10_000
"""Rows of text that are in memory at a time."""
TRUTH = {"true": "1", "false": "0"}

Columns = Mapping[str, Sequence[str]]


def is_text(head: bytes) -> bool:
    """Whether the first bytes of a file may be those of a CSV table: text, with more than one column."""
    text = head.decode("utf-8", errors="replace")
    line = text.partition("\n")[0]
    return "\0" not in text and "\ufffd" not in text[:-3] and any(d in line for d in ",;\t")


def read_csv(path: Path, env: Environment | None, columns: Columns | None = None) -> Flat:
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            header_line = stream.readline()
            delimiter = max(",;\t", key=header_line.count)
            header = [name.strip() for name in next(csv.reader([header_line], delimiter=delimiter), [])]
            roles = choose(header, columns, path)
            wanted = {name: header.index(name) for names in roles.values() for name in names}
            table = text_columns(
                csv.reader(stream, delimiter=delimiter), header, wanted, set(roles.get("episode", ())), path
            )
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a CSV table in UTF-8 ({error}).") from error
    return to_flat(table, roles, path, env)


def text_columns(
    rows: Any, header: list[str], wanted: Mapping[str, int], words: set[str], path: Path
) -> dict[str, Array]:
    """The wanted columns as arrays: whole numbers where all are, else floats; those of `words` stay text."""
    pieces: dict[str, list[Array]] = {name: [] for name in wanted}
    first = 2  # the line after the header
    while chunk := list(itertools.islice(rows, CHUNK)):
        while len(chunk) and not chunk[-1]:  # empty lines at the end of the file
            chunk.pop()
        for i, row in enumerate(chunk):
            if len(row) != len(header):
                raise InputError(f"line {first + i} of {path} has {len(row)} fields, and the header {len(header)}.")
        for name, index in wanted.items():
            texts = [row[index] for row in chunk]
            pieces[name].append(np.array(texts, dtype=object) if name in words else numbers(texts, name, first, path))
        first += len(chunk)
    empty: Array = np.zeros(0)
    return {name: np.concatenate(parts) if parts else empty for name, parts in pieces.items()}


def numbers(texts: list[str], name: str, first: int, path: Path) -> Array:
    """Whole numbers where all are, else floats; true and false count as 1 and 0."""
    for kind, dtype in ((int, np.int64), (float, np.float64)):
        try:
            return np.array(list(map(kind, texts)), dtype=dtype)
        except (ValueError, OverflowError):
            continue
    numeric = [TRUTH.get(text.strip().lower(), text) for text in texts]
    if numeric != texts:
        return numbers(numeric, name, first, path)
    bad = next(i for i, text in enumerate(texts) if not is_number(text))
    shown = repr(texts[bad][:40]) if texts[bad].strip() else "nothing"
    raise InputError(f"column {name!r} of {path} holds {shown} at line {first + bad}, where a number is expected.")


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_parquet(path: Path, env: Environment | None, columns: Columns | None = None) -> Flat:
    """A column may also hold a list of numbers a row."""
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise InputError(f"{path} is Parquet, which needs pyarrow: pip install 'dtrl[arrow]'.") from error
    try:
        content = parquet.ParquetFile(path)
        roles = choose(list(content.schema_arrow.names), columns, path)
        names = [name for names in roles.values() for name in names]
        groups = [content.metadata.row_group(i) for i in range(content.metadata.num_row_groups)]
        check_size(sum(group.total_byte_size for group in groups), path.stat().st_size, str(path))
        arrow = content.read(columns=names)
        table = {name: arrow_column(arrow.column(name), name, path) for name in names}
    except InputError:
        raise
    except Exception as error:  # pyarrow raises many kinds about a damaged file
        raise InputError(f"{path} cannot be read as Parquet ({type(error).__name__}: {error}).") from error
    return to_flat(table, roles, path, env)


def arrow_column(column: Any, name: str, path: Path) -> Array:
    """(N,) or, for lists of one length, (N, n)."""
    import pyarrow as pa

    if column.null_count:
        missing = int(np.argmax(column.is_null().to_numpy()))
        raise InputError(f"column {name!r} of {path} holds nothing at row {missing}, where a value is expected.")
    values = column.combine_chunks()
    if isinstance(values, pa.ChunkedArray):  # no chunk at all, or more than one array can hold
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], type=column.type)
    kind = values.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        import pyarrow.compute as pc

        lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
        if len(lengths) and (lengths != lengths[0]).any():
            bad = int(np.argmax(lengths != lengths[0]))
            raise InputError(
                f"column {name!r} of {path} holds {lengths[bad]} numbers at row {bad}, and {lengths[0]} at row 0."
            )
        flat = values.flatten().to_numpy(zero_copy_only=False)
        return np.asarray(flat.reshape(len(lengths), -1))
    return np.asarray(values.to_numpy(zero_copy_only=False))


def choose(header: list[str], columns: Columns | None, path: Path) -> dict[str, list[str]]:
    """Role → its columns, as the user named them or as their names say."""
    if columns is None:
        roles = {role: [n for n in header if re.fullmatch(rf"{role}s?([_.]?\d+)?", n.lower())] for role in ROLES}
        roles = {role: names for role, names in roles.items() if names}
    else:
        roles = {role: list(names) for role, names in columns.items()}
        for role in roles:
            if role not in ROLES:
                raise InputError(f"there is no role {role!r} for a column; {did_you_mean(role, list(ROLES))}")
    for name in itertools.chain.from_iterable(roles.values()):
        if name not in header:
            raise InputError(f"{path} has no column {name!r}; {did_you_mean(name, header)}")
        if header.count(name) > 1:
            raise InputError(f"{path} has {header.count(name)} columns {name!r}; give each a name of its own.")
    lacking = [role for role in ("observation", "action", "reward") if not roles.get(role)]
    if not roles.get("episode") and not roles.get("terminal"):
        lacking.append("episode (or terminal)")
    if lacking:
        raise InputError(
            f"no column of {path} is named as {', '.join(lacking)}; say which, for instance --columns observation=x,v action=a reward=r "
            f"episode=id. It has {', '.join(header[:20])}."
        )
    for role in ("reward", "terminal", "timeout", "episode"):
        if len(roles.get(role, ())) > 1:
            raise InputError(f"{role} is one column, and {', '.join(roles[role])} of {path} were named; name one.")
    return roles


def to_flat(table: Mapping[str, Array], roles: Mapping[str, list[str]], path: Path, env: Environment | None) -> Flat:
    fields: dict[str, Array] = {}
    for role, names in roles.items():
        if role != "episode":
            parts = [table[name] for name in names]
            joined = parts[0] if len(parts) == 1 else np.column_stack(parts)
            fields[ROLES[role]] = joined
    same_lengths(fields, str(path))
    words = "; ".join(f"{role} = {', '.join(names)}" for role, names in roles.items())
    if "episode" not in roles:
        flat = from_fields(fields, str(path), env)
        flat.assumed["columns"] = words
        return flat
    name = roles["episode"][0]
    starts = runs(table[name], name, path)
    steps = len(fields["rewards"])
    last = np.append(starts, steps)[1:] - 1
    ends = np.zeros(steps, dtype=bool)
    ends[last] = True
    terminations = (
        flags(fields["terminals"], roles["terminal"][0], str(path))
        if "terminals" in fields
        else np.zeros(steps, dtype=bool)
    )
    if (terminations & ~ends).any():
        row = int(np.argmax(terminations & ~ends))
        raise InputError(
            f"column {roles['terminal'][0]!r} of {path} is set at row {row}, and the episode {table[name][row]} goes on after it."
        )
    truncations = ends & ~terminations
    if "timeouts" in fields:
        truncations |= ends & flags(fields["timeouts"], roles["timeout"][0], str(path))
    told = (
        f"terminated where {roles['terminal'][0]} says so"
        if "terminals" in fields
        else "no terminal column, so all count as truncated"
    )
    flat = Flat(
        fields["observations"], fields["actions"], fields["rewards"], terminations, truncations, starts,
        assumed={"columns": words, "episodes": f"rows of the same {name} in succession; {told}"},
    )  # fmt: skip
    if "next_observations" in fields:
        flat.finals = fields["next_observations"][last]
    return flat


def runs(ids: Array, name: str, path: Path) -> npt.NDArray[np.int64]:
    """(E,) the rows at which the id changes. An id that comes again later is refused: its rows are torn apart, or two episodes share it."""
    if ids.ndim != 1 or (ids.dtype == object and not all(isinstance(i, str | bytes | int) for i in ids)):
        raise InputError(f"column {name!r} of {path} holds {ids.dtype}, where a number or a text is expected.")
    if not len(ids):
        return np.zeros(0, dtype=np.int64)
    starts = np.append(0, np.flatnonzero(ids[1:] != ids[:-1]) + 1).astype(np.int64)
    seen: set[Any] = set()
    for row in starts:
        if ids[row] in seen:
            raise InputError(
                f"column {name!r} of {path} holds {ids[row]} again at row {row}, after other episodes; sort the table, or give each episode its own id."
            )
        seen.add(ids[row])
    return starts
