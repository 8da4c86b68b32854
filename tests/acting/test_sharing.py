"""A rollout in pieces: what comes of it, and what cannot be shared. That other processes play the same is shown with real ones, and in
tests/test_cluster.py with a Ray cluster."""

import dataclasses
from contextlib import contextmanager
from unittest.mock import Mock

import gymnasium
import numpy as np
import pytest

import dtrl
from dtrl.acting import Actor, Episode, EpisodeFault, Timing, rollout, sharing
from dtrl.acting.sharing import SentPolicy, shared_rollout
from dtrl.config import DecodingConfig
from dtrl.errors import InputError
from dtrl.pieces import Hands
from dtrl.spaces import same_space

PENDULUM = dataclasses.replace(gymnasium.spec("Pendulum-v1"), max_episode_steps=40).to_json()
EPISODES = [Episode(target_return=float(i % 3) * -300, seed=100 + i) for i in range(7)]


@pytest.fixture
def pendulum(random_trajectories, untrained_policy):
    """A policy whose course shows every bit: its actions are real numbers, and what they do to the pendulum grows."""
    env = gymnasium.make("Pendulum-v1")
    data = random_trajectories([6, 9], env.observation_space, env.action_space)
    return untrained_policy(data, acting={"target_return": -250.0})


@pytest.fixture
def shared_here(monkeypatch):
    """Pieces are played in this process, the last one first; returns their sizes."""
    sizes = []

    @contextmanager
    def here(make, jobs, ray, lost):
        def do(pieces):
            play = make()
            for number in reversed(range(len(pieces))):
                sizes.append(len(pieces[number]))
                yield number, play(pieces[number])

        yield Hands(jobs or 1, do)

    monkeypatch.setattr(sharing, "hands", here)
    return sizes


def assert_same(one, other):
    assert one.columns.keys() == other.columns.keys()
    for name, column in one.columns.items():
        np.testing.assert_array_equal(column, other.columns[name], err_msg=name)
    np.testing.assert_array_equal(one.episode_starts, other.episode_starts)


def test_episodes_come_back_in_the_order_in_which_they_were_given(pendulum, shared_here):
    ended, timing = [], Timing()
    shared = shared_rollout(pendulum, PENDULUM, EPISODES, num_envs=3, jobs=2, on_episode=ended.append, timing=timing)
    assert shared_here == [1, 3, 3]
    assert sorted(ended) == list(range(7))
    assert timing.steps == shared.num_steps == 7 * 40
    assert timing.text().endswith("steps/s, by 2 jobs")
    parts = [rollout(pendulum, PENDULUM, EPISODES[first : first + 3], num_envs=3) for first in (0, 3, 6)]
    for name, column in shared.columns.items():
        np.testing.assert_array_equal(column, np.concatenate([part.columns[name] for part in parts]), err_msg=name)


def test_sampled_actions_are_drawn_by_the_seed_of_the_episode(pendulum, shared_here):
    sampling = pendulum.variant(decoding=DecodingConfig(strategy="sample", temperature=0.5))
    whole, pieces = (
        shared_rollout(sampling, PENDULUM, EPISODES, num_envs=count, deterministic=False) for count in (7, 2)
    )
    assert shared_here == [7, 1, 2, 2, 2]
    np.testing.assert_allclose(whole.rewards, pieces.rewards, atol=1e-3)
    assert not np.array_equal(whole.rewards[:40], whole.rewards[40:80])


@pytest.mark.slow
def test_other_processes_play_the_same_bit_for_bit(pendulum, shared_here, monkeypatch):
    here = dtrl.evaluate(pendulum, [-200, -900], 5, env=PENDULUM, num_envs=3, jobs=1)
    monkeypatch.undo()
    there = dtrl.evaluate(pendulum, [-200, -900], 5, env=PENDULUM, num_envs=3, jobs=2)
    assert here.to_dict() == there.to_dict()
    assert there.timing.jobs == 2


class Failing(gymnasium.Env):
    """Fails in its second step where the episode's seed is odd."""

    observation_space = gymnasium.spaces.Box(-8, 8, (3,))
    action_space = gymnasium.spaces.Box(-2, 2, (1,))

    def reset(self, *, seed=None, options=None):
        self.seed, self.steps = seed, 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.seed % 2 and self.steps == 2:
            raise RuntimeError("a wheel fell off")
        return np.zeros(3, np.float32), 1.0, self.steps == 3, False, {}


