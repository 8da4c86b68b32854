"""Observation and action spaces: which ones dtrl can tokenize, and their form in JSON files."""

from typing import Any

import numpy as np
from gymnasium import spaces

from dtrl.errors import InputError

Space = spaces.Space[Any]


def check_space(space: Space, role: str, where: str) -> None:
    """Refuse a space that has no tokenizer. `role` is "observation" or "action"; `where` names the dataset or env."""
    if isinstance(space, spaces.Discrete):
        return
    if isinstance(space, spaces.Box) and len(space.shape) == 1 and space.shape[0] > 0:
        return
    raise InputError(
        f"the {role} space of {where} is {space}, which dtrl cannot tokenize yet; "
        "give it a vector Box or a Discrete space (gymnasium.wrappers.FlattenObservation turns most spaces into one)."
    )


def column_layout(space: Space) -> tuple[tuple[int, ...], type[np.generic]]:
    """Shape of one value and dtype of the column that holds a space's values: float32 vectors, int64 ids."""
    return ((), np.int64) if isinstance(space, spaces.Discrete) else (space.shape or (), np.float32)


def same_space(one: Space, other: Space) -> bool:
    """Whether two spaces hold the same values as far as a model is concerned: kind, shape, n, and bounds up to rounding; not dtype."""
    if isinstance(one, spaces.Discrete) and isinstance(other, spaces.Discrete):
        return bool(one.n == other.n and one.start == other.start)
    if isinstance(one, spaces.Box) and isinstance(other, spaces.Box):
        return one.shape == other.shape and np.allclose(one.low, other.low) and np.allclose(one.high, other.high)
    return False


def space_to_json(space: Space) -> str:
    from minari.serialization import serialize_space

    return str(serialize_space(space))


def space_from_json(text: str) -> Space:
    from minari.serialization import deserialize_space

    space: Space = deserialize_space(text)
    return space
