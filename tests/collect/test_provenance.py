"""What a dataset tells of itself suffices to play every episode again, and to see what made it."""

import dataclasses
import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import minari
import numpy as np
import pytest

import dtrl
from dtrl.collect import make_dataset
from dtrl.collect.provenance import fingerprint, text_hash, versions

HERE = Path(__file__).parent
TRAINED = (HERE / "trained.toml").read_text(encoding="utf-8")
PENDULUM = (HERE / "pendulum.toml").read_text(encoding="utf-8")
OFF_POLICY = """
id = "tests/off-policy-v0"
env = "%s"
seed = 5
description = "For tests."
env_options = { max_episode_steps = 40 }
algorithm = { name = "%s", timesteps = 300, checkpoints = [300], options = { learning_starts = 290, buffer_size = 500 } }
[[behaviour]]
policy = "replay"
checkpoint = 300
[[behaviour]]
policy = "checkpoint"
checkpoint = 300
episodes = 2
epsilon = 0.3
"""


@pytest.mark.parametrize(
    "text",
    [
        TRAINED,
        PENDULUM.replace("noise = 3", "noise = 0.2"),
        OFF_POLICY % ("CartPole-v1", "DQN"),
        OFF_POLICY % ("Pendulum-v1", "SAC"),
    ],
)
def test_every_episode_can_be_played_again(recipe_of, text):
    dataset = minari.load_dataset(make_dataset(recipe_of(text)))
    env = dataset.recover_environment()
    stored = dataset.storage.get_episode_metadata(range(dataset.total_episodes))
    for episode, metadata in zip(dataset, stored, strict=True):
        observations, steps = [env.reset(seed=int(metadata["seed"]))[0]], []
        for action in episode.actions:
            observation, *step, _ = env.step(action)
            observations.append(observation)
            steps.append(step)
        np.testing.assert_array_equal(observations, episode.observations)
        rewards, terminations, truncations = map(list, zip(*steps, strict=True))
        if metadata["policy"].startswith("replay"):  # Stable-Baselines3's buffers hold float32
            rewards = np.float32(rewards)
        np.testing.assert_array_equal(rewards, episode.rewards)
        assert (terminations, truncations) == (episode.terminations.tolist(), episode.truncations.tolist())


def test_episodes_say_what_played_them(recipe_of):
    storage = minari.load_dataset(make_dataset(recipe_of(TRAINED))).storage
    stored = [
        {k: m[k] for k in ("behaviour", "policy", "noise", "reset_options")}
        for m in storage.get_episode_metadata(range(5))
    ]
    first = {
        "behaviour": "checkpoint 128, epsilon 0.5",
        "policy": "checkpoint 128",
        "noise": "epsilon 0.5",
        "reset_options": "{}",
    }
    last = {"behaviour": "checkpoint 256", "policy": "checkpoint 256", "noise": "none", "reset_options": "{}"}
    assert stored == [first] * 3 + [last] * 2


def test_a_dataset_says_what_made_it(recipe_of):
    metadata = minari.load_dataset(make_dataset(recipe_of(TRAINED))).storage.metadata
    assert metadata["recipe_sha256"] == hashlib.sha256(TRAINED.encode()).hexdigest()
    assert metadata["recipe_file"] == "recipe.toml"
    assert metadata["versions"]["dtrl"] == dtrl.__version__
    for name in ("gymnasium", "stable_baselines3", "torch", "numpy"):
        assert metadata["versions"][name] == version(name)
    options = metadata["algorithm"]["options"]
    assert (options["n_steps"], options["gamma"]) == (64, 0.99)  # given, and by default
    assert (metadata["algorithm"]["name"], metadata["algorithm"]["timesteps"]) == ("PPO", 256)


def test_the_simulator_is_among_the_versions(recipe_of):
    text = (
        (HERE / "random.toml").read_text(encoding="utf-8").replace("CartPole-v1", "LunarLander-v3").replace("12", "1")
    )
    metadata = minari.load_dataset(make_dataset(recipe_of(text))).storage.metadata
    assert metadata["versions"]["Box2D"] == version("Box2D")
    assert "torch" not in metadata["versions"]


def test_the_hash_of_a_file_is_not_that_of_a_recipe_which_was_changed(recipe_of):
    recipe = recipe_of(TRAINED)
    assert text_hash(recipe) is not None
    assert text_hash(dataclasses.replace(recipe, seed=9)) is None
    json.dumps(dataclasses.asdict(recipe))


def test_a_fingerprint_changes_with_what_decides_the_episodes(recipe_of, tmp_path):
    recipe = recipe_of(TRAINED)
    same = dataclasses.replace(recipe, description="Other words.", source="elsewhere.toml", text=None)
    assert fingerprint(same) == fingerprint(recipe)
    assert fingerprint(dataclasses.replace(recipe, seed=9)) != fingerprint(recipe)
    file = "policy = 'file'\npath = 'policy.npz'"
    recipe = recipe_of((HERE / "random.toml").read_text(encoding="utf-8").replace('policy = "random"', file))
    (tmp_path / "policy.npz").write_bytes(b"one")
    one = fingerprint(recipe)
    (tmp_path / "policy.npz").write_bytes(b"other")
    assert fingerprint(recipe) != one


def test_a_fingerprint_changes_with_the_code_of_the_environment(recipe_of, tmp_path, monkeypatch):
    spec = gymnasium.envs.registration.EnvSpec("Own-v0", "own_code:Own")
    monkeypatch.setitem(gymnasium.registry, "Own-v0", spec)
    monkeypatch.setitem(sys.modules, "own_code", SimpleNamespace(__file__=str(tmp_path / "own_code.py")))
    recipe = recipe_of((HERE / "random.toml").read_text(encoding="utf-8").replace("CartPole-v1", "Own-v0"))
    inside = dataclasses.replace(recipe, env="dtrl/DelayedReward-v0", env_options={"env_id": "Own-v0"})
    before = []
    for code in ("one = 1", "one = 2"):
        (tmp_path / "own_code.py").write_text(code)
        before += [fingerprint(recipe), fingerprint(inside)]
    assert len(set(before)) == 4


def test_the_simulator_of_the_environment_inside_is_among_the_versions(recipe_of):
    recipe = recipe_of((HERE / "random.toml").read_text(encoding="utf-8"))
    inside = dataclasses.replace(recipe, env="dtrl/DelayedReward-v0", env_options={"env_id": "LunarLander-v3"})
    assert versions(inside)["Box2D"] == version("Box2D")
