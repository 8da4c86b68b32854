"""benchmarks/d3rlpy_peer.py and d3rlpy_training.py, without d3rlpy: what is handed over, what is played, and that its cells stand in the tables.

The training itself needs an environment of its own; the docstring of d3rlpy_peer.py says how it is made."""

import dataclasses
import importlib.util
import json
import sys

import gymnasium
import numpy as np
import pytest

from dtrl.errors import InputError
from dtrl.evaluation import evaluate
from dtrl.suites.benchmark import prepare_suite, write_results
from dtrl.suites.suite import Entry

STAND_IN = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
job = json.loads((folder / "job.json").read_text())
n = len(job["final_seeds"])
found = {"last": [[3.0] * n, [3] * n], "best": [[4.0] * n, [4] * n], "best_update": 2, "of": 2, "parameters": 7}
(folder / "result.json").write_text(json.dumps(found | {"versions": {"d3rlpy": "2.8.1"}}))
"""


def module_of(repository, name):
    spec = importlib.util.spec_from_file_location(name, repository / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def peer(repository):
    return module_of(repository, "d3rlpy_peer")


@pytest.fixture(scope="module")
def training(repository):
    return module_of(repository, "d3rlpy_training")


class Repeats:
    """Acts by the sign of the pole's angle, as d3rlpy's stateful wrapper is asked: with the observation and the last reward."""

    def __init__(self):
        self.rewards, self.resets = [], 0

    def reset(self):
        self.resets += 1

    def predict(self, observation, reward):
        self.rewards.append(reward)
        return int(observation[2] > 0)


def test_it_plays_from_the_first_states_that_dtrl_plays_from(peer, training, random_trajectories, untrained_policy):
    env = gymnasium.make("CartPole-v1")
    policy = untrained_policy(random_trajectories([5, 6], env.observation_space, env.action_space))
    begun = []

    class Noted(gymnasium.Wrapper):
        def reset(self, *, seed=None, options=None):
            begun.append(seed)
            return self.env.reset(seed=seed, options=options)

    evaluate(policy, [50.0], 4, 7, 1, env=lambda: Noted(gymnasium.make("CartPole-v1")))
    seeds = peer.episode_seeds(7, 4)
    assert [seed for seed in begun if seed is not None][-4:] == seeds
    actor = Repeats()
    returns, lengths = training.play(actor, env, seeds, start=0)
    assert returns == lengths
    assert actor.resets == 4
    assert len(actor.rewards) == sum(lengths)
    assert [actor.rewards[i] for i in np.cumsum([0, *lengths[:-1]])] == [0.0] * 4


def test_an_environment_that_moves_otherwise_is_refused(peer, training):
    job = peer.environment_of("Pendulum-v1")
    assert job["env"] == {"id": "Pendulum-v1", "kwargs": {"max_episode_steps": 200}}
    training.check_environment(json.loads(json.dumps(job)))
    job["env"]["kwargs"]["g"] = 9.0
    with pytest.raises(SystemExit, match="Pendulum-v1 moves otherwise here"):
        training.check_environment(job)
    with pytest.raises(InputError, match="dtrl/Corridor-v0 is part of dtrl"):
        peer.environment_of("dtrl/Corridor-v0")


def test_every_episode_is_handed_over_with_its_end(peer, random_trajectories):
    data = random_trajectories([3, 5, 4])
    arrays = peer.arrays_of(data)
    ends = np.flatnonzero(arrays["terminals"] + arrays["timeouts"])
    assert ends.tolist() == [2, 7, 11]
    assert not (arrays["terminals"] * arrays["timeouts"]).any()
    np.testing.assert_array_equal(arrays["terminals"][ends] > 0, data.terminations[ends])


@pytest.fixture
def benchmark_of(peer, table, read, here, tmp_path):
    suite = read(table | {"seeds": 1, "entry": table["entry"][:1]})
    suite = dataclasses.replace(
        suite, entries=(*suite.entries, Entry(peer.LABEL, "external", options=suite.entries[0].options))
    )
    return lambda: prepare_suite(suite, tmp_path, jobs=1, allow_missing=False, say=lambda line: None)


def test_its_cells_stand_in_the_tables(peer, benchmark_of, tmp_path, monkeypatch):
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(peer, "TRAINING", tmp_path / "stand_in.py")
    [cell] = [cell for cell in benchmark_of().todo if cell.entry.kind == "external"]
    peer.PeerRun(cell, sys.executable, None)()
    benchmark = benchmark_of()
    assert cell.name not in [c.name for c in benchmark.todo]
    row = next(row for row in write_results(benchmark)["cells"] if row["entry"] == peer.LABEL)
    assert (row["last"]["update"], row["best"]["update"], row["best"]["of"]) == (cell.updates, 2, 2)


def test_a_python_that_fails_is_named_with_its_last_words(peer, benchmark_of, tmp_path, monkeypatch):
    (tmp_path / "fails.py").write_text("raise SystemExit('no such weights')")
    monkeypatch.setattr(peer, "TRAINING", tmp_path / "fails.py")
    cell = next(cell for cell in benchmark_of().todo if cell.entry.kind == "external")
    with pytest.raises(InputError, match="failed with exit code 1: no such weights"):
        peer.PeerRun(cell, sys.executable, None)()
    with pytest.raises(InputError, match="nowhere/python cannot be run"):
        peer.PeerRun(cell, "nowhere/python", None)()
