"""Columns: returns-to-go against the double loop of their definition, and what goes in comes out again."""

import re

import hypothesis.strategies as st
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given

from dtrl.errors import InputError
from dtrl.trajectories import Trajectories, returns_to_go

BOX = spaces.Box(-1, 1, (2,))
LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=8)
COLUMNS = ("observations", "actions", "rewards", "terminations", "truncations")


def episode(length=3, observation_space=BOX, action_space=BOX, **changes):
    whole = {
        "observations": np.full((length + 1, *observation_space.shape), 0.5),
        "actions": np.zeros((length, *action_space.shape)),
        "rewards": np.arange(length) + 1.0,
        "terminations": np.arange(length) == length - 1,
        "truncations": np.zeros(length, dtype=bool),
    }
    return whole | changes


def with_bad(values, step, bad):
    values = np.array(values, dtype=np.float64)
    values[step] = bad
    return values


# Returns-to-go


@given(LENGTHS, st.sampled_from([1.0, 0.99, 0.5]), st.integers(0, 2**32 - 1))
def test_returns_to_go_are_the_double_sum_of_their_definition(lengths, discount, seed):
    rewards = np.random.default_rng(seed).normal(size=sum(lengths))
    ends = np.cumsum(lengths)
    expected = [
        sum(discount ** (u - t) * rewards[u] for u in range(t, end))
        for end, length in zip(ends, lengths, strict=True)
        for t in range(end - length, end)
    ]
    np.testing.assert_allclose(returns_to_go(rewards, ends - lengths, discount), expected, rtol=1e-12, atol=1e-12)


@given(LENGTHS, st.sampled_from([1.0, 0.9]))
def test_a_return_to_go_falls_by_the_reward(random_trajectories, lengths, discount):
    data = random_trajectories(lengths, discount=discount)
    inside = np.ones(data.num_steps, dtype=bool)
    inside[data.episode_ends - 1] = False
    steps = np.flatnonzero(inside)
    np.testing.assert_allclose(
        data.returns_to_go[steps] - discount * data.returns_to_go[steps + 1], data.rewards[steps], atol=2e-6
    )
    np.testing.assert_array_equal(data.returns_to_go[~inside], data.rewards[~inside])


def test_a_long_episode_keeps_the_digits_of_its_rewards():
    """A float32 running sum of a million times 0.1 is wrong by 958."""
    assert returns_to_go(np.full(1_000_000, 0.1), np.array([0]))[0] == pytest.approx(100_000, rel=1e-9)


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_delayed_rewards_put_the_return_of_the_episode_at_its_last_step(random_trajectories, discount):
    data = random_trajectories([4, 1, 3], delayed=True, discount=discount)
    for start, end, total in zip(data.episode_starts, data.episode_ends, data.episode_returns, strict=True):
        expected = total * discount ** np.arange(end - start)[::-1]
        np.testing.assert_allclose(data.returns_to_go[start:end], expected, rtol=1e-6)


def test_delaying_leaves_the_rewards_and_the_returns_alone(random_trajectories):
    plain, delayed = random_trajectories([4, 2]), random_trajectories([4, 2], delayed=True)
    np.testing.assert_array_equal(plain.rewards, delayed.rewards)
    np.testing.assert_array_equal(plain.episode_returns, delayed.episode_returns)
    np.testing.assert_array_equal(plain.returns_to_go[plain.episode_starts], delayed.returns_to_go[::4])


# Episodes in, episodes out


@given(LENGTHS)
def test_episodes_come_back_as_they_went_in(random_trajectories, lengths):
    data = random_trajectories(lengths)
    episodes = [data.episode(i) for i in range(data.num_episodes)]
    again = Trajectories.from_episodes(episodes, data.observation_space, data.action_space)
    assert [len(e["observations"]) for e in episodes] == [length + 1 for length in lengths]
    assert data.columns.keys() == again.columns.keys()
    for name, column in data.columns.items():
        np.testing.assert_array_equal(column, again.columns[name])
    np.testing.assert_array_equal(data.episode_starts, again.episode_starts)


def test_columns_have_one_dtype_whatever_came_in():
    discrete = spaces.Discrete(3)
    inputs = episode(
        actions=np.array([0, 1, 2], dtype=np.uint8), rewards=np.array([1, 1, 1]), observations=np.ones((4, 2))
    )
    data = Trajectories.from_episodes([inputs], BOX, discrete)
    assert [data.columns[name].dtype for name in COLUMNS] == [np.float32, np.int64, np.float32, bool, bool]
    assert (data.returns_to_go.dtype, data.episode_starts.dtype) == (np.float32, np.int64)
    assert data.final_observations.shape == (1, 2)


def test_terminations_and_truncations_stay_apart(random_trajectories):
    data = random_trajectories([3, 2, 4])
    np.testing.assert_array_equal(np.flatnonzero(data.terminations), [2, 8])
    np.testing.assert_array_equal(np.flatnonzero(data.truncations), [4])


