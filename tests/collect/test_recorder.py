"""The recorder: the dataset holds exactly what a plain environment shows for the same seeds and actions."""

import json
import warnings

import gymnasium
import minari
import numpy as np
import pytest
from gymnasium import spaces

import dtrl
from dtrl.errors import InputError
from dtrl.trajectories import local_datasets

SEEDS = (5, None, 7)


class Reusing(gymnasium.Env):
    """Shows every observation in the same array, as fast simulators do; ends after 4 steps. NaN from step `broken` on."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,))
    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, broken=99):
        self.array, self.broken = np.zeros(2, np.float32), broken

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.array[:] = 0
        return self.array, {}

    def step(self, action):
        self.array += 1
        if self.array[0] >= self.broken:
            self.array[:] = np.nan
        return self.array, 1, self.array[0] == 4, False, {}


def play(env, seeds=SEEDS, steps=600):
    """Random actions by a generator of our own; returns what was seen, an episode at a time."""
    random, episodes = np.random.default_rng(0), []
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        episode = {"observations": [observation.copy()], "actions": [], "rewards": [], "ends": []}
        for _ in range(steps):
            action = (
                random.integers(2) if env.action_space.shape == () else random.uniform(-1, 1, env.action_space.shape)
            )
            observation, reward, terminated, truncated, _ = env.step(action)
            episode["observations"].append(observation.copy())
            episode["actions"].append(action)
            episode["rewards"].append(reward)
            episode["ends"].append((terminated, truncated))
            if terminated or truncated:
                break
        episodes.append(episode)
    return episodes


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "dtrl/KeyToDoor-v0"])
def test_a_recording_is_what_a_plain_environment_shows(env_id):
    with dtrl.Recorder(gymnasium.make(env_id), "mine/recorded-v0", description="At random.", algorithm="dice") as env:
        ours = play(env)
    plain = play(gymnasium.make(env_id))
    data = dtrl.load_trajectories("mine/recorded-v0")
    assert data.num_episodes == len(plain)
    for i, (seen, expected) in enumerate(zip(ours, plain, strict=True)):
        episode = data.episode(i)
        for name in ("observations", "actions", "rewards"):
            np.testing.assert_array_equal(seen[name], expected[name])
            stored = data.columns[name].dtype
            wanted = np.asarray(expected[name]).astype(stored)
            np.testing.assert_array_equal(episode[name], wanted.reshape(episode[name].shape))
        np.testing.assert_array_equal(episode["terminations"], [e[0] for e in expected["ends"]])
        np.testing.assert_array_equal(episode["truncations"], [e[1] for e in expected["ends"]])
    assert json.loads(data.origin.env_spec)["id"] == env_id
    stored = minari.load_dataset("mine/recorded-v0")
    assert [episode.get("seed") for episode in stored.storage.get_episode_metadata(range(3))] == list(SEEDS)
    assert (stored.storage.metadata["description"], stored.storage.metadata["algorithm_name"]) == ("At random.", "dice")


def test_terminated_and_truncated_are_kept_apart():
    with dtrl.Recorder(gymnasium.make("CartPole-v1", max_episode_steps=12), "mine/recorded-v0") as env:
        episodes = play(env, range(30))
    data = dtrl.load_trajectories("mine/recorded-v0")
    ends = data.episode_ends - 1
    np.testing.assert_array_equal(data.terminations[ends], [episode["ends"][-1][0] for episode in episodes])
    np.testing.assert_array_equal(data.truncations[ends], [episode["ends"][-1][1] for episode in episodes])
    assert 0 < data.terminations[ends].sum() < 30


def test_an_array_that_the_environment_uses_again_is_copied():
    with dtrl.Recorder(Reusing(), "mine/reusing-v0") as env:
        play(env)
    data = dtrl.load_trajectories("mine/reusing-v0")
    np.testing.assert_array_equal(data.observations[:, 0], [0, 1, 2, 3] * 3)
    np.testing.assert_array_equal(data.final_observations[:, 0], [4] * 3)


def test_an_episode_that_was_left_counts_as_truncated_and_that_is_said():
    env = dtrl.Recorder(Reusing(), "mine/left-v0")
    play(env, [0, 1, 2], steps=2)
    env.reset()  # without a step: nothing to record
    with pytest.warns(UserWarning, match="3 of 3 episodes of mine/left-v0 were left before the environment ended them"):
        env.close()
    data = dtrl.load_trajectories("mine/left-v0")
    np.testing.assert_array_equal(data.truncations, [False, True] * 3)
    assert not data.terminations.any()


def test_writing_in_between_keeps_the_running_episode_whole():
    env = dtrl.Recorder(Reusing(), "mine/between-v0")
    play(env, [0])
    play(env, [1], steps=3)
    with pytest.warns(UserWarning, match="1 of 2 episodes"):
        assert env.write() == "mine/between-v0"
    assert list(dtrl.load_trajectories("mine/between-v0").episode_lengths) == [4, 3]
    env.step(np.zeros(1, np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.close()
    data = dtrl.load_trajectories("mine/between-v0")
    assert list(data.episode_lengths) == [4, 4]
    assert data.terminations[data.episode_ends - 1].all()


def test_closing_twice_or_without_a_step_writes_nothing_more(monkeypatch):
    env = dtrl.Recorder(Reusing(), "mine/none-v0")
    env.reset()
    with pytest.raises(InputError, match="nothing was recorded for mine/none-v0"):
        env.write()
    env.close()
    assert not local_datasets()
    with dtrl.Recorder(Reusing(), "mine/some-v0") as env:
        play(env)
        env.write()
        monkeypatch.setattr(env, "write", lambda: pytest.fail("written again"))


def test_a_broken_episode_is_named_and_the_others_are_kept():
    inner = Reusing()
    env = dtrl.Recorder(inner, "mine/broken-v0")
    play(env, [0, 1])
    inner.broken = 3
    play(env, [2], steps=3)
    with pytest.raises(InputError, match="observations of recorded episode 2 hold NaN or infinity at step 3"):
        env.close()
    assert dtrl.load_trajectories("mine/broken-v0").num_episodes == 2


def test_misuse_is_refused_at_once():
    with pytest.raises(InputError, match="'mine' is no Minari dataset id"):
        dtrl.Recorder(Reusing(), "mine")
    with pytest.raises(InputError, match="is no single environment"):
        dtrl.Recorder(gymnasium.make_vec("CartPole-v1", 2), "mine/vector-v0")
    env = dtrl.Recorder(Reusing(), "mine/some-v0")
    with pytest.raises(InputError, match="stepped after the end of an episode, or before the first; call reset"):
        env.step(np.zeros(1))
    play(env)
    env.close()
    with pytest.raises(InputError, match="the dataset mine/some-v0 exists"):
        dtrl.Recorder(Reusing(), "mine/some-v0")
    with dtrl.Recorder(Reusing(), "mine/some-v0", overwrite=True) as again:
        play(again, [0])
    assert dtrl.load_trajectories("mine/some-v0").num_episodes == 1
