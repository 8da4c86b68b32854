"""Corridor: every return can be asked for and is achieved, and nothing but the asked return says what to do."""

import itertools
from collections import defaultdict

import gymnasium
import numpy as np
import pytest

from dtrl.envs.corridor import FARTHEST_RETURN, LEFT, RIGHT, STOP

RETURNS = range(-FARTHEST_RETURN, FARTHEST_RETURN + 1)


def demonstrate(env):
    return env.unwrapped.demonstrate()


@pytest.fixture
def corridor():
    return gymnasium.make("dtrl/Corridor-v0").unwrapped


@pytest.mark.parametrize("asked", RETURNS)
def test_the_demonstrator_achieves_any_asked_return_from_any_start_in_the_fewest_steps(play, corridor, asked):
    starts = set()
    for seed in range(100):
        observations, rewards, _ = play(corridor, demonstrate, seed, {"asked_return": asked})
        assert rewards.sum() == asked
        assert len(rewards) == abs(asked) + 1
        starts.add(observations[0, 0])
    assert len(starts) == len(RETURNS)  # a start is missed by 100 draws with probability 17·(16/17)^100 = 4 %; fixed


def test_fewer_steps_than_the_demonstrators_achieve_nothing_else(play, corridor):
    """By brute force over all ways of four steps: a return r takes |r| moves and the stop."""
    shortest = {}
    for actions in itertools.product(range(3), repeat=4):
        corridor.reset(seed=0)
        total = 0.0
        for step, action in enumerate(actions, 1):
            _, reward, stopped, _, _ = corridor.step(action)
            total += reward
            if stopped:
                shortest[total] = min(step, shortest.get(total, step))
                break
    assert shortest == {r: abs(r) + 1 for r in range(-3, 4)}


def test_at_every_place_the_right_action_is_ambiguous_without_the_asked_return(play, corridor):
    """What was seen and done so far is followed by all three actions at the start, and by two after a step, in demonstrations."""
    seen = defaultdict(set)
    for start, asked in itertools.product(range(5), RETURNS):
        corridor.reset(seed=0, options={"asked_return": asked})
        corridor.start = corridor.cell = start
        past = (f"from {start}",)
        while past[-1] != STOP:
            action = corridor.demonstrate()
            seen[past].add(action)
            corridor.step(action)
            past += (action,)
    for past, actions in seen.items():
        moves = past[1:]
        expected = {STOP, moves[-1]} if moves else {LEFT, STOP, RIGHT}
        assert actions == ({STOP} if len(moves) == FARTHEST_RETURN else expected)


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


@pytest.mark.parametrize(("action", "end"), [(LEFT, -1), (RIGHT, 1)])
def test_walls_stop_the_walker_and_time_cuts_it_off(play, corridor, action, end):
    observations, rewards, _ = play(corridor, lambda env: action, seed=0)
    assert len(rewards) == 32
    assert observations[-1, 0] == end
    assert rewards[-1] == 0
    corridor.reset(seed=0)
    endings = [corridor.step(action)[2:4] for _ in range(32)]
    assert endings == [(False, False)] * 31 + [(False, True)]


@pytest.mark.parametrize("asked", [9, -9, 0.5, "3", None])
def test_a_return_that_cannot_be_achieved_is_refused(corridor, asked):
    with pytest.raises(ValueError, match=rf"asked_return {asked!r} cannot be achieved.*-8 to 8"):
        corridor.reset(options={"asked_return": asked})
