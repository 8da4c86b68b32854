"""Filters and splits against a loop over the episodes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dtrl
from dtrl.cli import main
from dtrl.collect import write_minari
from dtrl.config import DataConfig
from dtrl.errors import InputError
from dtrl.trajectories.selection import chosen

LENGTHS = (3, 9, 2, 6, 5, 8, 4, 7)


def returns(trajectories):
    return [float(trajectories.episode(i)["rewards"].sum()) for i in range(trajectories.num_episodes)]


@given(
    st.none() | st.floats(-3, 3),
    st.none() | st.floats(-3, 3),
    st.none() | st.integers(1, 9),
    st.none() | st.integers(1, 9),
    st.sampled_from(["all", "terminated", "truncated"]),
)
def test_filters_keep_what_a_loop_keeps(random_trajectories, low, high, short, long, endings):
    if (low is not None and high is not None and low > high) or (short and long and short > long):
        return
    data = random_trajectories(LENGTHS)
    config = DataConfig(min_return=low, max_return=high, min_length=short, max_length=long, endings=endings)
    expected = [
        i
        for i, total in enumerate(data.episode_returns)
        if (low is None or total >= low)
        and (high is None or total <= high)
        and (short is None or LENGTHS[i] >= short)
        and (long is None or LENGTHS[i] <= long)
        and (endings == "all" or data.episode(i)[f"{endings[:-2]}ions"][-1])
    ]
    if not expected:
        with pytest.raises(
            InputError,
            match=r"no episode of unnamed passes .*; its 8 episodes return .* to .* in 2 to 9 steps, and 4 of them",
        ):
            chosen(data, config)
        return
    kept = chosen(data, config)
    assert kept.num_episodes == len(expected)
    for i, j in enumerate(expected):
        for name, values in data.episode(j).items():
            np.testing.assert_array_equal(kept.episode(i)[name], values)


def test_no_filter_copies_nothing(random_trajectories):
    data = random_trajectories(LENGTHS)
    assert chosen(data, DataConfig()) is data


def test_an_episode_that_is_both_terminated_and_truncated_counts_as_terminated(random_trajectories):
    data = random_trajectories((3, 4))
    data.columns["truncations"][2] = True
    assert chosen(data, DataConfig(endings="terminated")).num_steps == 3
    assert chosen(data, DataConfig(endings="truncated")).num_steps == 4


def test_filters_come_before_the_rule_of_short_episodes(random_trajectories):
    data = random_trajectories((1, 4))
    with pytest.raises(InputError, match="fewer than 2 steps"):
        chosen(data, DataConfig())
    assert chosen(data, DataConfig(min_length=2)).num_steps == 4


def test_loading_filters_and_the_fingerprint_knows(random_trajectories):
    write_minari(random_trajectories(LENGTHS), "mine/eight-v0")
    whole = dtrl.load_trajectories("mine/eight-v0")
    long = dtrl.load_trajectories("mine/eight-v0", min_length=6)
    assert sorted(long.episode_lengths) == [6, 7, 8, 9]
    fingerprints = {
        data.origin.fingerprint
        for data in (whole, long, dtrl.load_trajectories("mine/eight-v0", min_length=7), dtrl.load_trajectories("mine/eight-v0", max_length=7))
    }  # fmt: skip
    assert len(fingerprints) == 4
    assert dtrl.load_trajectories("mine/eight-v0", min_length=6).origin.fingerprint == long.origin.fingerprint


def test_the_command_line_shows_what_is_left(random_trajectories, capsys):
    write_minari(random_trajectories(LENGTHS), "mine/eight-v0")
    assert main(["datasets", "show", "mine/eight-v0", "--endings", "truncated", "--max-length", "8"]) == 0
    assert "3 (0 terminated, 3 truncated)" in capsys.readouterr().out
    assert main(["datasets", "show", "mine/eight-v0", "--min-return", "1e9"]) == 2
    assert "no episode of mine/eight-v0 passes min_return 1000000000.0" in capsys.readouterr().err


@given(st.integers(2, 12), st.floats(0.01, 0.99), st.integers(0, 5))
def test_a_split_shares_out_every_episode_once(random_trajectories, episodes, fraction, seed):
    data = random_trajectories(range(1, episodes + 1))  # the length tells the episode
    first, second = data.split(fraction, seed)
    assert sorted([*first.episode_lengths, *second.episode_lengths]) == list(range(1, episodes + 1))
    assert abs(first.num_episodes - fraction * episodes) <= 1
    assert first.num_episodes >= 1 <= second.num_episodes
    for part in (first, second):
        assert (np.diff(part.episode_lengths) > 0).all()
    np.testing.assert_array_equal(data.split(fraction, seed)[0].rewards, first.rewards)


def test_another_seed_is_another_split_and_wrong_fractions_are_refused(random_trajectories):
    data = random_trajectories(range(1, 31))
    assert {tuple(data.split(0.5, seed)[0].episode_lengths) for seed in range(5)}.__len__() == 5
    for fraction in (0, 1, -0.1, 7, float("nan")):
        with pytest.raises(InputError, match=r"fraction .* is outside \(0, 1\)"):
            data.split(fraction)
    with pytest.raises(InputError, match="has 1 episode, and a split needs 2"):
        data.select([0]).split(0.5)
