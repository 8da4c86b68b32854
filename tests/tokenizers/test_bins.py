"""Uniform and quantile bins: the stated error, the ends, repeated values, counts beside NumPy's quantiles."""

import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given

from dtrl.errors import InputError
from dtrl.tokenizers import Quantile, Uniform

NUMBERS = st.floats(-1e4, 1e4, width=32)
COLUMNS = arrays.arrays(np.float32, st.tuples(st.integers(1, 60), st.integers(1, 3)), elements=NUMBERS)
REPEATED = arrays.arrays(
    np.float32, st.integers(1, 200), elements=st.sampled_from([-2, 0, 0.1, 0.5, 1, 1.5, 7]) | NUMBERS
)
BINS = st.integers(2, 300)


def fitted(tokenizer, column):
    tokenizer.fit(column)
    return tokenizer


def there_and_back(tokenizer, column):
    x = torch.from_numpy(np.asarray(column))[None]
    return tokenizer.decode(tokenizer.encode(x))[0].numpy()


# Uniform


@given(COLUMNS, BINS)
def test_uniform_bins_are_off_by_half_a_step_at_most(column, bins):
    tokenizer = fitted(Uniform(column.shape[1:], bins), column)
    low, high = column.min(0).astype(float), column.max(0).astype(float)
    rounding = 1e-6 * (high - low + np.maximum(abs(low), abs(high)))
    error = abs(there_and_back(tokenizer, column).astype(float) - column)
    assert (error <= (high - low) / (2 * (bins - 1)) + rounding).all()


@given(st.floats(-100, 100, width=32), st.floats(0.125, 100, width=32), BINS)
def test_every_uniform_id_is_decoded_to_a_value_of_that_id(low, width, bins):
    column = np.float32([low, low + width])
    tokenizer = fitted(Uniform((), bins), column)
    ids = torch.arange(bins).reshape(1, bins, 1)
    values = tokenizer.decode(ids)
    assert torch.equal(tokenizer.encode(values), ids)
    np.testing.assert_allclose(values[0], np.linspace(*column.astype(float), bins), rtol=1e-6, atol=1e-5)


def test_the_bounds_of_a_box_come_back_exactly_whatever_the_data():
    box = spaces.Box(np.float32([-1, 0.1, -np.inf]), np.float32([1, 0.7, 5]))
    tokenizer = fitted(Uniform((3,), 256, box), np.float32([[0, 0.2, 3], [0.5, 0.3, 4]]))
    ends = np.float32([[-1, 0.1, 3], [1, 0.7, 4]])
    np.testing.assert_array_equal(there_and_back(tokenizer, ends), ends)
    assert tokenizer.encode(torch.from_numpy(ends)[None]).tolist() == [[[0] * 3, [255] * 3]]


def test_a_constant_in_a_bounded_dimension_is_not_rounded_to_the_grid():
    tokenizer = fitted(Uniform((2,), 256, spaces.Box(-1, 1, (2,))), np.float32([[0, 0.5], [0, -0.5]]))
    assert there_and_back(tokenizer, np.float32([[0, 0.5]]))[0, 0] == 0
    assert tokenizer.outside(torch.tensor([[[0.1, 0.1]]])).tolist() == [[[True, False]]]


def test_the_largest_float_is_no_bound():
    largest = float(np.finfo(np.float32).max)
    tokenizer = fitted(Uniform((1,), 3, spaces.Box(-largest, largest, (1,))), np.float32([[-1], [1]]))
    assert (tokenizer.low.item(), tokenizer.high.item()) == (-1, 1)


def test_a_range_that_float32_cannot_hold_is_refused():
    with pytest.raises(InputError, match=r"dimension 1 spans -3.* more than float32 holds"):
        Uniform((2,)).fit(np.float32([[0, -3e38], [1, 3e38]]))


def test_values_beyond_the_range_become_its_ends_and_are_counted():
    tokenizer = fitted(Uniform((2,), 5), np.float32([[0, 0], [4, 8]]))
    x = torch.tensor([[[-1.0, 3e38], [2.0, 8.1], [4.0, 0.0]]])
    assert tokenizer.encode(x).tolist() == [[[0, 4], [2, 4], [4, 0]]]
    assert tokenizer.outside(x).tolist() == [[[True, True], [False, True], [False, False]]]


def test_rounded_to_sixteen_bits_the_extremes_of_the_data_are_still_inside():
    column = np.float32([[0.1003], [0.7001]])
    for tokenizer in (Uniform((1,)), Quantile((1,))):
        assert not fitted(tokenizer, column).bfloat16().outside(torch.from_numpy(column)[None]).any()


@pytest.mark.parametrize("kind", [Uniform, Quantile])
@pytest.mark.parametrize("bins", [1, 0, -3, 2**20 + 1])
def test_a_number_of_bins_that_is_no_choice_is_refused(kind, bins):
    with pytest.raises(InputError, match=rf"bins {bins} is outside 2"):
        kind((1,), bins)


def test_a_box_of_another_shape_is_refused():
    with pytest.raises(InputError, match=r"has not the shape \(2,\)"):
        Uniform((2,), 8, spaces.Box(-1, 1, (3,)))


def test_a_space_without_entries_is_refused():
    with pytest.raises(InputError, match=r"shape \(0,\) have no entry"):
        Uniform((0,))


# Quantile


