"""Recorded episodes, and files of some of them."""

import copy
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from dtrl.archives import anything, read_npz
from dtrl.errors import InputError
from dtrl.spaces import Space, leaves, unflatten

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Episode:
    """One episode of T steps, as Minari stores it. Where a space is composite, its values are a dict or tuple of arrays, and texts are a list."""

    seed: int
    """With which the environment was reset."""
    observations: Any
    """(T+1, …): before each step, and after the last."""
    actions: Any
    """(T, …)"""
    rewards: Array
    """(T,) float64"""
    terminations: Array
    """(T,) bool; the last may be true"""
    truncations: Array
    """(T,) bool; the last may be true"""


COLUMNS = [f.name for f in fields(Episode) if f.name != "seed"]


def kept(value: Any) -> Any:
    """A copy: an environment, or what acts in it, may use an array again."""
    return value.copy() if isinstance(value, np.ndarray) else value if np.isscalar(value) else copy.deepcopy(value)


def parts_of(name: str, value: Any) -> dict[str, Array]:
    """The arrays of a column by name: `observations`, or `observations/goal/0` for a part of a composite one."""
    if not isinstance(value, (Mapping, tuple)):
        return {name: np.asarray(value)}
    inner = value.items() if isinstance(value, Mapping) else enumerate(value)
    return {path: array for key, part in inner for path, array in parts_of(f"{name}/{key}", part).items()}


def check_finite(columns: Mapping[str, Any], whose: str, advice: str) -> None:
    """Raises InputError for NaN or infinity in the columns of an episode; `whose` names it, and `advice` says what to do."""
    for column, values in columns.items():
        for name, array in parts_of(column, values).items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                step = int(np.argwhere(~np.isfinite(array))[0][0])
                raise InputError(f"{name} of {whose} hold NaN or infinity at step {step}; {advice}")


def to_bytes(episodes: Sequence[Episode]) -> bytes:
    """The content of an .npz file: the columns of all episodes one after the other, their lengths and seeds."""
    stream = io.BytesIO()
    parts = [{name: part for c in COLUMNS for name, part in parts_of(c, getattr(e, c)).items()} for e in episodes]
    columns: dict[str, Any] = {name: np.concatenate([each[name] for each in parts]) for name in (parts or [{}])[0]}
    seeds = np.array([e.seed for e in episodes], np.int64)
    np.savez(stream, lengths=np.array([len(e.rewards) for e in episodes], np.int64), seeds=seeds, **columns)
    return stream.getvalue()


def from_file(path: Path, observation_space: Space, action_space: Space) -> list[Episode]:
    """The episodes of a file that `to_bytes` made, in their spaces."""
    arrays, _ = read_npz(path, f"episodes {path}", anything)
    lengths = lengths_in(arrays, path)
    if not len(lengths):
        return []
    try:
        return split(arrays, lengths, observation_space, action_space)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise not_episodes(path) from error


def split(arrays: dict[str, Array], lengths: Array, observation_space: Space, action_space: Space) -> list[Episode]:
    """The episodes that lie end to end in arrays."""
    seeds = arrays.pop("seeds")
    pieces = {
        name: np.split(values, np.cumsum(lengths + (name.partition("/")[0] == "observations"))[:-1])
        for name, values in arrays.items()
    }

    def whole(column: str, space: Space, i: int) -> Any:
        parts: dict[str, Any] = {leaf.path: pieces[leaf.name(column)][i] for leaf in leaves(space)}
        texts = {leaf.path: parts[leaf.path].tolist() for leaf in leaves(space) if isinstance(leaf.space, spaces.Text)}
        return unflatten(space, parts | texts)

    return [
        Episode(
            seed=int(seed),
            observations=whole("observations", observation_space, i),
            actions=whole("actions", action_space, i),
            rewards=pieces["rewards"][i],
            terminations=pieces["terminations"][i],
            truncations=pieces["truncations"][i],
        )
        for i, seed in zip(range(len(lengths)), seeds, strict=True)
    ]


def file_lengths(path: Path) -> list[int]:
    """Steps of the episodes of a file."""
    arrays, _ = read_npz(path, f"episodes {path}", "lengths".__eq__)
    lengths: list[int] = lengths_in(arrays, path).tolist()
    return lengths


def lengths_in(arrays: dict[str, Array], path: Path) -> Array:
    lengths = arrays.pop("lengths", None)
    if lengths is None or lengths.ndim != 1 or lengths.dtype != np.int64 or (lengths < 0).any():
        raise not_episodes(path)
    return lengths


def not_episodes(path: Path) -> InputError:
    return InputError(f"{path} holds no episodes as dtrl keeps them; delete it, and make the dataset again.")
