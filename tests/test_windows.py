"""Windows against the loop that they replace, and draws against the probabilities that they state."""

from unittest import mock

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from scipy.stats import chisquare

from dtrl.windows import Batch, ResidentWindows, Windows, episode_weights, fitted_chunks

SAMPLING = ("step", "episode", "return")
LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=5)
SPACES = {"vectors": (None, None), "ids": (spaces.Discrete(5), spaces.Discrete(3))}
FIELDS = {"return": "returns_to_go", "observation": "observations", "action": "actions"}
ALPHA = 1e-4
"""A correct sampler fails a chi-square test of this level once in 10,000 seeds; the seeds are fixed."""


def one_window(data, start, length, h=1):
    """(values, timesteps, valid) of the window that begins at row `start`, block by block of h steps."""
    episode = max(i for i in range(data.num_episodes) if data.episode_starts[i] <= start)
    end = data.episode_ends[episode]
    values = {field: np.zeros((length, *getattr(data, name).shape[1:])) for field, name in FIELDS.items()}
    if h > 1:
        values["action"] = np.zeros((length, h, *data.actions.shape[1:]))
    timesteps, valid = np.zeros(length), np.zeros(length, dtype=bool)
    for k in range(length):
        row = start + k * h
        if row < end:
            valid[k], timesteps[k] = True, row - data.episode_starts[episode]
            for field, name in FIELDS.items():
                column = getattr(data, name)
                if field == "action" and h > 1:
                    values[field][k] = [column[row + i] if row + i < end else column[end - 1] for i in range(h)]
                else:
                    values[field][k] = column[row]
    return values, timesteps, valid


def frequencies(windows, updates):
    rows = np.concatenate([windows.draw(update) for update in range(updates)])
    return np.bincount(rows, minlength=windows.trajectories.num_steps)


# Cutting and padding


@pytest.mark.parametrize("kinds", SPACES.values(), ids=SPACES)
@given(LENGTHS, st.integers(1, 12), st.integers(1, 4))
def test_windows_are_those_of_a_loop_over_steps(random_trajectories, kinds, lengths, length, h):
    data = random_trajectories(lengths, *kinds)
    starts = np.arange(data.num_steps)
    batch = Windows(data, length, batch_size=1, block_length=h).gather(starts)
    for i in starts:
        values, timesteps, valid = one_window(data, i, length, h)
        for field, expected in values.items():
            np.testing.assert_array_equal(batch.values[field][i], expected)
        np.testing.assert_array_equal(batch.timesteps[i], timesteps)
        np.testing.assert_array_equal(batch.valid[i], valid)


@given(LENGTHS, st.integers(1, 12), st.sampled_from(SAMPLING))
def test_a_window_never_leaves_its_episode_and_is_padded_on_the_right(random_trajectories, lengths, length, sampling):
    ids = random_trajectories(lengths, spaces.Discrete(len(lengths) + 1, start=1))
    ids.columns["observations"][:] = 1 + np.repeat(np.arange(len(lengths)), lengths)  # every step shows its episode
    batch = Windows(ids, length, batch_size=16, sampling=sampling).batch(0)
    episode = batch.values["observation"]
    assert batch.valid[:, 0].all()
    assert (batch.valid[:, 1:] <= batch.valid[:, :-1]).all()
    np.testing.assert_array_equal(episode, episode[:, :1] * batch.valid)
    steps_left = torch.tensor(lengths)[episode[:, 0] - 1] - batch.timesteps[:, 0]
    np.testing.assert_array_equal(batch.valid.sum(1), steps_left.clamp(max=length))