@given(st.integers(0, 1000), st.integers(2, 40), st.integers(50, 400))
def test_bins_of_different_values_hold_equally_many_and_are_numpys_quantiles(seed, bins, count):
    x = np.random.default_rng(seed).permutation(np.arange(count, dtype=np.float32) ** 2)
    tokenizer = fitted(Quantile((), bins), x)
    ids = tokenizer.encode(torch.from_numpy(x)[None]).flatten().numpy()
    counts = np.bincount(ids, minlength=bins)
    assert abs(counts - count / bins).max() <= 1
    edges = np.quantile(x.astype(float), np.linspace(0, 1, bins + 1)).astype(np.float32)
    np.testing.assert_array_equal(counts, np.histogram(x, edges)[0])
    means = [x[ids == i].mean(dtype=np.float64) for i in range(bins)]
    np.testing.assert_allclose(tokenizer.means[0], means, rtol=1e-6)


@given(REPEATED, BINS)
def test_quantile_bins_of_any_data_are_off_by_the_width_of_the_bin_at_most(x, bins):
    tokenizer = fitted(Quantile((), bins), x)
    ids = tokenizer.encode(torch.from_numpy(x)[None])
    decoded = tokenizer.decode(ids)
    assert ids.max() < bins
    assert torch.equal(tokenizer.encode(decoded), ids)
    starts = np.append(x.min(), tokenizer.edges[0].numpy())
    ends = np.append(starts[1:], np.inf).clip(max=x.max())
    at = ids.flatten().numpy()
    assert (abs(decoded[0].numpy().astype(float) - x) <= ends[at].astype(float) - starts[at]).all()
    # Reachable bins are the first ones, without a gap.
    assert np.array_equal(np.unique(at), np.arange(at.max() + 1))
    assert tokenizer.edges[0].isfinite().sum() == at.max()


@pytest.mark.parametrize(
    ("x", "bins", "means"),
    [
        # a quantile between 1 and 5 and the next one at 5: nothing lies in between
        ([0, 0.5, 1, 5, 5, 5, 6, 7], 3, [0.5, 5.6]),
        # a mean of float64 that float32 would round to the start of the next bin
        ([0.9999, *[1 - 1e-12] * 9_999, *[1.0] * 10], 2, [np.nextafter(np.float32(1), np.float32(0)), 1]),
    ],
)
def test_a_bin_is_not_empty_and_holds_its_mean(x, bins, means):
    tokenizer = fitted(Quantile((), bins), np.float64(x))
    ids = torch.arange(len(means)).reshape(1, -1, 1)
    np.testing.assert_allclose(tokenizer.decode(ids)[0], means, rtol=1e-8 if bins == 2 else 1e-6)
    assert torch.equal(tokenizer.encode(tokenizer.decode(ids)), ids)
    assert tokenizer.edges.isfinite().sum() == len(means) - 1


@given(REPEATED, BINS)
def test_a_value_that_fills_two_bins_comes_back_exactly(x, bins):
    tokenizer = fitted(Quantile((), bins), x)
    values, counts = np.unique(x, return_counts=True)
    often = values[counts >= 2 * len(x) / bins + 1]
    if len(values) <= bins:
        often = values
    np.testing.assert_array_equal(there_and_back(tokenizer, often), often)


@pytest.mark.parametrize("bins", [2, 10, 99, 100, 101, 256])
@pytest.mark.parametrize("of_them", [lambda n, random: np.ones(n), lambda n, random: random.normal(5, 1, n)])
def test_the_zeros_of_a_sparse_reward_stay_zeros(bins, of_them):
    random = np.random.default_rng(0)
    rewards = np.zeros(10_000, np.float32)
    rewards[random.choice(10_000, 100, replace=False)] = of_them(100, random)
    decoded = there_and_back(fitted(Quantile((), bins), rewards), rewards)
    assert (decoded[rewards == 0] == 0).all()
    assert (decoded[rewards != 0] > 0.5).all()


def test_saturated_actions_stay_at_their_bounds():
    x = np.random.default_rng(0).normal(0, 1, (5000, 2)).clip(-1, 1).astype(np.float32)
    decoded = there_and_back(fitted(Quantile((2,), 100), x), x)
    assert (decoded[abs(x) == 1] == x[abs(x) == 1]).all()


def test_means_lose_less_than_the_middles_of_the_bins():
    x = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    tokenizer = fitted(Quantile((), 100), x)
    edges = np.quantile(x, np.linspace(0, 1, 101))
    middles = ((edges[1:] + edges[:-1]) / 2)[tokenizer.encode(torch.from_numpy(x)[None]).flatten()]
    assert np.square(there_and_back(tokenizer, x) - x).mean() < 0.5 * np.square(middles - x).mean()


def test_quantile_values_beyond_the_range_go_to_the_outer_bins_and_are_counted():
    tokenizer = fitted(Quantile((), 4), np.float32(range(100)))
    x = torch.tensor([[-1.0, 0.0, 99.0, 1e9]])
    assert tokenizer.encode(x).flatten().tolist() == [0, 0, 3, 3]
    assert tokenizer.outside(x).tolist() == [[True, False, False, True]]


# On recorded data


@pytest.mark.slow
def test_hoppers_actions_lose_less_than_the_goal(shared_data, monkeypatch):
    import dtrl

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(shared_data / "minari"))
    data = dtrl.load_trajectories("hopper/medium-v0")
    tokenizer = fitted(Uniform((3,), 256, data.action_space), data.actions)
    x = np.array(data.actions)
    decoded = there_and_back(tokenizer, x)
    assert np.sqrt(np.square(decoded - x).mean()) <= 0.003
    assert abs(decoded - x).max() <= 1 / 255 + 1e-6
    ends = abs(x) == 1
    assert ends.any()
    assert np.array_equal(decoded[ends], x[ends])