@pytest.fixture
def failing(monkeypatch, random_trajectories, untrained_policy):
    """A policy for `Failing-v0`, which is registered for the test."""
    spec = gymnasium.envs.registration.EnvSpec("Failing-v0", f"{__name__}:Failing")
    monkeypatch.setitem(gymnasium.registry, "Failing-v0", spec)
    monkeypatch.setattr("gymnasium.envs.registration.load_env_creator", lambda name: Failing)
    return untrained_policy(random_trajectories([6, 9], Failing.observation_space, Failing.action_space))


def test_a_piece_that_is_lost_whole_takes_no_other_with_it(failing, shared_here):
    faults, ended = [], []
    episodes = [Episode(0.0, seed) for seed in (2, 4, 1, 3, 5, 6)]
    played = shared_rollout(
        failing,
        "Failing-v0",
        episodes,
        num_envs=2,
        on_env_error="skip",
        on_fault=faults.append,
        on_episode=ended.append,
    )
    assert played.num_episodes == 3
    assert [(fault.episode, fault.seed) for fault in faults] == [(2, 1), (3, 3), (4, 5)]
    assert sorted(ended) == list(range(6))
    assert all(isinstance(fault, EpisodeFault) and fault.lost for fault in faults)
    with pytest.raises(InputError, match="all 2 episodes were lost"):
        shared_rollout(failing, "Failing-v0", episodes[2:4], on_env_error="skip", on_fault=faults.append)
    with pytest.raises(InputError, match=r"at step 1 \(seed 1\).*a wheel fell off"):
        shared_rollout(failing, "Failing-v0", episodes[:3], num_envs=2)


def test_a_policy_arrives_as_it_was_sent(pendulum):
    acting = {"context": "block", "context_length": 2, "target_return": -77.0}
    sent = pendulum.variant(**acting, decoding=DecodingConfig(strategy="sample", temperature=0.3))
    arrived = SentPolicy.of(sent).load()
    for name in (*acting, "decoding", "config", "updates"):
        assert getattr(arrived, name) == getattr(sent, name), name
    assert same_space(arrived.action_space, sent.action_space)
    for name, tensor in sent.model.state_dict().items():
        np.testing.assert_array_equal(arrived.model.state_dict()[name], tensor)


@pytest.mark.slow
def test_an_exported_policy_arrives_too(pendulum, shared_here):
    from dtrl.acting import ExportedPolicy

    exported = ExportedPolicy.of(pendulum.variant(context="block"), "numpy")
    shared = shared_rollout(exported, PENDULUM, EPISODES[:2], num_envs=2)
    assert_same(shared, rollout(exported, PENDULUM, EPISODES[:2], num_envs=2))


def test_what_cannot_be_sent_is_refused(pendulum, monkeypatch):
    def refused(match, policy=pendulum, env="Pendulum-v1", **options):
        with pytest.raises(InputError, match=match):
            dtrl.evaluate(policy, [-200.0], 2, env=env, **{"jobs": 2, **options})

    refused("jobs 0 must be 1 or more", jobs=0)
    refused(r"env_workers is 3, and jobs play environments in their own processes", env_workers=3)
    refused(r"env_timeout is 9, and jobs play", env_timeout=9.0)
    refused("on_env_error is 'ignore'", on_env_error="ignore")
    refused(
        r"jobs make their environments from an id, and env is a function", env=lambda: gymnasium.make("Pendulum-v1")
    )
    own = gymnasium.envs.registration.EnvSpec("Own-v0", lambda: gymnasium.make("Pendulum-v1"))
    monkeypatch.setitem(gymnasium.registry, "Own-v0", own)
    refused(r"env 'Own-v0' is registered with an object of this process", env="Own-v0")
    pendulum.decoding = DecodingConfig(strategy="best_of", critic="critic.safetensors")
    refused(r"decoding reads critic.safetensors, which other machines may not have")

    with pytest.raises(InputError, match="a policy that dtrl has saved, and this is of another kind"):
        SentPolicy.of(Mock(Actor))
