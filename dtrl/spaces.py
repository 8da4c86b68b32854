"""Observation and action spaces: which ones dtrl can tokenize, what a batch of their values is, and their form in JSON files."""

from typing import Any

import numpy as np
import numpy.typing as npt
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


def batch_of(observation: npt.NDArray[Any] | int, space: Space) -> tuple[npt.NDArray[Any], bool]:
    """Observations as (B, …), and whether a single one was given.

    Raises InputError for a shape, a type or a value that does not fit the space."""
    shape, dtype = column_layout(space)
    if isinstance(observation, (tuple, dict)):
        raise InputError(
            f"observation is a {type(observation).__name__}, and the policy's space is {space}; "
            "Gymnasium's reset returns (observation, info): pass only the first."
        )
    try:
        values = np.asarray(observation).astype(dtype, casting="same_kind", copy=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"observation {str(observation)[:80]!r} does not fit {space} ({error}); give an array of its numbers."
        ) from error
    single = values.shape == shape
    if single:
        values = values[None]
    if values.shape[1:] != shape or values.ndim != len(shape) + 1:
        raise InputError(
            f"observations have shape {values.shape}, and the policy was trained on {space}; give {shape}, or a batch of them."
        )
    if isinstance(space, spaces.Discrete) and not all(space.contains(v) for v in values):
        raise InputError(f"observations {values.tolist()} are not all in {space}, on which the policy was trained.")
    if values.dtype == np.float32 and not np.isfinite(values).all():
        raise InputError(
            f"the observation of environment {int(np.argwhere(~np.isfinite(values))[0][0])} holds NaN or infinity; the environment is at fault."
        )
    return values, single


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
