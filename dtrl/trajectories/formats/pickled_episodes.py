"""The pickles of the Decision Transformer's own code (kzl/decision-transformer, gym/data) and of what followed it: a list with a dict an episode,
of observations, next_observations, actions, rewards and terminals. Read by `pickled`, which runs nothing."""

from pathlib import Path
from typing import Any

import numpy as np

from dtrl.errors import InputError
from dtrl.trajectories.columns import Array
from dtrl.trajectories.formats.environment import Environment
from dtrl.trajectories.formats.flat import ALIASES, Flat, flags, from_fields, stack_episodes
from dtrl.trajectories.formats.pickled import PickledArray, read_pickle

SPREAD = 8
"""Arrays may be this many times larger than the file: a number takes a byte or more there, and 8 at most here. A pickle can name one array a
million times."""


def read(path: Path, env: Environment | None, columns: object = None) -> Flat:
    content = read_pickle(path)
    budget = Budget(SPREAD * path.stat().st_size + 2**16, path)
    if isinstance(content, dict):  # one dict of flat columns
        known = {name for names in ALIASES.values() for name in names}
        fields = {name: budget.array(values, name) for name, values in content.items() if name in known}
        return from_fields(fields, str(path), env)
    if not isinstance(content, list | tuple) or not content or not all(isinstance(e, dict) for e in content):
        raise InputError(
            f"{path} holds {type(content).__name__} of no episodes; a list with a dict an episode is expected."
        )
    ends = next((name for name in ALIASES["terminations"] if name in content[0]), "terminals")
    names = ["observations", "actions", "rewards", ends]
    names += [name for name in ("next_observations", "timeouts") if name in content[0]]
    episodes = []
    for i, episode in enumerate(content):
        lacking = [name for name in names if name not in episode]
        if lacking:
            raise InputError(
                f"episode {i} of {path} has no {lacking[0]}; it holds {', '.join(texts_in(episode)) or 'nothing'}."
            )
        episodes.append({name: budget.array(episode[name], f"{name} of episode {i}") for name in names})
    parts, starts = stack_episodes(episodes, names, str(path))
    return split_by_dict(parts, starts, ends, sorted({*texts_in(content[0])} - set(names)), path)


def split_by_dict(parts: dict[str, Array], starts: Array, ends: str, ignored: list[str], path: Path) -> Flat:
    """Each dict is an episode; one that is not terminated at its last step was cut there."""
    last = np.append(starts, len(parts["rewards"]))[1:] - 1
    terminations = flags(parts[ends], ends, str(path))
    inner = terminations.copy()
    inner[last] = False
    if inner.any():
        row = int(np.argmax(inner))
        episode = int(np.searchsorted(starts, row, side="right")) - 1
        raise InputError(
            f"{ends} of episode {episode} of {path} is set at step {row - starts[episode]}, before the episode's last; each dict must be one episode."
        )
    truncations = np.zeros_like(terminations)
    truncations[last] = ~terminations[last]
    if "timeouts" in parts:
        truncations[last] |= flags(parts["timeouts"], "timeouts", str(path))[last]
    flat = Flat(
        parts["observations"], parts["actions"], parts["rewards"], terminations, truncations, starts,
        assumed={"columns": ", ".join(parts), "episodes": f"one dict an episode; truncated where {ends} is not set at its last step"},
    )  # fmt: skip
    if "next_observations" in parts:
        flat.finals = parts["next_observations"][last]
    if ignored:
        flat.assumed["ignored"] = ", ".join(ignored)
    return flat


def texts_in(episode: dict[Any, Any]) -> list[str]:
    """The names in an episode; a number may be a key too, and may have more digits than Python writes."""
    return [name for name in episode if isinstance(name, str)]


class Budget:
    """Makes arrays, and refuses when they get larger than the file can honestly hold."""

    def __init__(self, size: int, path: Path) -> None:
        self.left, self.path = size, path

    def array(self, values: Any, what: str) -> Array:
        """(T, …) of a pickled array, or of a list of numbers or of arrays of one shape."""
        if isinstance(values, PickledArray):
            array = values.value
            if array is None:
                raise InputError(f"{what} of {self.path} is an array without values; get the file again.")
            self.spend(array.nbytes)
            return array
        if not isinstance(values, list | tuple):
            raise InputError(f"{what} of {self.path} is {type(values).__name__}, where an array is expected.")
        rows: list[Any] = [value.value if isinstance(value, PickledArray) else value for value in values]
        if not all(isinstance(row, np.ndarray | np.generic | bool | int | float) for row in rows):
            raise InputError(f"{what} of {self.path} is a list of other things than numbers and arrays.")
        self.spend(sum(getattr(row, "nbytes", 8) for row in rows))
        shapes = {np.shape(row) for row in rows}
        if len(shapes) > 1:
            raise InputError(
                f"{what} of {self.path} has rows of different shapes ({', '.join(map(str, sorted(shapes)))})."
            )
        return np.array(rows)

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise InputError(
                f"{self.path} names the same arrays again and again, more than the file can hold; get it again."
            )
