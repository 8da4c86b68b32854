"""HDF5 files of D4RL and of d3rlpy.

D4RL [Fu et al. 2020, arXiv:2004.07219]: flat observations, actions, rewards, terminals, and mostly timeouts and next_observations.
d3rlpy up to 1.x: the same flat columns with episode_terminals, which alone splits, for `terminals` may be set at the last two rows of an
episode. d3rlpy from 2.1: `columns`, `num_episodes`, and one dataset an episode and column, `observations_0`, `observations_1`, …"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dtrl.archives import check_dataset, check_size
from dtrl.errors import InputError
from dtrl.trajectories.columns import Array
from dtrl.trajectories.formats.environment import Environment
from dtrl.trajectories.formats.flat import ALIASES, Flat, flags, from_fields, same_lengths, stack_episodes

SIGNATURE = b"\x89HDF\r\n\x1a\n"


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file, with what h5py raises about a damaged one turned into one sentence."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except InputError:
        raise
    except Exception as error:  # h5py raises many kinds, RuntimeError and MemoryError among them
        raise InputError(
            f"{path} cannot be read as HDF5 ({type(error).__name__}: {error}); get the file again."
        ) from error


def is_d3rlpy(path: Path) -> bool:
    with opened(path) as file:
        if "episode_0" in file:
            raise InputError(f"{path} is a part of a Minari dataset; give the dataset's folder, or its id.")
        return "episode_terminals" in file or {"columns", "num_episodes"} <= set(file)


def read_d4rl(path: Path, env: Environment | None, columns: object = None) -> Flat:
    with opened(path) as file:
        known = [name for names in ALIASES.values() for name in names]
        fields = read(file, [name for name in known if name in file], path)
        ignored = sorted(set(file) - set(fields))
    flat = from_fields(fields, str(path), env)
    if ignored:
        flat.assumed["ignored"] = ", ".join(ignored)
    return flat


def read_d3rlpy(path: Path, env: Environment | None, columns: object = None) -> Flat:
    with opened(path) as file:
        return read_d3rlpy_flat(file, path) if "episode_terminals" in file else read_d3rlpy_episodes(file, path)


def read_d3rlpy_flat(file: Any, path: Path) -> Flat:
    fields = read(file, ("observations", "actions", "rewards", "terminals", "episode_terminals"), path)
    same_lengths(fields, str(path))
    ends = flags(fields["episode_terminals"], "episode_terminals", str(path))
    last = np.flatnonzero(ends)
    extra = len(ends) - (last[-1] + 1 if len(last) else 0)
    if extra:
        raise InputError(
            f"episode_terminals of {path} mark no end after row {len(ends) - extra}, and {extra} rows follow; every episode needs its end."
        )
    terminations = ends & flags(fields["terminals"], "terminals", str(path))
    starts = np.append(0, last + 1)[:-1].astype(np.int64)
    return Flat(
        fields["observations"], discrete(fields["actions"], file, path), fields["rewards"], terminations, ends & ~terminations, starts,
        assumed={
            "columns": ", ".join(fields),
            "episodes": "ended by episode_terminals; terminated where terminals is set in the same row",
        },
    )  # fmt: skip


def discrete(actions: Array, file: Any, path: Path) -> Array:
    """Whole numbers, where the file says that its actions are discrete."""
    says = "discrete_action" in file and bool(read(file, ("discrete_action",), path)["discrete_action"].all())
    return actions.astype(np.int64) if says and (actions == np.floor(actions)).all() else actions


def read_d3rlpy_episodes(file: Any, path: Path) -> Flat:
    count = int(read(file, ("num_episodes",), path)["num_episodes"])
    names = ("observations", "actions", "rewards", "terminated")
    if count < 1 or f"rewards_{count - 1}" not in file:
        raise InputError(f"{path} states {count} episodes, and has no rewards_{max(count, 1) - 1}; get the file again.")
    for name in names:
        if f"{name}_0_0" in file:
            raise InputError(f"{path} has {name} of several parts ({name}_0_0, …), which dtrl does not read.")
    episodes = []
    total = sum(file[f"{name}_{i}"].nbytes for i in range(count) for name in names if f"{name}_{i}" in file)
    check_size(total, path.stat().st_size, str(path))
    for i in range(count):
        wanted = [f"{name}_{i}" for name in names]
        episodes.append(dict(zip(names, read(file, wanted, path).values(), strict=True)))
    parts, starts = stack_episodes(episodes, names[:3], str(path))
    ends = np.append(starts, len(parts["rewards"]))[1:] - 1
    terminations = np.zeros(len(parts["rewards"]), dtype=bool)
    terminations[ends] = [bool(np.all(episode["terminated"])) for episode in episodes]
    truncations = np.zeros_like(terminations)
    truncations[ends] = ~terminations[ends]
    return Flat(
        **parts, terminations=terminations, truncations=truncations, starts=starts,
        assumed={"columns": ", ".join(f"{name}_0" for name in names) + ", …", "episodes": "one dataset an episode; truncated unless terminated is set"},
    )  # fmt: skip


def read(file: Any, names: "list[str] | tuple[str, ...]", path: Path) -> dict[str, Array]:
    """Datasets of numbers that lie in the file itself, by name."""
    import h5py

    size = path.stat().st_size
    for name in names:
        if name not in file:
            raise InputError(f"{path} has no {name}; it holds {', '.join(list(file)[:12]) or 'nothing'}.")
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise InputError(f"{name} of {path} lies in another file; make it one file.")
        if not isinstance(file[name], h5py.Dataset) or file[name].dtype.kind not in "biuf":
            raise InputError(f"{name} of {path} is {file[name]}, where an array of numbers is expected.")
        check_dataset(file[name].id, size, f"{name} of {path}")
    check_size(sum(file[name].nbytes for name in names), size, str(path))
    return {name: file[name][()] for name in names}
