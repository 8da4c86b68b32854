"""The seeds from which a dataset's episodes began: with them an environment begins the same episodes again."""

from pathlib import Path
from typing import Any

from dtrl.config import DataConfig
from dtrl.errors import InputError
from dtrl.trajectories.columns import Trajectories
from dtrl.trajectories.sources import locate


def recorded_seeds(trajectories: Trajectories) -> list[int] | None:
    """(E,) the seed of each episode's reset; None unless the trajectories are all episodes of one Minari dataset, and it tells the seeds of all of them."""
    if trajectories.origin.loaded is None:
        return None
    source, config = trajectories.origin.loaded
    every = config == DataConfig(discount=config.discount, delayed=config.delayed, short_episodes=config.short_episodes)
    if len(source.datasets) != 1 or not every:
        return None
    try:
        folder = locate(source.datasets[0])
    except InputError:  # a file of another tool
        return None
    return seeds_in(folder, trajectories.num_episodes)


def seeds_in(folder: Path, episodes: int) -> list[int] | None:
    """What Minari has stored with each of the episodes; None where it is not that many, or not a seed for each."""
    from minari.dataset.minari_storage import MinariStorage

    storage: Any = MinariStorage.read(folder)
    if storage.total_episodes != episodes:
        return None
    stored = [entry.get("seed") for entry in storage.get_episode_metadata(range(episodes))]
    try:
        return [int(seed) for seed in stored]
    except (TypeError, ValueError):
        return None
