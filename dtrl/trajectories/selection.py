"""Which episodes of a dataset are kept: the filters of `DataConfig`, and the rule for episodes too short to learn from."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from dtrl.config import DataConfig
from dtrl.errors import InputError
from dtrl.trajectories.columns import Trajectories

FILTERS = ("min_return", "max_return", "min_length", "max_length", "endings")
"""The fields of DataConfig that choose episodes."""


def chosen(trajectories: Trajectories, config: DataConfig) -> Trajectories:
    """The episodes that pass every filter and the rule of short episodes; the same object where that is all of them.

    With filters, the origin's fingerprint is that of the data and the filters together, so that a run is not resumed with others. Raises
    InputError where nothing is left, saying what there is."""
    filters = {name: getattr(config, name) for name in FILTERS}
    filters = {name: value for name, value in filters.items() if value not in (None, "all")}
    if filters:
        keep = passes(trajectories, config)
        if not keep.any():
            raise InputError(nothing_left(trajectories, filters))
        trajectories = trajectories if keep.all() else trajectories.select(np.flatnonzero(keep))
        if trajectories.origin.fingerprint is not None:
            marked = f"{trajectories.origin.fingerprint} {json.dumps(filters, sort_keys=True)}"
            fingerprint = hashlib.sha256(marked.encode()).hexdigest()
            trajectories = replace(trajectories, origin=replace(trajectories.origin, fingerprint=fingerprint))
    return without_short_episodes(trajectories, config.short_episodes)


def passes(trajectories: Trajectories, config: DataConfig) -> npt.NDArray[np.bool_]:
    """(E,) whether each episode passes every filter."""
    keep = np.ones(trajectories.num_episodes, dtype=bool)
    for values, low, high in (
        (trajectories.episode_returns, config.min_return, config.max_return),
        (trajectories.episode_lengths, config.min_length, config.max_length),
    ):
        if low is not None:
            keep &= values >= low
        if high is not None:
            keep &= values <= high
    if config.endings != "all":
        terminated = np.asarray(trajectories.terminations)[trajectories.episode_ends - 1]
        keep &= terminated if config.endings == "terminated" else ~terminated
    return keep


def nothing_left(trajectories: Trajectories, filters: dict[str, object]) -> str:
    returns, lengths = trajectories.episode_returns, trajectories.episode_lengths
    terminated = int(np.asarray(trajectories.terminations)[trajectories.episode_ends - 1].sum())
    asked = ", ".join(f"{name} {value}" for name, value in filters.items())
    return (
        f"no episode of {trajectories.origin.name} passes {asked}; its {len(returns)} episodes return {returns.min():.6g} to {returns.max():.6g} in "
        f"{lengths.min()} to {lengths.max()} steps, and {terminated} of them terminated."
    )


def without_short_episodes(trajectories: Trajectories, rule: str) -> Trajectories:
    """Apply `DataConfig.short_episodes`; an episode of no step can never be kept."""
    lengths, name = trajectories.episode_lengths, trajectories.origin.name
    short = lengths < (1 if rule == "keep" else 2)
    if short.any() and rule == "refuse":
        first = int(np.argmax(short))
        raise InputError(
            f"{int(short.sum())} of {len(lengths)} episodes of {name} have fewer than 2 steps (the first is episode {first} with {lengths[first]}): there is "
            "no sequence in them to learn; pass short_episodes skip to leave them out, or keep to train on those of 1 step."
        )
    if short.all():
        raise InputError(f"no episode of {name} has a step to learn from; record the dataset again, or choose another.")
    return trajectories.select(np.flatnonzero(~short)) if short.any() else trajectories
