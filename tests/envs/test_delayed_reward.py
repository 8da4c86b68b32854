"""Delayed reward, as a wrapper and by an id: the same episodes, with the return at their end."""

import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from dtrl.acting.environments import make_environment
from dtrl.envs.delayed_reward import DelayedReward
from dtrl.errors import InputError

INSIDE = [
    ("CartPole-v1", {}),  # terminates
    ("MountainCar-v0", {"max_episode_steps": 25}),  # truncated by a wrapper
    ("Pendulum-v1", {"max_episode_steps": 30}),  # continuous actions, rewards of its own
    ("dtrl/Stitch-v0", {"start": "C"}),
]
inside = pytest.mark.parametrize(("env_id", "env_kwargs"), INSIDE, ids=[name for name, _ in INSIDE])


def sample(env):
    return env.action_space.sample()


def episodes(env, play):
    env.action_space.seed(0)
    return [play(env, sample, seed) for seed in (3, None, None)]


@inside
@pytest.mark.parametrize("form", ["wrapper", "id"])
def test_only_the_time_of_the_rewards_differs(play, form, env_id, env_kwargs):
    plain = gymnasium.make(env_id, **env_kwargs)
    if form == "wrapper":
        delayed = DelayedReward(gymnasium.make(env_id, **env_kwargs))
    else:
        delayed = gymnasium.make("dtrl/DelayedReward-v0", env_id=env_id, env_kwargs=env_kwargs)
    assert delayed.observation_space == plain.observation_space
    assert delayed.action_space == plain.action_space
    for (observations, rewards, _), (expected, earned, _) in zip(
        episodes(delayed, play), episodes(plain, play), strict=True
    ):
        np.testing.assert_array_equal(observations, expected)
        assert (rewards[:-1] == 0).all()
        assert rewards[-1] == pytest.approx(earned.sum())


def test_an_episode_that_was_left_leaves_nothing_to_the_next(play):
    env = DelayedReward(gymnasium.make("CartPole-v1"))
    env.reset(seed=0)
    env.step(0)
    assert play(env, lambda env: 0, seed=0)[1].sum() == play(gymnasium.make("CartPole-v1"), lambda env: 0, 0)[1].sum()


def test_the_wrapper_is_in_the_spec_and_made_again_by_it(play):
    env = DelayedReward(gymnasium.make("CartPole-v1"))
    again = EnvSpec.from_json(env.spec.to_json()).make()
    np.testing.assert_array_equal(play(again, lambda env: 1, seed=1)[1], play(env, lambda env: 1, seed=1)[1])
    with pytest.raises(InputError, match="recorded through wrappers"):  # why there is an id as well
        make_environment(env.spec.to_json())


def test_the_demonstrator_is_that_of_the_environment_inside(play):
    env = gymnasium.make("dtrl/DelayedReward-v0", env_id="dtrl/Stitch-v0", env_kwargs={"start": "C"})
    rewards = play(env, lambda env: env.unwrapped.demonstrate(), seed=0)[1]
    assert rewards.tolist() == [0.0] * 11 + [8.0]
    assert not hasattr(gymnasium.make("dtrl/DelayedReward-v0", env_id="CartPole-v1").unwrapped, "demonstrate")


def test_options_and_pictures_go_through():
    env = gymnasium.make("dtrl/DelayedReward-v0", env_id="dtrl/Stitch-v0", render_mode="rgb_array")
    assert env.reset(options={"start": "C"})[1] == {"start": "C"}
    assert env.render().shape == (120, 84, 3)
    assert env.metadata["render_fps"] == 8


@pytest.mark.parametrize("env_id", ["Nowhere-v0", "this:Corridor-v0", "antigravity:CartPole-v1"])
def test_an_id_that_is_not_registered_is_refused_and_no_module_imported_for_it(env_id):
    with pytest.raises(ValueError, match=f"env_id '{env_id}' is not registered"):
        gymnasium.make("dtrl/DelayedReward-v0", env_id=env_id)
    assert not {"this", "antigravity"} & set(sys.modules)
