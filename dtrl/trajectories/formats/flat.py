"""What every foreign format is read into: flat arrays, where the episodes begin, and the sentences that say what had to be assumed.

Letters: N steps in all episodes together, E episodes. A reader makes a `Flat`; `to_trajectories` checks it and finds its spaces."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from dtrl.errors import InputError
from dtrl.spaces import Space, check_space
from dtrl.trajectories.columns import Array, Origin, Trajectories, starts_after
from dtrl.trajectories.formats.environment import Environment

ALIASES = {
    "observations": ("observations",),
    "actions": ("actions",),
    "rewards": ("rewards",),
    "terminations": ("terminals", "terminations", "dones"),
    "truncations": ("timeouts", "truncations"),
    "next_observations": ("next_observations",),
}
"""What dtrl calls a field → the names under which files have it, in the order in which they are looked for."""


MOST_IDS = 10_000
"""Whole numbers are taken for ids up to so many, each of which costs a model a row of weights; beyond, for measurements."""


@dataclass
class Flat:
    """Episodes end to end, as a file holds them."""

    observations: Array
    """(N, …)"""
    actions: Array
    """(N, …)"""
    rewards: Array
    """(N,) or (N, 1)"""
    terminations: Array
    """(N,) bool"""
    truncations: Array
    """(N,) bool"""
    starts: npt.NDArray[np.int64]
    """(E,) the row at which each episode begins"""
    finals: Array | None = None
    """(E, …) the observation after the last step of each episode, where the file has it"""
    assumed: dict[str, str] = field(default_factory=dict)
    """Subject → what was assumed about it, in words; printed by `dtrl datasets import`."""


def from_fields(fields: Mapping[str, Array], where: str, env: Environment | None = None) -> Flat:
    """Flat arrays under D4RL's names, or Gymnasium's, with an end of an episode marked at its last row.

    Without timeouts an episode also ends where the next observation is not the next row's, or else after the environment's number of steps."""
    found = {
        name: next((alias for alias in aliases if alias in fields), None) for name, aliases in ALIASES.items()
    }  # dtrl's name → the file's
    for name in ("observations", "actions", "rewards", "terminations"):
        if found[name] is None:
            raise InputError(
                f"{where} has no {' or '.join(ALIASES[name])}; it holds {', '.join(sorted(fields)) or 'nothing'}."
            )
    same_lengths({alias: fields[alias] for alias in found.values() if alias is not None}, where)
    terminations = flags(fields[str(found["terminations"])], str(found["terminations"]), where)
    if found["truncations"] is not None:
        truncations = flags(fields[found["truncations"]], found["truncations"], where)
        how = f"ended by {found['terminations']} and {found['truncations']}"
    else:
        truncations, how = missing_truncations(fields, terminations, str(found["terminations"]), env)
    starts, truncations, unfinished = split(terminations, truncations)
    flat = Flat(
        fields["observations"], fields["actions"], fields["rewards"], terminations, truncations, starts,
        assumed={"columns": ", ".join(alias for alias in found.values() if alias), "episodes": how + unfinished},
    )  # fmt: skip
    if found["next_observations"] is not None:
        flat.finals = np.asarray(fields["next_observations"])[np.append(starts, len(terminations))[1:] - 1]
    return flat


def missing_truncations(
    fields: Mapping[str, Array], terminations: Array, name: str, env: Environment | None
) -> tuple[Array, str]:
    """Where episodes were cut, for a file that does not say so; and how that was found out."""
    cut = np.zeros(len(terminations), dtype=bool)
    following, actual = fields.get("next_observations", cut)[:-1], fields["observations"][1:]
    if len(cut) > 1 and following.shape == actual.shape and "next_observations" in fields:
        following, actual = following.astype(np.float64), actual.astype(np.float64)
        jump = ~np.isclose(following, actual, rtol=1e-4, atol=1e-6).reshape(len(following), -1).all(axis=1)
        jump &= ~terminations[:-1]
        if jump.mean() < 0.5:  # otherwise the two columns mean something else
            cut[:-1] = jump
            return cut, f"no timeouts; ended by {name} and where next_observations is not the next row's observation"
    limit = env.max_episode_steps if env is not None else None
    if limit is None:
        return cut, f"no timeouts; ended by {name} alone (give the environment for its number of steps)"
    age = 0
    for row, terminated in enumerate(terminations):
        age += 1
        if terminated or age == limit:
            cut[row] = not terminated
            age = 0
    return cut, f"no timeouts; ended by {name} or after the {limit} steps of {env.id if env else ''}"


def split(terminations: Array, truncations: Array) -> tuple[npt.NDArray[np.int64], Array, str]:
    """The row at which each episode begins; an unfinished last episode is marked as truncated, which the words then say."""
    ends = terminations | truncations
    starts = starts_after(ends)
    if not len(ends) or ends[-1]:
        return starts, truncations, ""
    truncations = truncations.copy()
    truncations[-1] = True
    return starts, truncations, f"; the last {len(ends) - starts[-1]} steps end nowhere and count as truncated"


def flags(values: Array, name: str, where: str) -> npt.NDArray[np.bool_]:
    """(N,) bool from 0 and 1 of any type, (N,) or (N, 1)."""
    values = np.asarray(values).reshape(len(values), -1)
    if values.shape[1] != 1:
        raise InputError(f"{name} of {where} have {values.shape[1]} numbers a row, where one flag is expected.")
    wrong = np.flatnonzero((values[:, 0] != 0) & (values[:, 0] != 1))
    if len(wrong):
        raise InputError(f"{name} of {where} hold {values[wrong[0], 0]} at row {wrong[0]}, where 0 or 1 is expected.")
    return values[:, 0].astype(bool)


def same_lengths(fields: Mapping[str, Array], where: str) -> None:
    """Refuse columns of different lengths, and values that are no numbers."""
    for name, values in fields.items():
        if values.dtype.kind not in "biuf":
            raise InputError(f"{name} of {where} hold {values.dtype}, where numbers are expected.")
        if not values.ndim:
            raise InputError(f"{name} of {where} is a single number, where a row a step is expected.")
    lengths = {name: len(values) for name, values in fields.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(
            f"the columns of {where} differ in length ({', '.join(f'{n} {name}' for name, n in lengths.items())}); "
            "each needs a row for every step."
        )
    if 0 in lengths.values():
        raise InputError(f"{where} holds no step; give a file with at least one episode.")
    for name, values in fields.items():
        if not values.size:
            raise InputError(f"{name} of {where} have shape {values.shape}, which holds no number.")


def to_trajectories(flat: Flat, where: str, env: Environment | None, origin: Origin) -> Trajectories:
    """Checked trajectories, with the spaces of the environment, or else those that the values suggest."""
    parts: dict[str, Array] = {
        "observations": flat.observations, "actions": flat.actions, "rewards": flat.rewards,
        "terminations": flat.terminations, "truncations": flat.truncations,
    }  # fmt: skip
    same_lengths(parts, where)
    rewards = flat.rewards.reshape(len(flat.rewards), -1)
    if rewards.shape[1] != 1:
        raise InputError(f"rewards of {where} have {rewards.shape[1]} numbers a row, where one is expected.")
    parts["rewards"] = rewards[:, 0]
    for name in ("observations", "actions", "rewards"):
        finite(parts[name], name, where)
    observation_space, found = space_for(parts["observations"], "observation", where, env)
    flat.assumed["observations"] = found
    action_space, flat.assumed["actions"] = space_for(parts["actions"], "action", where, env)
    flat.assumed["rewards"] = f"{flat.rewards.dtype}, kept as float32"
    for name, space in (("observations", observation_space), ("actions", action_space)):
        parts[name] = as_values(parts[name], space)
    finals = flat.finals
    if finals is not None:
        same_lengths({"next_observations": finals}, where)
        if finals[0].size != parts["observations"][0].size:
            raise InputError(
                f"next_observations of {where} have shape {finals.shape[1:]}, and observations {flat.observations.shape[1:]}; both need the same numbers."
            )
        finite(finals, "next_observations", where, flat.starts)
        finals = as_values(finals, observation_space)
        flat.assumed["last observation"] = "of each episode, from the file"
    else:
        flat.assumed["last observation"] = "the file has none after the last step; the one before it is repeated"
    ends = np.append(flat.starts, len(rewards))[1:]
    counts = int(parts["terminations"][ends - 1].sum()), len(ends)
    flat.assumed["ends"] = f"{counts[0]:,} of {counts[1]:,} episodes terminated, the others were truncated"
    return Trajectories.from_arrays(
        **parts, observation_space=observation_space, action_space=action_space, episode_starts=flat.starts,
        final_observations=finals, origin=origin,
    )  # fmt: skip


def finite(values: Array, name: str, where: str, starts: Array | None = None) -> None:
    """Refuse NaN and infinity, and what float32 cannot hold, naming the row (or the episode)."""
    if values.dtype.kind != "f":
        return
    with np.errstate(over="ignore"):
        good = np.isfinite(values.astype(np.float32, copy=False)).reshape(len(values), -1).all(axis=1)
    if not good.all():
        bad = int(np.argmin(good))
        place = f"row {bad}" if starts is None else f"the end of episode {bad}"
        raise InputError(
            f"{name} of {where} hold NaN, infinity or a number too large for float32 at {place}; repair the file, or leave that episode out."
        )


def space_for(values: Array, role: str, where: str, env: Environment | None) -> tuple[Space, str]:
    """The space of a column, and the words that say where it came from.

    Without an environment: whole numbers below MOST_IDS in one column are Discrete, from 0 to the largest; actions within ±1 have those bounds, others the
    smallest and largest of each dimension; observations have no bounds, and bytes have 0 and 255."""
    space: Space
    if env is not None:
        space = env.observation_space if role == "observation" else env.action_space
        check_space(space, role, env.id)
        fits(values, space, role, where, env.id)
        return space, f"{space}, from {env.id}"
    flat = values.reshape(len(values), -1)
    low, high = int(flat[:, :1].min()), int(flat[:, :1].max())
    if values.dtype.kind in "biu" and flat.shape[1] == 1 and high - min(low, 0) < MOST_IDS:
        space = spaces.Discrete(high - min(low, 0) + 1, start=min(low, 0))
        words = f"whole numbers from {low} to {high}"
    elif values.dtype == np.uint8 and values.ndim > 2:
        space, words = spaces.Box(0, 255, values.shape[1:], np.uint8), "bytes"
    elif role == "observation":
        space, words = spaces.Box(-np.inf, np.inf, flat.shape[1:], np.float32), f"{values.dtype}, no bounds"
    elif np.abs(flat).max() <= 1:
        space, words = spaces.Box(-1, 1, flat.shape[1:], np.float32), "all values are within -1 and 1"
    else:
        low32, high32 = flat.min(axis=0).astype(np.float32), flat.max(axis=0).astype(np.float32)
        space, words = spaces.Box(low32, high32, dtype=np.float32), "smallest and largest value of each dimension"
    check_space(space, role, where)
    return space, f"{space}, from the values ({words}); --env gives the environment's own"


def fits(values: Array, space: Space, role: str, where: str, env_id: str) -> None:
    """Refuse values that the environment's space does not hold, naming the first row."""
    if isinstance(space, spaces.Discrete):
        flat = values.reshape(len(values), -1)
        if flat.shape[1] != 1:
            raise InputError(
                f"{role}s of {where} have {flat.shape[1]} numbers a row, and {env_id} has {space}; give its own environment."
            )
        wrong = (
            (flat[:, 0] < space.start) | (flat[:, 0] >= space.start + space.n) | (flat[:, 0] != np.floor(flat[:, 0]))
        )
    elif not isinstance(space, (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)):
        raise InputError(
            f"{env_id} has the {role} space {space}, and {where} holds plain arrays of numbers; record that environment with dtrl.Recorder instead."
        )
    elif values[0].size != math.prod(space.shape):
        raise InputError(
            f"{role}s of {where} have shape {values.shape[1:]}, and {env_id} has {space}; give the environment that the file is from."
        )
    elif not isinstance(space, spaces.Box):
        rows = values.reshape(len(values), *space.shape)
        start, size = (0, 2) if isinstance(space, spaces.MultiBinary) else (space.start, space.nvec)
        wrong = ((rows < start) | (rows >= start + size) | (rows != np.floor(rows))).reshape(len(rows), -1).any(axis=1)
    else:
        slack = 1e-5 * np.maximum(1, np.abs(np.where(np.isfinite(space.high), space.high, 0)))
        rows = values.reshape(len(values), *space.shape)
        outside = (rows < space.low - slack) | (rows > space.high + slack)
        wrong = outside.reshape(len(rows), -1).any(axis=1) & (role == "action")
    if wrong.any():
        bad = int(np.argmax(wrong))
        raise InputError(
            f"{role}s of {where} hold {values[bad]} at row {bad}, which is outside {space} of {env_id}; give the environment that the file is from."
        )