def test_counts_lengths_and_returns_follow_the_episodes(random_trajectories):
    data = random_trajectories([3, 1, 4])
    assert (data.num_steps, data.num_episodes) == (8, 3)
    np.testing.assert_array_equal(data.episode_lengths, [3, 1, 4])
    np.testing.assert_array_equal(data.episode_ends, [3, 4, 8])
    expected = [data.rewards[a:b].sum(dtype=float) for a, b in ((0, 3), (3, 4), (4, 8))]
    np.testing.assert_allclose(data.episode_returns, expected, rtol=1e-12)


def test_no_episodes_are_an_empty_set():
    data = Trajectories.from_episodes([], BOX, BOX)
    assert (data.num_steps, data.num_episodes) == (0, 0)
    assert data.episode_starts.dtype == np.int64
    assert len(data.episode_returns) == len(data.returns_to_go) == 0


# Selecting


@given(LENGTHS, st.data())
def test_selected_episodes_are_those_asked_for_in_the_order_asked(random_trajectories, lengths, draw):
    data = random_trajectories(lengths, seed=1)
    wanted = draw.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=10))
    chosen = data.select(wanted)
    assert chosen.num_episodes == len(wanted)
    for i, j in enumerate(wanted):
        for name, values in chosen.episode(i).items():
            np.testing.assert_array_equal(values, data.episode(j)[name])


def test_a_selection_is_a_copy_and_keeps_the_settings(random_trajectories):
    data = random_trajectories([3, 3], discount=0.9, delayed=True)
    chosen = data.select([1])
    chosen.rewards[:] = 99
    assert (data.rewards < 99).all()
    assert (chosen.discount, chosen.delayed, chosen.origin) == (0.9, True, data.origin)


@pytest.mark.parametrize(("fraction", "count"), [(0.01, 1), (0.3, 3), (0.5, 5), (1.0, 10)])
def test_the_best_are_the_highest_returns_in_their_own_order(random_trajectories, fraction, count):
    data = random_trajectories([4, 2, 5, 3, 1, 6, 2, 2, 3, 4])
    threshold = np.sort(data.episode_returns)[-count]
    expected = data.episode_returns[data.episode_returns >= threshold]
    np.testing.assert_array_equal(data.best(fraction).episode_returns, expected)


# What is refused

ERRORS = {
    "no final observation": ({"observations": np.zeros((3, 2))}, "episode 1 .* has 3 observations for 3 rewards"),
    "too few actions": ({"actions": np.zeros((2, 2))}, r"actions of episode 1 .* shape \(2, 2\).*\(3, 2\)"),
    "too wide": ({"observations": np.zeros((4, 3))}, r"observations of episode 1 .* shape \(3, 3\).*\(3, 2\)"),
    "too few terminations": ({"terminations": np.zeros(2, bool)}, r"terminations of episode 1 .* \(2,\).*\(3,\)"),
    "NaN reward": ({"rewards": with_bad(np.zeros(3), 2, np.nan)}, "rewards of episode 1 .* at step 2"),
    "infinite action": ({"actions": with_bad(np.zeros((3, 2)), 1, -np.inf)}, "actions of episode 1 .* at step 1"),
    "NaN observation": ({"observations": with_bad(np.zeros((4, 2)), 0, np.nan)}, "observations of episode 1 .* step 0"),
    "NaN at the end": ({"observations": with_bad(np.zeros((4, 2)), 3, np.nan)}, "observations of episode 1 .* step 3"),
    "above float32": ({"rewards": with_bad(np.zeros(3), 1, 1e39)}, "rewards of episode 1 .* at step 1"),
}


@pytest.mark.parametrize(("changes", "message"), ERRORS.values(), ids=ERRORS)
def test_a_broken_episode_is_named_with_its_field_and_step(changes, message):
    with pytest.raises(InputError, match=message):
        Trajectories.from_episodes([episode(), episode(**changes)], BOX, BOX)


@pytest.mark.parametrize("bad", [0.5, np.nan, 1e300])
def test_a_broken_id_of_a_discrete_space_is_named(bad):
    broken = episode(actions=with_bad(np.zeros(3), 1, bad))
    with pytest.raises(
        InputError, match=rf"actions of episode 0 .* hold {re.escape(str(bad))} at step 1.*whole numbers"
    ):
        Trajectories.from_episodes([broken], BOX, spaces.Discrete(2))


def test_an_episode_of_no_step_is_refused():
    with pytest.raises(InputError, match="episode 1 of the given episodes has no step"):
        Trajectories.from_episodes([episode(), episode(0), episode()], BOX, BOX)


def test_rewards_may_be_a_column_vector():
    data = Trajectories.from_episodes([episode(rewards=np.array([[1.0], [2.0], [3.0]]))], BOX, BOX)
    np.testing.assert_array_equal(data.returns_to_go, [6, 5, 3])


