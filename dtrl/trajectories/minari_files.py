"""The files of a Minari dataset: metadata, spaces and episodes, read as data only."""

import math
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from dtrl.archives import check_dataset
from dtrl.documents import parse_json
from dtrl.errors import InputError, reason_of
from dtrl.spaces import Leaf, Space, check_space, column_layout, leaves, space_from_json, unflatten
from dtrl.trajectories.columns import Array
from dtrl.trajectories.encoded import check_images, read_encoded
from dtrl.trajectories.filling import column_layouts, empty_columns, fill_episode, parts_of
from dtrl.trajectories.heaps import pieces_of

USUAL = 64
"""Columns are at most so many times larger than the files of an honest dataset: Minari compresses images alone, as JPEG."""
CACHED = 2**18
"""Bytes of a file's structure that HDF5 keeps. Episodes are read once each, so more is of no use; its own 32 MiB become 200 in memory."""


def read_metadata(folder: Path) -> dict[str, Any]:
    path = folder / "metadata.json"
    try:
        metadata = parse_json(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); get the dataset again.") from error
    if not isinstance(metadata, dict):
        raise InputError(
            f"{path} holds {type(metadata).__name__}, where Minari writes an object; get the dataset again."
        )
    for name, kind in (("total_steps", int), ("total_episodes", int), ("env_spec", str)):
        value = metadata.get(name, "" if kind is str else None)
        if type(value) is not kind:
            raise InputError(
                f"{path} states {name} {value!r}, where Minari writes {kind.__name__}; get the dataset again."
            )
    return metadata


def read_spaces(metadata: dict[str, Any], name: str) -> tuple[Space, Space]:
    """Observation and action space as the metadata state them. Where they are absent Minari would build the environment, which runs its code: refused."""
    found = []
    for role in ("observation", "action"):
        try:
            space = space_from_json(metadata[f"{role}_space"])
        except Exception as error:
            raise InputError(
                f"the metadata of {name} do not state its {role} space in a form Gymnasium knows ({reason_of(error)}); record the "
                "dataset again with a current Minari."
            ) from error
        check_space(space, role, name)
        found.append(space)
    return found[0], found[1]


def read_columns(
    folder: Path,
    metadata: dict[str, Any],
    observation_space: Space,
    action_space: Space,
    name: str,
    allocate: Callable[..., Array],
) -> dict[str, Array]:
    """Every episode, read once and in order, into columns; one episode is in memory at a time."""
    steps, episodes = metadata["total_steps"], metadata["total_episodes"]
    if steps <= 0 or episodes <= 0:
        raise InputError(
            f"dataset {name} is empty ({max(episodes, 0)} episodes, {max(steps, 0)} steps); record it again, or choose another."
        )
    with readable(folder, name):
        check_claims(folder, metadata, observation_space, action_space, name)
    columns = empty_columns(steps, episodes, observation_space, action_space, allocate)
    starts = np.zeros(episodes, dtype=np.int64)
    row = 0
    with readable(folder, name):
        for i, episode in enumerate(read_episodes(folder, metadata, observation_space, action_space, name)):
            length = len(episode["rewards"])
            if row + length > steps:
                raise InputError(
                    f"the metadata of {name} state {steps} steps, and its episodes hold more (seen in episode {i}); get the dataset again."
                )
            starts[i] = row
            row += fill_episode(columns, i, row, episode, observation_space, action_space, name)
    check_steps(steps, row, name)
    return {**columns, "episode_starts": starts}


def are_columns_of(
    columns: dict[str, Array], metadata: dict[str, Any], observation_space: Space, action_space: Space
) -> bool:
    """Whether columns have the names, shapes and types of those that `read_columns` makes, and their episodes cut all steps."""
    steps, episodes = metadata["total_steps"], metadata["total_episodes"]
    layout: dict[str, Any] = dict(column_layouts(steps, episodes, observation_space, action_space))
    layout["episode_starts"] = (episodes,), np.int64
    if columns.keys() != layout.keys() or any(
        (columns[name].shape, columns[name].dtype) != (shape, dtype) for name, (shape, dtype) in layout.items()
    ):
        return False
    edges = np.append(columns["episode_starts"], steps)
    return bool(edges[0] == 0 and (np.diff(edges) >= 0).all())


