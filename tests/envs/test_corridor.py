"""Corridor: every return can be asked for and is achieved, and nothing but the asked return says what to do."""

import itertools
from collections import defaultdict

import gymnasium
import numpy as np
import pytest

from dtrl.envs.corridor import FARTHEST_RETURN, LEFT, RIGHT, STAY

RETURNS = range(-FARTHEST_RETURN, FARTHEST_RETURN + 1)


def demonstrate(env):
    return env.unwrapped.demonstrate()


@pytest.fixture
def corridor():
    return gymnasium.make("dtrl/Corridor-v0").unwrapped


@pytest.mark.parametrize("asked", RETURNS)
def test_the_demonstrator_achieves_any_asked_return_from_any_start_and_stays(play, corridor, asked):
    starts = set()
    for seed in range(100):
        observations, rewards, _ = play(corridor, demonstrate, seed, {"asked_return": asked})
        np.testing.assert_array_equal(rewards, [np.sign(asked)] * abs(asked) + [0] * (len(rewards) - abs(asked)))
        starts.add(observations[0, 0])
    assert len(starts) == len(RETURNS)  # a start is missed by 100 draws with probability 17·(16/17)^100 = 4 %; fixed


def test_at_every_place_the_right_action_is_ambiguous_without_the_asked_return(corridor):
    """In demonstrations, what was seen and done so far is followed by all three actions at the start, and by two on the way."""
    followed_by = defaultdict(set)
    for start, asked in itertools.product((-8, 0, 5), RETURNS):
        corridor.reset(seed=0, options={"asked_return": asked})
        corridor.start = corridor.cell = start
        past = ()
        for _ in range(10):
            action = corridor.demonstrate()
            followed_by[start, past].add(action)
            corridor.step(action)
            past += (action,)
    for (_, past), actions in followed_by.items():
        on_the_way = {STAY, past[-1]} if past else {LEFT, STAY, RIGHT}
        arrived = STAY in past or len(past) == FARTHEST_RETURN
        assert actions == ({STAY} if arrived else on_the_way)


def test_a_policy_that_ignores_the_asked_return_does_the_same_for_all(play, corridor):
    def by_place_and_chance(env):
        return env.action_space.sample() if env.cell % 3 else RIGHT

    for seed in range(5):
        achieved = set()
        for asked in RETURNS:
            corridor.action_space.seed(seed)
            achieved.add(play(corridor, by_place_and_chance, seed, {"asked_return": asked})[1].sum())
        assert len(achieved) == 1


def test_a_return_is_the_way_from_the_start_to_the_end_whatever_was_between(play, corridor):
    corridor.action_space.seed(0)
    for seed in range(50):
        observations, rewards, _ = play(corridor, lambda env: env.action_space.sample(), seed)
        assert rewards.sum() == pytest.approx(16 * (observations[-1, 0] - observations[0, 0]))


def test_the_wish_is_drawn_independently_of_the_start(corridor):
    drawn = np.array([(corridor.reset(seed=seed)[0][0], corridor.asked_return) for seed in range(2_000)])
    assert set(drawn[:, 1]) == set(RETURNS)
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.09  # 4 standard deviations of 1/√2000; seeds are fixed


@pytest.mark.parametrize(("action", "direction"), [(LEFT, -1), (RIGHT, 1)])
def test_walls_stop_the_walker(play, corridor, action, direction):
    for seed in range(30):
        observations, rewards, _ = play(corridor, lambda env: action, seed)
        places = 16 * observations[:, 0] * direction
        np.testing.assert_array_equal(places, np.minimum(places[0] + np.arange(len(places)), 16))
        np.testing.assert_array_equal(rewards, direction * np.diff(places))


def test_the_corridor_closes_after_ten_to_sixteen_steps_by_termination(corridor):
    lengths = []
    for seed in range(200):
        corridor.reset(seed=seed)
        endings = [(False, False)]
        while endings[-1] == (False, False):
            endings.append(corridor.step(STAY)[2:4])
        assert endings[-1] == (True, False)
        lengths.append(len(endings) - 1)
    assert set(lengths) == set(range(10, 17))  # one of 7 is missed by 200 draws with probability 3e-13


@pytest.mark.parametrize("asked", [9, -9, 0.5, "3", None])
def test_a_return_that_cannot_be_achieved_is_refused(corridor, asked):
    with pytest.raises(ValueError, match=rf"asked_return {asked!r} cannot be achieved.*-8 to 8"):
        corridor.reset(options={"asked_return": asked})
