"""Oracles: scipy's own numbers, closed forms, and a Monte-Carlo check of the interval's coverage."""

import dataclasses
import math
import re

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from dtrl.errors import InputError
from dtrl.evaluation.references import REFERENCE_RETURNS, Reference, reference_for, with_error
from dtrl.evaluation.statistics import interquartile_mean, mean_ci95, normalized, rank_correlation

returns = st.lists(st.floats(-1e4, 1e4, allow_subnormal=False), min_size=1, max_size=12)


def test_the_interval_holds_the_true_mean_about_as_often_as_documented():
    # 200 evaluations of 20 episodes each whose returns end at a ceiling, as CartPole's do. Were the true coverage 0.90
    # (the least that the docstring promises for 20), fewer than 160 hits would have probability 7.3e-6; seeds are fixed.
    true_mean = 600 * (1 - math.exp(-500 / 600))
    hits = 0
    for seed in range(200):
        values = np.minimum(500, np.random.default_rng(seed).exponential(600, size=20))
        low, high = mean_ci95(values)[1]
        hits += low <= true_mean <= high
    assert scipy.stats.binom.cdf(159, 200, 0.90) < 7.3e-6
    assert 160 <= hits <= 199


def test_the_interval_of_many_values_is_the_normal_interval():
    values = np.random.default_rng(0).normal(100, 15, size=2_000)
    mean, (low, high) = mean_ci95(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(2_000)
    assert mean == pytest.approx(values.mean(), rel=1e-12)
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)


@settings(max_examples=25)
@given(returns)
def test_the_interval_surrounds_the_mean_and_lies_within_the_values(values):
    mean, (low, high) = mean_ci95(values)
    rounding = 1e-9 * (1 + max(map(abs, values)))
    assert min(values) <= low <= mean + rounding
    assert mean - rounding <= high <= max(values)


@pytest.mark.parametrize("values", [[7.25], [0.1] * 10, [500.0] * 3])
def test_values_without_spread_have_themselves_as_interval(values):
    assert mean_ci95(values) == (values[0], (values[0], values[0]))


@pytest.mark.parametrize(
    "values", [[0.0, 1e-200], [500.0, 500.0 + 1e-12, 500.0], [0.0, 1e200, -1e200], [0.0] * 500 + [1.0]]
)
def test_hardly_any_spread_and_far_too_much_still_have_an_interval(values):
    mean, (low, high) = mean_ci95(values)
    assert min(values) <= low <= np.nextafter(mean, np.inf)
    assert np.nextafter(mean, -np.inf) <= high <= max(values)


def test_the_same_seed_gives_the_same_interval_and_another_seed_nearly_the_same():
    values = np.random.default_rng(1).gamma(2, 100, size=30)
    (low, high), again, other = mean_ci95(values, seed=3)[1], mean_ci95(values, seed=3)[1], mean_ci95(values, seed=4)[1]
    assert (low, high) == again != other
    assert other == pytest.approx((low, high), abs=0.1 * (high - low))


def test_a_value_that_is_not_finite_leaves_no_interval():
    mean, ends = mean_ci95([1.0, math.nan, 2.0])
    assert np.isnan([mean, *ends]).all()


def test_many_values_are_resampled_in_little_memory():
    import tracemalloc

    tracemalloc.start()
    mean_ci95(np.arange(2_000.0))  # 9,999 resamples at once would be 160 MB
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


def test_no_values_are_an_error():
    for summary in (mean_ci95, interquartile_mean):
        with pytest.raises(InputError, match=r"shape \(0,\)"):
            summary([])


@settings(deadline=None)
@given(returns)
def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end(values):
    cut = len(values) // 4
    middle = sorted(values)[cut : len(values) - cut]
    assert interquartile_mean(values) == pytest.approx(sum(middle) / len(middle), rel=1e-9, abs=1e-9)