def test_arrays_are_episodes_laid_end_to_end(random_trajectories):
    data = random_trajectories((3, 1, 4))
    spaces_ = data.observation_space, data.action_space
    steps = [data.columns[name] for name in ("observations", "actions", "rewards", "terminations", "truncations")]
    whole = Trajectories.from_arrays(*steps, *spaces_, final_observations=data.final_observations)
    np.testing.assert_array_equal(whole.episode_starts, data.episode_starts)
    for name, values in data.columns.items():
        np.testing.assert_array_equal(whole.columns[name], values)
    bare = Trajectories.from_arrays(*steps, *spaces_)
    np.testing.assert_array_equal(bare.final_observations, data.observations[[2, 3, 7]])


def test_arrays_may_be_cut_by_offsets_and_end_unfinished(random_trajectories):
    data = random_trajectories((8,))
    nothing, spaces_ = np.zeros(8, bool), (data.observation_space, data.action_space)
    steps = data.observations, data.actions, data.rewards, nothing, nothing
    whole = Trajectories.from_arrays(*steps, *spaces_)
    np.testing.assert_array_equal(np.flatnonzero(whole.truncations), [7])
    cut = Trajectories.from_arrays(*steps, *spaces_, episode_starts=[0, 3])
    np.testing.assert_array_equal(cut.episode_lengths, [3, 5])
    np.testing.assert_array_equal(np.flatnonzero(cut.truncations), [2, 7])
    assert not nothing.any()
    with pytest.raises(InputError, match="actions have 7 rows for 8 rewards"):
        Trajectories.from_arrays(data.observations, data.actions[:7], *steps[2:], *spaces_)


SEEN = spaces.Dict(
    place=spaces.Box(-9, 9, (2,)), inner=spaces.Dict(word=spaces.Text(3, charset="ab"), kind=spaces.Discrete(3))
)
ACTED = spaces.Tuple([spaces.Discrete(2), spaces.Dict(force=spaces.Box(-1, 1, (1,)))])
PARTS = {
    "observations": {
        "place": np.arange(10.0).reshape(5, 2),
        "inner": {"word": ["a", "b", "ab", "bb", "aba"], "kind": np.arange(5) % 3},
    },
    "actions": (np.array([0, 1, 1, 0, 1]), {"force": np.linspace(-1, 1, 5)[:, None]}),
    "rewards": np.arange(5.0),
    "terminations": np.arange(5) == 2,
    "truncations": np.zeros(5, bool),
}
FINAL = {"place": np.ones((2, 2)), "inner": {"word": ["b", "a"], "kind": [2, 2]}}


def test_arrays_of_nested_spaces_are_nested_alike():
    data = Trajectories.from_arrays(**PARTS, observation_space=SEEN, action_space=ACTED, final_observations=FINAL)
    assert data.episode_lengths.tolist() == [3, 2]
    np.testing.assert_array_equal(data.observations["place"], PARTS["observations"]["place"])
    assert data.observations["inner"]["word"].tolist() == [[1, 0, 0], [2, 0, 0], [1, 2, 0], [2, 2, 0], [1, 2, 1]]
    np.testing.assert_array_equal(data.actions[0], PARTS["actions"][0])
    np.testing.assert_allclose(data.actions[1]["force"], PARTS["actions"][1]["force"])
    assert data.final_observations["inner"]["word"].tolist() == [[2, 0, 0], [1, 0, 0]]
    bare = Trajectories.from_arrays(**PARTS, observation_space=SEEN, action_space=ACTED)
    assert bare.final_observations["inner"]["kind"].tolist() == [2, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": (np.zeros(5), {"force": np.zeros((4, 1))})}, "actions/1/force have 4 rows for 5 rewards"),
        ({"actions": (np.zeros(5), {})}, "part 'force' of .* is missing"),
        ({"observations": np.zeros((5, 2))}, "give a dict of its parts"),
        ({"final_observations": {**FINAL, "place": np.ones((1, 2))}}, "final_observations/place have 1 rows for 2 episodes"),
        ({"actions": (0, {"force": np.zeros((5, 1))})}, "actions/0 are 0, and the space is .*array with a row a step"),
        ({"actions": ([[0], [0, 1]], {"force": np.zeros((5, 1))})}, "actions/0 are no array of rows of one shape"),
    ],
    ids=["rows", "part", "kind", "final", "number", "ragged"],
)  # fmt: skip
def test_nested_arrays_that_do_not_fit_are_named_by_their_part(changes, message):
    with pytest.raises(InputError, match=message):
        Trajectories.from_arrays(**{**PARTS, **changes}, observation_space=SEEN, action_space=ACTED)


def test_a_dict_is_no_array_of_a_simple_space():
    with pytest.raises(InputError, match="give an array with a row a step"):
        Trajectories.from_arrays(**PARTS, observation_space=BOX, action_space=ACTED)
