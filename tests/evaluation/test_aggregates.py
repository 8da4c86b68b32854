"""Oracles: scipy's numbers, every resample there is, and the definitions of Agarwal et al. (2021) written out over runs × tasks."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from dtrl.errors import InputError
from dtrl.evaluation.aggregates import (
    AGGREGATES,
    aggregate,
    iqm,
    mean,
    paired_difference,
    performance_profile,
    probability_of_improvement,
)


@pytest.fixture
def scores():
    """Five runs on each of three datasets of different levels."""
    random = np.random.default_rng(0)
    return [random.normal(level, 10, size=5) for level in (20, 60, 95)]


def all_resamples(columns):
    """Every choice of runs with replacement, of every dataset: what the bootstrap samples from."""
    each = [[np.array(c) for c in itertools.product(x, repeat=len(x))] for x in columns]
    return itertools.product(*each)


def test_aggregates_are_those_of_the_definitions(scores):
    matrix = np.array(scores).T  # runs × tasks, as the paper's library has them
    expected = {
        "iqm": scipy.stats.trim_mean(matrix, 0.25, axis=None),
        "mean": matrix.mean(axis=0).mean(),
        "median": np.median(matrix.mean(axis=0)),
        "optimality_gap": 100 - np.minimum(matrix, 100).mean(),
    }
    assert expected.keys() == AGGREGATES.keys()
    for name, statistic in AGGREGATES.items():
        assert aggregate(scores, statistic, resamples=10).value == pytest.approx(expected[name], rel=1e-12)


@pytest.mark.parametrize("counts", [(1,), (3,), (4, 5), (2, 7, 4)])
def test_the_iqm_of_datasets_with_different_numbers_of_runs_is_that_of_all_runs_together(counts):
    columns = [np.random.default_rng(n).normal(size=n) for n in counts]
    assert iqm(columns) == pytest.approx(scipy.stats.trim_mean(np.concatenate(columns), 0.25), rel=1e-12)


@pytest.mark.parametrize("statistic", AGGREGATES.values(), ids=AGGREGATES)
def test_the_interval_is_that_of_all_resamples_there_are(statistic):
    # Two datasets with 3 runs have 27² = 729 equally probable resamples. The share of 20,000 draws below the true 2.5 % point has a standard deviation
    # of 0.11 %; that it is off by the 1 % allowed has probability < 1e-15. The seed is fixed.
    columns = [np.array([1.0, 4.0, 9.0]), np.array([50.0, 52.0, 90.0])]
    every = np.sort([float(statistic(list(choice))) for choice in all_resamples(columns)])
    found = aggregate(columns, statistic, resamples=20_000)
    for end, percent in ((found.low, 2.5), (found.high, 97.5)):
        low, high = np.percentile(every, [percent - 1, percent + 1])
        assert low - 1e-9 <= end <= high + 1e-9


def test_runs_are_drawn_within_their_dataset():
    """Runs without spread in their dataset leave none in the mean, however far apart the datasets are."""
    found = aggregate([[10.0] * 4, [90.0] * 4], mean)
    assert (found.low, found.value, found.high) == (50, 50, 50)


def test_the_probability_of_improvement_is_mann_whitneys_u_over_the_pairs(scores):
    others = [np.round(x / 10) * 10 for x in np.random.default_rng(1).normal(60, 30, size=(3, 4))]
    tied = [np.round(x / 10) * 10 for x in scores]
    u = [scipy.stats.mannwhitneyu(x, y).statistic / (len(x) * len(y)) for x, y in zip(tied, others, strict=True)]
    found = probability_of_improvement(tied, others)
    assert found.value == pytest.approx(np.mean(u), rel=1e-12)
    assert found.low <= found.value <= found.high
    back = probability_of_improvement(others, tied)
    assert found.value + back.value == pytest.approx(1)
    assert probability_of_improvement(tied, tied).value == 0.5
    assert probability_of_improvement([x + 1e6 for x in tied], tied).to_list() == [1, 1, 1]


def test_what_a_seed_does_to_both_methods_leaves_no_trace_in_the_paired_difference(scores):
    found = paired_difference([x + 3 for x in scores], scores)
    np.testing.assert_allclose(found.to_list(), 3)


def test_the_paired_difference_of_many_runs_has_the_interval_of_the_t_test():
    random = np.random.default_rng(2)
    x = random.normal(50, 30, size=400)
    y = x - 5 + random.normal(0, 4, size=400)
    found, t = paired_difference([x], [y]), scipy.stats.ttest_rel(x, y).confidence_interval(0.95)
    assert found.value == pytest.approx((x - y).mean())
    assert (found.low, found.high) == pytest.approx((t.low, t.high), abs=0.1 * (t.high - t.low))


def test_a_paired_difference_of_iqms_is_the_difference_of_the_iqms(scores):
    other = [x[::-1] * 0.5 for x in scores]
    found = paired_difference(scores, other, iqm)
    assert found.value == pytest.approx(iqm(scores) - iqm(other))


def test_a_performance_profile_counts_runs_above_thresholds(scores):
    at = [-1e9, 15.0, 60.0, 1e9]
    profile = performance_profile(scores, at)
    expected = [np.mean([[score > t for score in x] for x in scores]) for t in at]
    np.testing.assert_allclose(profile.share, expected)
    assert (profile.low <= profile.share).all()
    assert (profile.share <= profile.high).all()
    assert (profile.low[0], profile.high[0], profile.low[-1], profile.high[-1]) == (1, 1, 0, 0)
    assert profile.low[1] < profile.high[1]


def test_the_same_seed_gives_the_same_interval(scores):
    assert aggregate(scores, seed=3) == aggregate(scores, seed=3) != aggregate(scores, seed=4)


@pytest.mark.parametrize("bad", [[], [[]], [[1.0], []], [[[1.0]]], [[1.0, math.nan]]])
def test_scores_that_cannot_be_summarised_are_refused(bad):
    with pytest.raises(InputError, match=r"cannot be summarised|are not all finite"):
        aggregate(bad)


def test_methods_that_do_not_pair_up_are_refused(scores):
    with pytest.raises(InputError, match=r"\[5, 5, 5\] scores a dataset and \[5, 5\] do not pair up"):
        paired_difference(scores, scores[:2])
    with pytest.raises(InputError, match="3 datasets and on 2"):
        probability_of_improvement(scores, scores[:2])
    with pytest.raises(InputError, match="thresholds"):
        performance_profile(scores, [])
