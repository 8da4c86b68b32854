"""The numbers behind the plots of a dataset, against numpy and against data whose distribution is known."""

import dataclasses

import numpy as np
import pytest
from gymnasium import spaces

from dtrl.trajectories.distributions import action_histograms, counts_of_values, coverage, histogram, running_mean


def with_columns(data, **columns):
    return dataclasses.replace(data, columns={**data.columns, **columns})


def box(width):
    return spaces.Box(-np.inf, np.inf, (width,))


def test_a_histogram_is_numpys():
    values = np.random.default_rng(0).gamma(2, 100, 500)
    counts, edges = np.histogram(values, bins=40)
    found = histogram("return", values)
    np.testing.assert_array_equal(found.counts, counts)
    np.testing.assert_array_equal(found.edges, edges)
    assert found.values is None


def test_few_values_have_a_bin_each():
    values = np.repeat([-8, 0, 1, 8], [2, 3, 4, 5])
    assert histogram("return", values).counts.tolist() == [2, 0, 7, 5]
    every = np.arange(-8, 9)
    assert histogram("return", np.repeat(every, every + 9)).counts.tolist() == list(range(1, 18))


@pytest.mark.parametrize(
    "values", [[3.0], [0.0] * 5, [1e30, 1e30], [0.1, 0.1 + 1e-17], np.float32([1e8] * 3), [7.0, 7.0 * (1 + 1e-12)]]
)
def test_a_constant_is_one_value(values):
    found = histogram("return", values)
    assert found.counts.tolist() == [len(values)]
    assert found.edges is None
    assert found.values == pytest.approx([values[0]])


def test_numbers_that_numpy_cannot_tell_apart_in_their_own_type_are_counted():
    values = np.float32([1e8, 1e8 + 8, 1e8 + 16])  # neighbours in float32
    assert histogram("return", values, bins=40).counts.sum() == 3


def test_values_that_never_occur_are_counted_as_none():
    found = counts_of_values("actions", np.array([5, 3, 5, 5]), spaces.Discrete(4, start=3))
    assert found.values.tolist() == [3, 4, 5, 6]
    assert found.counts.tolist() == [1, 0, 3, 0]


def test_of_a_large_space_only_what_occurs_is_listed():
    found = counts_of_values("actions", np.array([900, 3, 900]), spaces.Discrete(1_000))
    assert (found.values.tolist(), found.counts.tolist()) == ([3, 900], [1, 2])


def test_every_dimension_of_the_actions_is_counted(random_trajectories):
    data = random_trajectories([30, 20], action_space=box(3))
    found = action_histograms(data)
    assert [h.name for h in found] == ["actions[0]", "actions[1]", "actions[2]"]
    for i, h in enumerate(found):
        counts, edges = np.histogram(data.actions[:, i].astype(np.float64), bins=40)
        np.testing.assert_array_equal(h.counts, counts)
        np.testing.assert_array_equal(h.edges, edges)


def test_only_the_first_dimensions_of_many_are_counted(random_trajectories):
    data = random_trajectories([5], action_space=box(3_000))
    assert [h.name for h in action_histograms(data)] == [f"actions[{i}]" for i in range(16)]


def test_discrete_actions_are_counted_by_value(random_trajectories):
    data = random_trajectories([40], action_space=spaces.Discrete(3))
    (found,) = action_histograms(data)
    assert found.name == "actions"
    np.testing.assert_array_equal(found.counts, np.bincount(data.actions, minlength=3))


def test_actions_of_several_parts_are_counted_part_by_part(random_trajectories):
    data = random_trajectories([6])
    columns = {name: column for name, column in data.columns.items() if name != "actions"}
    columns |= {"actions/grip": np.array([0, 1, 1, 0, 1, 1]), "actions/arm": np.arange(12.0).reshape(6, 2)}
    space = spaces.Dict(grip=spaces.Discrete(3), arm=box(2))
    found = action_histograms(dataclasses.replace(data, columns=columns, action_space=space))
    assert [h.name for h in found] == ["actions/grip", "actions/arm[0]", "actions/arm[1]"]
    assert found[0].counts.tolist() == [2, 4, 0]