def as_values(values: Array, space: Space) -> Array:
    """The column in the shape that the space has: (N,) ids, or (N, …) numbers."""
    return values.reshape(len(values), *(space.shape or ()))


def stack_episodes(
    episodes: Sequence[Mapping[str, Any]], names: Sequence[str], where: str
) -> tuple[dict[str, Array], npt.NDArray[np.int64]]:
    """Episodes' arrays end to end, by name, and the row at which each begins."""
    columns = {}
    lengths = np.array([len(episode["rewards"]) for episode in episodes], dtype=np.int64)
    if len(lengths) and not lengths.all():
        raise InputError(f"episode {int(np.argmin(lengths))} of {where} has no step; leave it out.")
    for name in names:
        first = np.asarray(episodes[0][name])
        for i, episode in enumerate(episodes):
            values = np.asarray(episode[name])
            if values.ndim == 0 or len(values) != lengths[i]:
                raise InputError(
                    f"{name} of episode {i} of {where} have shape {values.shape}, and its rewards {lengths[i]} rows; both need a row a step."
                )
            if values.shape[1:] != first.shape[1:]:
                raise InputError(
                    f"{name} of episode {i} of {where} have shape {values.shape[1:]} a step, and those of episode 0 {first.shape[1:]}."
                )
        columns[name] = np.concatenate([np.asarray(episode[name]) for episode in episodes])
    return columns, np.cumsum(lengths) - lengths