def test_the_interquartile_mean_ignores_two_odd_episodes_of_eight():
    assert interquartile_mean([-1e9, 3, 4, 5, 5, 6, 7, 1e9]) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("asked", "achieved", "expected"),
    [
        ([1, 2, 3], [10, 20, 1000], 1.0),
        ([1, 2, 3], [3, 2, 1], -1.0),
        ([1, 2, 3, 4], [10, 30, 20, 40], 1 - 6 * 2 / (4 * 15)),  # Spearman: 1 − 6 Σd² / n(n² − 1)
        ([1, 2, 3], [5, 5, 5], None),
        ([2, 2], [1, 3], None),
        ([1], [1], None),
        ([], [], None),
        ([1, 2], [1, math.nan], None),
    ],
)
def test_rank_correlation(asked, achieved, expected):
    assert rank_correlation(asked, achieved) == (None if expected is None else pytest.approx(expected))


def test_asked_and_achieved_must_pair_up():
    with pytest.raises(InputError, match="2 returns asked for and 1 achieved"):
        rank_correlation([1, 2], [1])


def test_normalised_scores_are_0_for_random_and_100_for_the_expert():
    scale = Reference(-1205.0, -145.3, "test")
    np.testing.assert_allclose(normalized([-1205.0, -145.3, -675.15], scale), [0, 100, 50])
    assert normalized(-145.3, scale).shape == ()


@pytest.mark.parametrize("env_id", REFERENCE_RETURNS)
def test_shipped_references_are_measured_and_put_the_expert_above_random(env_id):
    reference = REFERENCE_RETURNS[env_id]
    assert reference.expert > reference.random
    assert re.search(r"\b\d+00 episodes", reference.source)
    assert reference.random_error is not None
    assert reference.expert_error is not None
    # the gap between the two is known to a tenth
    assert 2 * math.hypot(reference.random_error, reference.expert_error) < 0.1 * (reference.expert - reference.random)
    assert "/" not in reference.source
    assert reference_for(env_id) is reference


def test_the_documentation_has_the_references_that_are_shipped(repository):
    text = (repository / "docs" / "datasets.md").read_text(encoding="utf-8")
    for env_id, r in REFERENCE_RETURNS.items():
        low, high = with_error(r.random, r.random_error), with_error(r.expert, r.expert_error)
        assert f"| `{env_id}` | {low} | {high} | {r.source} |\n" in text


def test_a_dataset_with_the_references_of_the_table_knows_how_they_were_measured():
    known = REFERENCE_RETURNS["Hopper-v5"]
    assert reference_for("Hopper-v5", known.random, known.expert) == known
    rounded = reference_for("Hopper-v5", known.random - 0.05, known.expert + 0.05)
    assert rounded == dataclasses.replace(known, random=known.random - 0.05, expert=known.expert + 0.05)
    assert reference_for("Hopper-v5", known.random + known.random_error, known.expert).random_error is None
    assert reference_for("Walker2d-v5", known.random, known.expert) == Reference(
        known.random, known.expert, "the dataset's own reference scores"
    )


def test_the_scale_in_words():
    assert Reference(17.3, 3486.0, "test", 1.6, 48.0).text() == "0 is random (17.3 ± 1.6), 100 is expert (3,486 ± 48)"
    assert Reference(-1.0, 12_000.0, "test", 0.0).text() == "0 is random (-1 ± 0), 100 is expert (12,000)"
    assert Reference(0.03, 1.0, "test", 0.00123, 123.4).text() == "0 is random (0.03 ± 0.0012), 100 is expert (1 ± 123)"


def test_the_dataset_s_own_references_win():
    own = reference_for("Hopper-v5", -20.27, 3234.3)
    assert (own.random, own.expert) == (-20.27, 3234.3)
    assert "dataset" in own.source


@pytest.mark.parametrize("pair", [(None, 3.0), (1.0, None), (2.0, 2.0), (math.nan, 3.0), (0.0, math.inf)])
def test_references_that_make_no_scale_fall_back_to_the_table(pair):
    assert reference_for("Hopper-v5", *pair) is REFERENCE_RETURNS["Hopper-v5"]
    assert reference_for("Unknown-v0", *pair) is None
    assert reference_for(None, *pair) is None


def test_a_reference_without_a_scale_is_an_error():
    with pytest.raises(InputError, match=r"5\.0 \(random\) and 5\.0 \(expert\)"):
        Reference(5.0, 5.0, "test")