def test_coverage_finds_the_plane_in_which_data_lie(random_trajectories):
    """Ten dimensions, made of two hidden ones: all of the variance is in two components, and distances are those in ten."""
    data = random_trajectories([150, 50], box(10))
    random = np.random.default_rng(1)
    hidden, mixing = random.normal(size=(200, 2)), random.normal(size=(2, 10))
    observations = hidden @ mixing
    observations /= observations.std(axis=0)  # coverage standardises, and distances shall stay
    found = coverage(with_columns(data, observations=observations))
    assert sum(found.explained) == pytest.approx(1)
    assert found.explained[0] >= found.explained[1] > 0
    np.testing.assert_array_equal(found.steps, np.arange(200))

    def distances(points):
        return np.linalg.norm(points[:, None] - points[None], axis=2)

    np.testing.assert_allclose(distances(found.points), distances(observations), atol=1e-8)


def test_coverage_agrees_with_the_eigenvectors_of_the_correlation_matrix(random_trajectories):
    data = random_trajectories([400], box(5))
    observations = data.observations @ np.random.default_rng(2).normal(size=(5, 5))
    found = coverage(with_columns(data, observations=observations))
    values, vectors = np.linalg.eigh(np.corrcoef(observations.T))
    standardized = (observations - observations.mean(axis=0)) / observations.std(axis=0)
    expected = standardized @ vectors[:, [-1, -2]]
    np.testing.assert_allclose(found.explained, values[[-1, -2]] / 5, rtol=1e-6)
    np.testing.assert_allclose(np.abs(found.points), np.abs(expected), atol=1e-5)


def test_units_decide_nothing(random_trajectories):
    data = random_trajectories([60], box(4))
    scaled = with_columns(data, observations=data.observations * np.array([1, 1e6, 1e-6, 3]) + 5)
    np.testing.assert_allclose(coverage(scaled).points, coverage(data).points, atol=1e-3)


def test_each_sampled_step_has_the_return_of_its_episode(random_trajectories):
    data = random_trajectories([4_000, 3_000, 2_000], box(2))
    found = coverage(data)
    assert len(found.steps) == 5_000
    assert (np.diff(found.steps) > 0).all()
    np.testing.assert_array_equal(found.returns, np.repeat(data.episode_returns, data.episode_lengths)[found.steps])
    np.testing.assert_array_equal(coverage(data).points, found.points)


@pytest.mark.parametrize(
    ("lengths", "space"),
    [
        ([1], box(3)),  # one step
        ([7], box(1)),  # no second component
        ([3], box(5_000)),
        ([300, 300], box(5_000)),
        ([9, 9], spaces.Discrete(4)),
        ([1], spaces.Discrete(4)),
        ([3_000, 3_000], spaces.Discrete(100_000)),
    ],
)
def test_coverage_of_odd_data_is_finite(random_trajectories, lengths, space):
    found = coverage(random_trajectories(lengths, space))
    assert found.points.shape == (len(found.steps), 2)
    assert np.isfinite(found.points).all()
    assert 0 <= sum(found.explained) <= 1 + 1e-9
    assert len(found.steps) >= min(100, sum(lengths))


def test_constant_dimensions_add_nothing(random_trajectories):
    data = random_trajectories([50], box(3))
    wide = np.concatenate([data.observations, np.full((50, 2), 0.1)], axis=1)
    np.testing.assert_allclose(coverage(with_columns(data, observations=wide)).points, coverage(data).points)
    nothing = coverage(with_columns(data, observations=np.full((50, 3), np.float32(0.1))))
    assert nothing.explained == (0, 0)
    assert (nothing.points == 0).all()


def test_ids_lie_apart_and_equal_ids_together(random_trajectories):
    data = random_trajectories([90], spaces.Discrete(3))
    found = coverage(data)
    for one in range(3):
        np.testing.assert_allclose(np.ptp(found.points[data.observations == one], axis=0), 0, atol=1e-9)
    assert len(np.unique(found.points.round(6), axis=0)) == 3
    assert sum(found.explained) == pytest.approx(1)  # three points lie in a plane


@pytest.mark.parametrize("reach", [0, 1, 4, 100])
def test_the_running_mean_is_the_mean_of_the_neighbours(reach):
    values = np.random.default_rng(0).normal(size=23)
    expected = [values[max(0, i - reach) : i + reach + 1].mean() for i in range(23)]
    np.testing.assert_allclose(running_mean(values, reach), expected)