@pytest.mark.parametrize("kinds", SPACES.values(), ids=SPACES)
@given(LENGTHS, st.integers(1, 12), st.integers(1, 4))
def test_windows_gathered_on_a_device_are_the_same(random_trajectories, kinds, lengths, length, h):
    windows = Windows(random_trajectories(lengths, *kinds), length, batch_size=1, block_length=h)
    starts = np.arange(windows.trajectories.num_steps)
    expected = windows.gather(starts)
    batch = ResidentWindows(windows, torch.device("cpu")).gather(torch.from_numpy(starts))
    assert batch.values.keys() == expected.values.keys()
    pairs = [(batch.values[name], value) for name, value in expected.values.items()]
    for one, other in [*pairs, (batch.timesteps, expected.timesteps), (batch.valid, expected.valid)]:
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_a_batch_has_the_shapes_and_types_that_the_model_takes(random_trajectories):
    batch = Windows(random_trajectories([5, 7]), 4, batch_size=3).batch(0)
    shapes = {name: (tuple(x.shape), x.dtype) for name, x in batch.values.items()}
    assert shapes == {
        "return": ((3, 4), torch.float32),
        "observation": ((3, 4, 3), torch.float32),
        "action": ((3, 4, 2), torch.float32),
    }
    assert (batch.timesteps.dtype, batch.valid.dtype) == (torch.int64, torch.bool)


