"""Replay buffers become the episodes that were played: compared with playing them again from their seeds."""

import gymnasium
import numpy as np
import pytest

from dtrl.collect.training import train

DQN = """
id = "tests/replay-v0"
env = "CartPole-v1"
env_options = { max_episode_steps = 25 }
seed = 3
description = "For tests."
[algorithm]
name = "DQN"
timesteps = 600
checkpoints = [301, 600]
envs = 2
options = { learning_starts = 100, buffer_size = %d, policy_kwargs = { net_arch = [8] } }
[[behaviour]]
policy = "replay"
checkpoint = 301
[[behaviour]]
policy = "replay"
checkpoint = 600
"""
SAC = """
id = "tests/replay-v0"
env = "Pendulum-v1"
env_options = { max_episode_steps = 30 }
seed = 0
description = "For tests."
[algorithm]
name = "SAC"
timesteps = 200
checkpoints = [200]
options = { learning_starts = 100, buffer_size = 1000, policy_kwargs = { net_arch = [8] } }
[[behaviour]]
policy = "replay"
checkpoint = 200
"""


def replays_of(recipe):
    found = {}
    train(recipe, recipe.algorithm, False, lambda *_: None, found.__setitem__)
    return found


def assert_played_again(episode, env):
    observations = [env.reset(seed=episode.seed)[0]]
    for t, action in enumerate(episode.actions):
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        assert episode.rewards[t] == np.float32(reward)  # a buffer holds float32
        assert bool(episode.terminations[t]) == terminated
        assert bool(episode.truncations[t]) == (truncated and not terminated)
    assert terminated or truncated
    np.testing.assert_array_equal(episode.observations, observations)
    assert episode.observations.dtype == observations[0].dtype


def test_a_buffer_that_holds_everything(recipe_of):
    replays = replays_of(recipe_of(DQN % 1_000))
    env = gymnasium.make("CartPole-v1", max_episode_steps=25)
    for episode in replays[600]:
        assert_played_again(episode, env)
    ends = [(e.terminations[-1], e.truncations[-1]) for e in replays[600]]
    assert {(True, False), (False, True)} == set(ends)
    # Only the two episodes that had not ended are left out, each shorter than 25 steps.
    assert 600 - 2 * 25 < sum(len(e.actions) for e in replays[600]) <= 600
    assert 302 - 2 * 25 < sum(len(e.actions) for e in replays[301]) <= 302
    for early, late in zip(replays[301], replays[600], strict=False):
        assert early.seed == late.seed
        np.testing.assert_array_equal(early.observations, late.observations)


def test_of_a_buffer_that_wrapped_around_the_newest_whole_episodes_are_left(recipe_of):
    whole = replays_of(recipe_of(DQN % 1_000))[600]
    wrapped = replays_of(recipe_of(DQN % 202))[600]
    assert 202 - 4 * 25 < sum(len(e.actions) for e in wrapped) <= 202
    # The first 301 steps are the same training; after it, what is drawn from the buffer differs.
    env = gymnasium.make("CartPole-v1", max_episode_steps=25)
    for episode in wrapped:
        assert_played_again(episode, env)
    assert len(wrapped) < len(whole)


@pytest.mark.slow
def test_actions_are_scaled_back_to_those_the_environment_was_given(recipe_of):
    episodes = replays_of(recipe_of(SAC))[200]
    assert [len(e.actions) for e in episodes] == [30] * 6
    assert all(e.truncations[-1] and not e.terminations.any() for e in episodes)
    assert np.abs(np.concatenate([e.actions for e in episodes])).max() > 1.5
    for episode in episodes:
        assert_played_again(episode, gymnasium.make("Pendulum-v1", max_episode_steps=30))


def test_the_last_step_of_a_normalised_training_is_not_normalised(recipe_of):
    episodes = replays_of(
        recipe_of(SAC.replace("[[", "[[", 1).replace('name = "SAC"', 'name = "SAC"\nnormalize = true'))
    )[200]
    for episode in episodes:
        np.testing.assert_allclose(np.hypot(*episode.observations[:, :2].T), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("buffer_size", "optimize_memory_usage = true, buffer_size", "does not tell a timeout"),
        (
            "buffer_size",
            "replay_buffer_kwargs = { handle_timeout_termination = false }, buffer_size",
            "does not tell a timeout",
        ),
        ('"DQN"', '"PPO"', "PPO has no replay buffer; train one of DDPG, DQN"),
        ("checkpoint = 301", "checkpoint = 300", "checkpoint 300 is not kept"),
        ("checkpoint = 301", "checkpoint = 301\nepsilon = 0.1", "epsilon means nothing to policy replay"),
        ("checkpoint = 301", "checkpoint = 301\nepisodes = 10", "episodes means nothing to policy replay"),
    ],
)
def test_what_a_buffer_cannot_give_is_refused(recipe_of, old, new, message):
    from dtrl.errors import InputError

    assert old in DQN
    with pytest.raises(InputError, match=message):
        recipe_of((DQN % 100).replace(old, new, 1))
