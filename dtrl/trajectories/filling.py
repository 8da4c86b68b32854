"""Episodes into columns: allocating them, and writing each episode to its rows, checked."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from dtrl.errors import InputError
from dtrl.spaces import Leaf, Space, column_layout, flatten, leaves, numbers_of

Array = npt.NDArray[Any]


def empty_columns(
    steps: int,
    episodes: int,
    observation_space: Space,
    action_space: Space,
    allocate: Any = lambda name, shape, dtype: np.empty(shape, dtype),
) -> dict[str, Array]:
    """Uninitialised columns for so many steps and episodes; `allocate(name, shape, dtype)` may put them in files."""
    layout = column_layouts(steps, episodes, observation_space, action_space)
    return {name: allocate(name, shape, dtype) for name, (shape, dtype) in layout.items()}


def column_layouts(
    steps: int, episodes: int, observation_space: Space, action_space: Space
) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
    """Shape and dtype of each column."""
    layout: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {}
    for name, count, space in (
        ("observations", steps, observation_space),
        ("final_observations", episodes, observation_space),
        ("actions", steps, action_space),
    ):
        for leaf in leaves(space):
            shape, dtype = column_layout(leaf.space)
            layout[leaf.name(name)] = (count, *shape), dtype
    return layout | {
        "rewards": ((steps,), np.float32),
        "terminations": ((steps,), np.bool_),
        "truncations": ((steps,), np.bool_),
    }


def fill_episode(
    columns: Mapping[str, Array],
    index: int,
    start: int,
    episode: Mapping[str, Any],
    observation_space: Space,
    action_space: Space,
    where: str,
) -> int:
    """Write one episode into the columns at row `start`, checking shapes and that every number is finite; returns its length.

    `where` names the dataset in error messages."""
    steps = len(episode["rewards"])
    rows = slice(start, start + steps)
    for leaf, value in parts_of(episode["observations"], observation_space, "observations", index, where):
        name, values = leaf.name("observations"), numbers_of(leaf.space, value)
        if len(values) != steps + 1:
            raise InputError(
                f"episode {index} of {where} has {len(values)} {name} for {steps} rewards; there must be one more "
                "(the observation after the last step), so record the final one too."
            )
        write(columns[name][rows], values[:-1], name, index, where)
        write(columns[leaf.name("final_observations")][index : index + 1], values[-1:], name, index, where, steps)
    for leaf, value in parts_of(episode["actions"], action_space, "actions", index, where):
        write(columns[leaf.name("actions")][rows], numbers_of(leaf.space, value), leaf.name("actions"), index, where)
    for name in ("rewards", "terminations", "truncations"):
        values = np.asarray(episode[name])
        if name == "rewards" and values.size == steps:
            values = values.reshape(steps)
        write(columns[name][rows], values, name, index, where)
    return steps


def parts_of(value: Any, space: Space, name: str, index: int, where: str) -> list[tuple[Leaf, Any]]:
    """The leaves of a space, each with its values in an episode."""
    try:
        parts = flatten(space, value)
    except InputError as error:
        raise InputError(f"{name} of episode {index} of {where} are not those of the space: {error}") from error
    return [(leaf, parts[leaf.path]) for leaf in leaves(space)]


def write(column: Array, values: Array, name: str, index: int, where: str, offset: int = 0) -> None:
    """Write an episode's values into its rows of a column. Raises InputError where their shape is another, or the column's type cannot hold them.

    `offset` is the step of the first value."""
    if values.shape != column.shape:
        raise InputError(
            f"{name} of episode {index} of {where} have shape {values.shape}; the spaces ask for {column.shape}."
        )
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # what the column's type cannot hold changes, and is refused below
        column[...] = values
    if column.dtype == np.float32 and not np.isfinite(column).all():
        bad = int(np.argwhere(~np.isfinite(column))[0][0])
        raise InputError(
            f"{name} of episode {index} of {where} hold NaN or infinity at step {bad + offset}; repair or remove that episode."
        )
    if (
        column.dtype != np.float32
        and column.dtype != np.bool_
        and values.dtype != column.dtype
        and (column != values).any()
    ):
        bad = int(np.argwhere(column != values)[0][0])
        raise InputError(
            f"{name} of episode {index} of {where} hold {values[bad]} at step {bad + offset}; "
            f"the space has {'bytes' if column.dtype == np.uint8 else 'whole numbers'} only."
        )
