"""Stitch: the returns that its docstring states, and that the best way is made of recorded pieces and recorded nowhere."""

from itertools import pairwise

import gymnasium
import numpy as np
import pytest

from dtrl.envs.stitch import GOAL_REWARDS, MAZE, MOVES, PLACES


def recorded(env):
    return env.unwrapped.demonstrate()


def best(env):
    return env.unwrapped.demonstrate(best=True)


@pytest.fixture
def stitch():
    return gymnasium.make("dtrl/Stitch-v0").unwrapped


@pytest.mark.parametrize(
    ("start", "choose", "goal", "achieved", "steps"),
    [("A", recorded, "B", 2, 8), ("C", recorded, "D", 8, 12), ("A", best, "D", 11, 9), ("C", best, "D", 8, 12)],
)
def test_demonstrations_have_the_stated_returns(play, stitch, start, choose, goal, achieved, steps):
    observations, rewards, info = play(stitch, choose, options={"start": start})
    assert (rewards.sum(), len(rewards)) == (achieved, steps)
    np.testing.assert_allclose(observations[0] * [9, 6], PLACES[start], atol=1e-6)
    np.testing.assert_allclose(observations[-1] * [9, 6], PLACES[goal], atol=1e-6)
    assert info["start"] == start


def best_returns():
    """The best return from every cell, by value iteration on the maze as it is drawn."""
    cells = {(r, c) for r, line in enumerate(MAZE) for c, mark in enumerate(line) if mark != "#"}
    goals = {PLACES[name]: reward for name, reward in GOAL_REWARDS.items()}
    value = {cell: 0.0 if cell in goals else -100.0 for cell in cells}
    for _ in range(len(cells)):
        for cell in cells - set(goals):
            near = [(cell[0] + r, cell[1] + c) for r, c in MOVES]
            value[cell] = max(-1 + goals.get(n, 0) + value[n] for n in near if n in cells)
    return value


def test_no_behaviour_does_better_than_the_best_demonstrator():
    value = best_returns()
    assert (value[PLACES["A"]], value[PLACES["C"]]) == (11, 8)


def test_the_best_way_is_stitched_from_steps_of_both_recorded_ways_and_is_in_neither(play, stitch):
    def way(choose, start):
        return [tuple(cell) for cell in play(stitch, choose, options={"start": start})[0].tolist()]

    a_to_b, c_to_d, a_to_d = way(recorded, "A"), way(recorded, "C"), way(best, "A")
    shared = set(a_to_b) & set(c_to_d)
    assert len(shared) == 5
    assert set(pairwise(a_to_d)) <= set(pairwise(a_to_b)) | set(pairwise(c_to_d))
    assert a_to_d not in (a_to_b, c_to_d)
    # Where the two part, the state is the same, and the recorded actions are not.
    fork = a_to_b[a_to_b.index(max(shared, key=a_to_b.index))]
    assert a_to_b[a_to_b.index(fork) + 1] != c_to_d[c_to_d.index(fork) + 1] == a_to_d[a_to_d.index(fork) + 1]


def test_both_starts_are_drawn_unless_one_is_named(stitch):
    drawn = [stitch.reset(seed=seed)[1]["start"] for seed in range(200)]
    assert 70 < drawn.count("A") < 130  # 100 ± 30 is 4.2 standard deviations; seeds are fixed
    only_c = gymnasium.make("dtrl/Stitch-v0", start="C")
    assert {only_c.reset(seed=seed)[1]["start"] for seed in range(20)} == {"C"}
    assert only_c.reset(options={"start": "A"})[1]["start"] == "A"
    assert only_c.reset()[1]["start"] == "C"


def test_walls_hold_and_time_cuts_off(stitch):
    before, _ = stitch.reset(options={"start": "A"})
    steps = [stitch.step(0) for _ in range(50)]
    np.testing.assert_array_equal([step[0] for step in steps], [before] * 50)
    assert [step[1] for step in steps] == [-1] * 50
    assert [step[2:4] for step in steps] == [(False, False)] * 49 + [(False, True)]


def test_an_unknown_start_is_refused(stitch):
    with pytest.raises(ValueError, match=r"start 'B' is not in the maze; use one of \['A', 'C'\]"):
        stitch.reset(options={"start": "B"})
    with pytest.raises(ValueError, match="start 'B'"):
        gymnasium.make("dtrl/Stitch-v0", start="B")
