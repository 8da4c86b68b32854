"""Reading a Minari dataset: Minari's own iteration against dtrl's first load and its later ones, and drawing a batch."""

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from dtrl.bench.paper_loop import PaperLoop
from dtrl.bench.peers import ACTION_WIDTH, OBSERVATION_WIDTH
from dtrl.bench.timing import compare, document, interleaved, table, temporarily
from dtrl.trajectories import Trajectories, load_trajectories
from dtrl.windows import Windows

__all__ = ["run", "table"]

DATASET = "bench/hopper-shaped-v0"
BATCH_SIZE, CONTEXT_LENGTH = 64, 20
ITERATE, SAMPLE, PAPER = "minari, iterate_episodes", "minari, sample_episodes", "the paper's loop"
FIRST, LATER, READ, DRAW = "first load", "second load", "second load, all read", "a batch of windows"


def run(repetitions: int = 5, episodes: int = 1_000, steps: int = 1_000) -> dict[str, Any]:
    """A dataset of `episodes` of `steps` each, made in a temporary folder: HDF5, float32, 11 numbers an observation and 3 an action.

    Files are in the system's cache for both. Reading everything once is what training does; a batch is drawn at every update."""
    with tempfile.TemporaryDirectory(prefix="dtrl-bench-") as folder, own_folders(Path(folder)):
        path = make_dataset(episodes, steps)
        from minari.dataset.minari_dataset import MinariDataset

        def iterate() -> int:
            return sum(len(episode.rewards) for episode in MinariDataset(path).iterate_episodes())

        def load_first() -> Callable[[], object]:
            shutil.rmtree(Path(folder) / "cache", ignore_errors=True)
            return lambda: load_trajectories(path)

        def load_again() -> Callable[[], object]:
            load_trajectories(path)
            return lambda: load_trajectories(path)

        loads = interleaved(
            {
                ITERATE: lambda: iterate,
                FIRST: load_first,
                LATER: load_again,
                READ: lambda: lambda: read_all(load_trajectories(path)),
            },
            repetitions,
        )
        trajectories = load_trajectories(path)
        dataset, windows = MinariDataset(path), Windows(trajectories, CONTEXT_LENGTH, BATCH_SIZE)
        paper = PaperLoop(trajectories, CONTEXT_LENGTH, BATCH_SIZE)
        updates = iter(range(10**9))
        count = min(BATCH_SIZE, episodes)
        draws = interleaved(
            {
                SAMPLE: lambda: lambda: dataset.sample_episodes(count),
                PAPER: lambda: paper.batch,
                DRAW: lambda: lambda: windows.batch(next(updates)),
            },
            4 * repetitions,
        )
    work = f"loading {episodes * steps:,} steps in {episodes:,} episodes"
    results = [compare(work, loads, ours, ITERATE) for ours in (FIRST, LATER, READ)]
    work = f"drawing from {episodes * steps:,} steps"
    results += [compare(work, draws, DRAW, peer, windows=BATCH_SIZE, episodes=count) for peer in (SAMPLE, PAPER)]
    return document("loading", {"repetitions": repetitions, "episodes": episodes, "steps": steps}, results)


@contextmanager
def own_folders(folder: Path) -> Iterator[None]:
    """Minari's datasets and dtrl's cache in `folder`, for a while."""
    with (
        temporarily("MINARI_DATASETS_PATH", str(folder / "datasets")),
        temporarily("DTRL_CACHE", str(folder / "cache")),
    ):
        yield


def make_dataset(episodes: int, steps: int) -> Path:
    """Write the dataset and return the folder of its data."""
    import minari
    from minari.data_collector import EpisodeBuffer

    random = np.random.default_rng(0)
    ends = np.arange(steps) == steps - 1
    buffers = [
        EpisodeBuffer(
            id=i,
            observations=random.standard_normal((steps + 1, OBSERVATION_WIDTH), dtype=np.float32),
            actions=random.uniform(-1, 1, (steps, ACTION_WIDTH)).astype(np.float32),
            rewards=random.random(steps, dtype=np.float32),
            terminations=np.zeros(steps, dtype=bool),
            truncations=ends,
        )
        for i in range(episodes)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for an author and an environment
        dataset = minari.create_dataset_from_buffers(
            DATASET,
            buffers,
            observation_space=spaces.Box(-np.inf, np.inf, (OBSERVATION_WIDTH,), np.float32),
            action_space=spaces.Box(-1, 1, (ACTION_WIDTH,), np.float32),
            jpeg_encoding=False,
        )
    return Path(dataset.storage.data_path)


def read_all(trajectories: Trajectories) -> float:
    """Touch every number, so that memory-mapped columns are really read."""
    return float(sum(np.asarray(column).sum(dtype=np.float64) for column in trajectories.columns.values()))
