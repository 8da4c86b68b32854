"""Recorded episodes, and files of some of them."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Episode:
    """One episode of T steps, as Minari stores it."""

    seed: int
    """With which the environment was reset."""
    observations: Array
    """(T+1, …): before each step, and after the last."""
    actions: Array
    """(T, …)"""
    rewards: Array
    """(T,) float64"""
    terminations: Array
    """(T,) bool; the last may be true"""
    truncations: Array
    """(T,) bool; the last may be true"""


COLUMNS = [f.name for f in fields(Episode) if f.name != "seed"]


def to_bytes(episodes: Sequence[Episode]) -> bytes:
    """The content of an .npz file: the columns of all episodes one after the other, their lengths and seeds."""
    stream = io.BytesIO()
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(e, name) for e in episodes]) for name in COLUMNS if episodes
    }
    seeds = np.array([e.seed for e in episodes], np.int64)
    np.savez(stream, lengths=np.array([len(e.actions) for e in episodes], np.int64), seeds=seeds, **columns)
    return stream.getvalue()


def from_file(path: Path) -> list[Episode]:
    """The episodes of a file that `to_bytes` made."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = dict(archive)
    lengths = arrays["lengths"]
    if not len(lengths):
        return []
    pieces = {name: np.split(arrays[name], np.cumsum(lengths + (name == "observations"))[:-1]) for name in COLUMNS}
    return [
        Episode(int(seed), *(pieces[name][i] for name in COLUMNS)) for i, seed in enumerate(arrays["seeds"].tolist())
    ]


def count_of(path: Path) -> int:
    """Number of the episodes of a file."""
    with np.load(path, allow_pickle=False) as archive:
        return len(archive["lengths"])