@contextmanager
def readable(folder: Path, name: str) -> Iterator[None]:
    """What h5py and pyarrow raise about damaged files, of many kinds, turned into one sentence."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"the data of {name} in {folder} cannot be read ({reason_of(error)}); get the dataset again."
        ) from error


def check_claims(
    folder: Path, metadata: dict[str, Any], observation_space: Space, action_space: Space, name: str
) -> None:
    """Raise InputError where the columns would be far larger than the files, and the episodes do not need them so.

    A few bytes of metadata can state any number of steps, and any shape. Where they state much, the episodes are read twice."""
    steps, episodes = metadata["total_steps"], metadata["total_episodes"]
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if episodes > held:
        raise InputError(
            f"the metadata of {name} state {episodes} episodes, and its files hold {held} bytes; get the dataset again."
        )
    layout = column_layouts(steps, episodes, observation_space, action_space).values()
    if sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in layout) <= USUAL * held:
        return
    found = 0
    parts = {"observations": observation_space, "actions": action_space}
    for i, episode in enumerate(read_episodes(folder, metadata, observation_space, action_space, name)):
        found += len(episode["rewards"])
        for role, space in parts.items():
            for leaf, value in parts_of(episode[role], space, role, i, name):
                shape, _ = column_layout(leaf.space)
                if not isinstance(leaf.space, spaces.Text) and np.shape(value)[1:] != shape:
                    raise InputError(
                        f"{leaf.name(role)} of episode {i} of {name} have shape {np.shape(value)[1:]} a step, and the metadata state {shape}; "
                        "get the dataset again."
                    )
    check_steps(steps, found, name)


def check_steps(stated: int, found: int, name: str) -> None:
    if found != stated:
        raise InputError(
            f"the metadata of {name} state {stated} steps, and its episodes hold {found}; get the dataset again."
        )


def read_episodes(
    folder: Path, metadata: dict[str, Any], observation_space: Space, action_space: Space, name: str
) -> Iterator[dict[str, Any]]:
    """The episodes in the order of the dataset: observations (T+1, …), actions, rewards, terminations and truncations (T, …).

    HDF5 is read by this module, Arrow by Minari."""
    if metadata.get("data_format") == "hdf5":
        return read_hdf5(folder / "main_data.hdf5", metadata, observation_space, action_space, name)
    return read_arrow(folder, metadata["total_episodes"], observation_space, action_space, name)


def read_arrow(
    folder: Path, episodes: int, observation_space: Space, action_space: Space, name: str
) -> Iterator[dict[str, Any]]:
    """`read_episodes` of a folder an episode, each of which is checked first: Arrow ends the process where an array states other places than it has, and
    Minari decodes an image of any size."""
    from minari.dataset.minari_storage import MinariStorage

    storage: Any = MinariStorage.read(folder)
    import pyarrow.dataset

    for i in range(episodes):
        ignored = ["_", ".", "metadata.json"]
        parts = pyarrow.dataset.dataset(f"{folder}/{i}", format=storage.FORMAT, ignore_prefixes=ignored)
        for batch in parts.to_batches():
            batch.validate(full=True)
            for role, space in (("observations", observation_space), ("actions", action_space)):
                check_images(batch.column(role), space, f"{role} of episode {i} of {name}")
        yield from storage.get_episodes([i])


def read_hdf5(
    path: Path, metadata: dict[str, Any], observation_space: Space, action_space: Space, name: str
) -> Iterator[dict[str, Any]]:
    """`read_episodes` of Minari's layout: a group `episode_{i}` an episode, a dataset a column.

    Opening these many small datasets is nearly all the time that a first load takes. The `infos` are not opened at all, and h5py's low-level
    calls, with the types of a column kept from one episode to the next, open the rest in a third of the time of its dictionaries."""
    from h5py import File, h5d, h5s, h5t

    held = path.stat().st_size
    types: dict[str, Any] = {}  # of each column in the file, as NumPy's, and as HDF5's of that

    with (
        File(path, "r") as file,
        open(path, "rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        cache = file.id.get_mdc_config()
        cache.set_initial_size, cache.initial_size, cache.min_size, cache.max_size = True, *(CACHED,) * 3
        file.id.set_mdc_config(cache)

        def read(episode: int, column: str, entries: int, space: Space | None = None) -> Any:
            place = f"episode_{episode}/{column}"
            try:
                data = h5d.open(file.id, place.encode())
            except KeyError as error:  # h5py's own says nothing of the name
                raise KeyError(f"it has no {place}") from error
            stored = data.get_type()
            if column not in types or not stored.equal(types[column][0]):
                types[column] = stored, data.dtype, h5t.py_create(data.dtype)
            _, dtype, memory = types[column]
            where = f"{column} of episode {episode} of {name}"
            check_dataset(data, held, where)
            if space is not None and dtype.kind == "O" and len(data.shape) == 1:
                if data.shape[0] > metadata["total_steps"] + 1:
                    raise InputError(
                        f"{where} hold {data.shape[0]} pieces, more than the metadata allow; get the dataset again."
                    )
                return read_encoded(pieces_of(data, content, where), space, where)
            if dtype.kind not in "biuf" or math.prod(data.shape) > entries * (metadata["total_steps"] + 1):
                raise InputError(
                    f"{where} hold {data.shape} of {dtype}, which is more than the metadata and the spaces allow; get the dataset again."
                )
            values = np.empty(data.shape, dtype)
            data.read(h5s.ALL, h5s.ALL, values, memory)
            return values

        def read_space(episode: int, role: str, space: Space) -> Any:
            return unflatten(
                space,
                {
                    leaf.path: read(episode, place, math.prod(column_layout(leaf.space)[0]), leaf.space)
                    for leaf, place in places[role]
                },
            )

        places = {
            "observations": stored_at("observations", observation_space),
            "actions": stored_at("actions", action_space),
        }
        for i in range(metadata["total_episodes"]):
            yield {
                "observations": read_space(i, "observations", observation_space),
                "actions": read_space(i, "actions", action_space),
                **{column: read(i, column, 1) for column in ("rewards", "terminations", "truncations")},
            }


def stored_at(role: str, space: Space) -> list[tuple[Leaf, str]]:
    """The leaves of a space, each with its path in the group of an episode, where Minari calls the parts of a Tuple `_index_0` and so on."""

    def walk(part: Space, path: str) -> list[str]:
        if isinstance(part, spaces.Dict):
            return [place for key, child in part.spaces.items() for place in walk(child, f"{path}/{key}")]
        if isinstance(part, spaces.Tuple):
            return [place for i, child in enumerate(part.spaces) for place in walk(child, f"{path}/_index_{i}")]
        return [path]

    return list(zip(leaves(space), walk(space, role), strict=True))
