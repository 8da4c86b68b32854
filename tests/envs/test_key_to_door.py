"""Key-to-Door: what its docstring says of rooms, key, door and returns."""

import gymnasium
import numpy as np
import pytest

from dtrl.envs.key_to_door import UP


def sample(env):
    return env.action_space.sample()


def demonstrate(env):
    return env.unwrapped.demonstrate()


@pytest.fixture
def key_to_door():
    return gymnasium.make("dtrl/KeyToDoor-v0")


def test_the_demonstrator_always_succeeds(play, key_to_door):
    assert [play(key_to_door, demonstrate, seed)[1].sum() for seed in range(50)] == [1.0] * 50


@pytest.mark.slow
def test_random_actions_open_the_door_with_the_key_in_three_episodes_of_a_hundred(play, key_to_door):
    """3.1 % in 20,000 episodes. In 3,000 the success rate has a standard deviation of 0.32 %: for a rate of 3.1 %, the chance to
    leave [2 %, 4.5 %] is 2e-4; and the seeds are fixed."""
    env = key_to_door.unwrapped  # the wrappers would double the time
    env.action_space.seed(1)
    successes = sum(play(env, sample, seed)[1].sum() for seed in range(3_000))
    assert 0.02 < successes / 3_000 < 0.045


def test_after_the_key_room_nothing_shows_whether_the_agent_holds_the_key(play, key_to_door):
    def flee_the_key(env):
        action = demonstrate(env)
        return action ^ 1 if env.unwrapped.room == 0 else action  # the opposite direction: 0 and 1, 2 and 3

    with_key, rewards_with, info_with = play(key_to_door, demonstrate, seed=0)
    without_key, rewards_without, info_without = play(key_to_door, flee_the_key, seed=0)
    np.testing.assert_array_equal(with_key[with_key[:, 0] == 0], without_key[without_key[:, 0] == 0])
    assert (info_with["has_key"], info_without["has_key"]) == (True, False)
    assert (rewards_with.sum(), rewards_without.sum()) == (1, 0)


def test_the_door_room_does_not_depend_on_what_was_done_before(play, key_to_door):
    entered = [play(key_to_door, choose, seed=5)[0][24] for choose in (demonstrate, sample, lambda env: UP)]
    np.testing.assert_array_equal(entered, entered[:1] * 3)
    assert entered[0][2] == 1
    assert entered[0][8] == 1


def test_the_key_is_seen_until_it_is_taken_and_the_door_until_the_end(play, key_to_door):
    observations, _, _ = play(key_to_door, demonstrate, seed=0)
    key_room, empty_room, door_room = (observations[observations[:, room] == 1] for room in range(3))
    steps_to_the_key = int(key_room[:, 5].sum())
    assert key_room[0, 5] == 1
    assert (key_room[steps_to_the_key:, 5:8] == 0).all()
    assert (empty_room[:, 5:8] == 0).all()
    assert (door_room[:, 5] == 1).all()
    np.testing.assert_array_equal(observations[-1, 3:5], observations[-1, 6:8])


def test_an_episode_ends_by_termination_after_thirty_six_steps(key_to_door):
    key_to_door.reset(seed=0)
    endings = [key_to_door.step(demonstrate(key_to_door) ^ 1)[2:4] for _ in range(36)]  # away from the key and the door
    assert endings == [(False, False)] * 35 + [(True, False)]