@pytest.mark.parametrize("most", [1, 40, 2**24])
@given(LENGTHS, st.integers(2, 5))
def test_every_step_is_in_a_chunk_that_tokenizers_are_fitted_to(random_trajectories, most, lengths, h):
    data = random_trajectories(lengths, spaces.Discrete(2))
    column = np.arange(data.num_steps)
    with mock.patch("dtrl.windows.MOST_FITTED", most):
        chunks = fitted_chunks(data, column, h)
    assert set(chunks.flatten()) == set(column)
    assert len(chunks) == data.num_steps if most == 2**24 else len(chunks) <= data.num_steps
    episode = np.repeat(np.arange(len(lengths)), lengths)
    for chunk in chunks:
        assert len(set(episode[chunk])) == 1
        expected = np.minimum(chunk[0] + np.arange(h), data.episode_ends[episode[chunk[0]]] - 1)
        np.testing.assert_array_equal(chunk, expected)
    if most == 1:  # as few as can be: every h-th step
        assert len(chunks) == sum(-(-length // h) for length in lengths)


def test_cutting_windows_leaves_read_only_columns_alone(random_trajectories):
    data = random_trajectories([3, 3])
    for column in data.columns.values():
        column.flags.writeable = False
    before = data.returns_to_go.copy()
    Windows(data, 4, batch_size=8).batch(0)
    np.testing.assert_array_equal(data.returns_to_go, before)


@pytest.mark.parametrize("pieces", [1, 2, 4, 8])
def test_a_split_batch_is_the_same_batch_in_equal_pieces(random_trajectories, pieces):
    batch = Windows(random_trajectories([5, 7]), 4, batch_size=8).batch(0)
    parts = batch.split(pieces)
    assert [len(part.valid) for part in parts] == [8 // pieces] * pieces
    for name, whole in batch.values.items():
        assert torch.equal(torch.cat([part.values[name] for part in parts]), whole)
    assert torch.equal(torch.cat([part.timesteps for part in parts]), batch.timesteps)
    assert torch.equal(torch.cat([part.valid for part in parts]), batch.valid)


@pytest.mark.parametrize("kinds", SPACES.values(), ids=SPACES)
def test_clearing_puts_zeros_into_the_padding_and_touches_nothing_else(random_trajectories, kinds):
    batch = Windows(random_trajectories([5, 7], *kinds), 4, batch_size=8).batch(0)
    spoilt = Batch({n: x.clone() for n, x in batch.values.items()}, batch.timesteps.clone(), batch.valid)
    for x in (*spoilt.values.values(), spoilt.timesteps):
        x[~batch.valid] = torch.nan if x.is_floating_point() else -9
    cleared = spoilt.cleared()
    for name, x in batch.values.items():
        assert torch.equal(cleared.values[name], x)
        assert cleared.values[name].dtype == x.dtype
    assert torch.equal(cleared.timesteps, batch.timesteps)


def test_a_moved_batch_has_the_same_content(random_trajectories):
    batch = Windows(random_trajectories([5, 7]), 4, batch_size=8).batch(0)
    moved = batch.to(torch.device("meta"))
    assert moved.values.keys() == batch.values.keys()
    assert all(x.is_meta for x in (*moved.values.values(), moved.timesteps, moved.valid))


# Drawing


@pytest.mark.parametrize("sampling", SAMPLING)
def test_a_batch_depends_on_seed_and_number_alone(random_trajectories, sampling):
    data = random_trajectories([5, 7, 30])
    make = lambda seed: Windows(data, 4, batch_size=32, sampling=sampling, seed=seed)  # noqa: E731
    one, other = make(3), make(3)
    backwards = [other.draw(update) for update in range(5)[::-1]][::-1]
    np.testing.assert_array_equal([one.draw(update) for update in range(5)], backwards)
    assert not np.array_equal(one.draw(0), one.draw(1))
    assert not np.array_equal(one.draw(0), make(4).draw(0))
    assert not np.array_equal(one.draw(4), make(4).draw(3))


def expected_frequencies(data, sampling):
    """Probability of each row, from the words of the docstring."""
    rank = {episode: place + 1 for place, episode in enumerate(np.argsort(data.episode_returns))}
    of_episode = {
        "step": data.episode_lengths / data.num_steps,
        "episode": np.full(data.num_episodes, 1 / data.num_episodes),
        "return": np.array([rank[i] * n for i, n in enumerate(data.episode_lengths)], dtype=float),
    }[sampling]
    of_episode /= of_episode.sum()
    return np.repeat(of_episode / data.episode_lengths, data.episode_lengths)


@pytest.mark.parametrize("sampling", SAMPLING)
def test_rows_are_drawn_with_the_stated_probabilities(random_trajectories, sampling):
    """Chi-square over 42,000 draws and 21 rows; fails a correct sampler with probability 1e-4."""
    data = random_trajectories([1, 4, 2, 6, 8])
    counts = frequencies(Windows(data, 4, batch_size=1_000, sampling=sampling), updates=42)
    assert chisquare(counts, expected_frequencies(data, sampling) * counts.sum()).pvalue > ALPHA


def test_the_chi_square_tells_the_samplings_apart(random_trajectories):
    """The control: with as many draws, each of the three is found not to be another."""
    data = random_trajectories([1, 4, 2, 6, 8])
    for sampling in SAMPLING:
        counts = frequencies(Windows(data, 4, batch_size=1_000, sampling=sampling), updates=42)
        for other in set(SAMPLING) - {sampling}:
            assert chisquare(counts, expected_frequencies(data, other) * counts.sum()).pvalue < ALPHA


def test_successive_batches_are_not_correlated(random_trajectories):
    """Correlation of 20,000 pairs of draws: its standard deviation is 0.0071, so 0.03 is passed with probability 2e-5."""
    windows = Windows(random_trajectories([1_000]), 4, batch_size=200)
    rows = np.stack([windows.draw(update) for update in range(101)])
    for one, other in ((rows[:-1], rows[1:]), (rows[:100, :-1], rows[:100, 1:])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.03


def test_equal_returns_are_ranked_in_the_order_of_the_episodes(random_trajectories):
    data = random_trajectories([2, 2, 2])
    data.rewards[:] = [1, 1, 0, 2, 0, 0]
    np.testing.assert_array_equal(episode_weights(data, "return"), [2 * 2, 3 * 2, 1 * 2])


# Messages


def test_a_batch_names_the_episodes_it_drew_from(random_trajectories):
    windows = Windows(random_trajectories([3] * 40), 4, batch_size=64)
    episodes = np.unique(windows.draw(5) // 3)
    assert windows.describe(5) == f"episodes {', '.join(map(str, episodes[:8]))} and {len(episodes) - 8} more"
    assert Windows(random_trajectories([3]), 4, batch_size=2).describe(0) == "episodes 0"
