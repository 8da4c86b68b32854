"""Recording CartPole: Minari's DataCollector against `dtrl.Recorder`, while the environment is stepped, and with the dataset written."""

import itertools
import tempfile
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium

from dtrl.bench.loading import own_folders
from dtrl.bench.timing import compare, document, interleaved, table
from dtrl.collect import Recorder
from dtrl.errors import InputError

__all__ = ["run", "table"]

ENV = "CartPole-v1"
RECORDER, COLLECTOR = "Recorder", "minari, DataCollector"


def run(repetitions: int = 10, steps: int = 5_000) -> dict[str, Any]:
    """So many steps of random actions, some 22 an episode. DataCollector writes to a file at every reset, the recorder when it is told to."""
    collector = data_collector()
    ids = (f"bench/{i}-v0" for i in itertools.count())

    def recorder() -> Any:
        return Recorder(gymnasium.make(ENV), next(ids))

    def collecting() -> Any:
        return collector(gymnasium.make(ENV))

    def recording(make: Callable[[], Any], finish: Callable[[Any], object]) -> Callable[[], Callable[[], object]]:
        def prepare() -> Callable[[], object]:
            env = make()

            def call() -> None:
                play(env, steps)
                finish(env)

            return call

        return prepare

    with tempfile.TemporaryDirectory(prefix="dtrl-bench-") as folder, own_folders(Path(folder)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an author and the like, and of the episode that is cut
            stepped = interleaved(
                {COLLECTOR: recording(collecting, nothing), RECORDER: recording(recorder, nothing)}, repetitions
            )
            written = interleaved(
                {
                    COLLECTOR: recording(collecting, lambda env: env.create_dataset(next(ids))),
                    RECORDER: recording(recorder, lambda env: env.write()),
                },
                repetitions,
            )
    results = [
        compare(f"{steps:,} steps of {ENV}, recorded", stepped, RECORDER, COLLECTOR, 10.0),
        compare(f"{steps:,} steps of {ENV}, recorded and written", written, RECORDER, COLLECTOR),
    ]
    return document("recording", {"repetitions": repetitions, "steps": steps}, results)


def play(env: Any, steps: int) -> None:
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(steps):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()


def nothing(env: Any) -> None:
    """The steps alone are timed."""


def data_collector() -> Any:
    if find_spec("jax") is None:  # DataCollector imports it at its first step
        raise InputError(
            "this benchmark compares with Minari's DataCollector, which needs jax; `pip install 'minari[create]'` brings it."
        )
    from minari import DataCollector

    return DataCollector
