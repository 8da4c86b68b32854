"""The page about a dataset: its numbers, and each warning present where the data deserve it and absent where not."""

import json
import re

import numpy as np
import pytest
from gymnasium import spaces

from dtrl.trajectories import Trajectories, describe
from dtrl.trajectories.columns import Origin
from dtrl.trajectories.describe import env_step_limit, find_problems


def spec(limit):
    return json.dumps({"id": "Some-v0", "max_episode_steps": limit})


def with_columns(data, **columns):
    return Trajectories(
        {**data.columns, **columns}, data.episode_starts, data.observation_space, data.action_space, data.origin
    )


def constant_dimensions(data):
    observations = data.observations.copy()
    observations[:, [0, 2]] = 3
    return with_columns(data, observations=observations)


def held_actions(data, share):
    """The first action of each episode held for a share of its steps."""
    actions = data.actions.copy()
    for start, length in zip(data.episode_starts, data.episode_lengths, strict=True):
        actions[start : start + round(share * length)] = actions[start]
    return with_columns(data, actions=actions)


CASES = {
    "constant reward": (
        lambda make: with_columns(make([5, 6]), rewards=np.full(11, 2, np.float32)),
        "every reward is 2:.* how many steps are left",
    ),
    "one return": (
        lambda make: with_columns(make([2, 2]), rewards=np.array([1, 3, 2, 2], np.float32)),
        "every episode returns 4: .*no effect",
    ),
    "constant dimensions": (
        lambda make: constant_dimensions(make([5, 6])),
        "observations are constant in dimension 0, 2",
    ),
    "constant observation": (
        lambda make: with_columns(make([5, 6], spaces.Discrete(4)), observations=np.full(11, 2)),
        "observations are all 2: there is nothing to learn",
    ),
    "repeated actions": (lambda make: held_actions(make([10, 10]), 0.8), r"7\d% of the actions repeat"),
    "beyond the limit": (
        lambda make: make([5, 6, 9], origin=Origin("x", env_spec=spec(6))),
        r"1 episodes are longer than the timestep table of 6 steps.*max_timestep 9",
    ),
    "single steps": (lambda make: make([1, 4, 1]), "2 episodes have a single step"),
    "cut before the limit": (
        lambda make: make([4, 5, 6], origin=Origin("x", env_spec=spec(6))),
        "1 episodes were truncated before the env's limit",
    ),
}
"""Name → data that deserve one warning, and the warning."""


@pytest.mark.parametrize(("data", "warning"), CASES.values(), ids=CASES)
def test_data_that_deserve_a_warning_get_that_one_alone(random_trajectories, data, warning):
    (problem,) = find_problems(data(random_trajectories))
    assert re.search(warning, problem)


CLEAN = {
    "vectors": lambda make: make([5, 6]),
    "ids": lambda make: make([5, 6], spaces.Discrete(4), spaces.Discrete(3)),
    "half the actions held": lambda make: held_actions(make([11, 11]), 0.5),
    "held ids": lambda make: with_columns(make([9, 9], action_space=spaces.Discrete(3)), actions=np.repeat([0, 1], 9)),
    "truncated at the limit": lambda make: make([4, 6], origin=Origin("x", env_spec=spec(6))),
}


@pytest.mark.parametrize("data", CLEAN.values(), ids=CLEAN)
def test_other_data_get_none(random_trajectories, data):
    assert find_problems(data(random_trajectories)) == []


def test_an_action_that_repeats_the_last_of_the_episode_before_is_no_repetition(random_trajectories):
    data = random_trajectories([1] * 4 + [2])
    held = with_columns(data, actions=np.repeat([[1], [1], [1], [1], [1], [2]], 2, axis=1))
    assert not [problem for problem in find_problems(held) if "repeat" in problem]


def test_a_given_timestep_table_is_compared_instead_of_the_limit(random_trajectories):
    data = random_trajectories([4, 6], origin=Origin("x", env_spec=spec(6)))
    assert find_problems(data, max_timestep=6) == []
    assert "timestep table of 5 steps" in find_problems(data, max_timestep=5)[0]


def test_the_description_counts_what_is_there(random_trajectories):
    data = random_trajectories([3, 5, 4], origin=Origin("tests/some-v0"))
    description = describe(data)
    assert (description.num_episodes, description.num_steps) == (3, 12)
    assert (description.num_terminated, description.num_truncated) == (2, 1)
    assert description.length_quantiles == {
        "min": 3,
        "10%": 3.2,
        "25%": 3.5,
        "50%": 4,
        "75%": 4.5,
        "90%": 4.8,
        "max": 5,
    }
    assert description.return_quantiles["max"] == data.episode_returns.max()
    assert description.reward_range == (data.rewards.min(), data.rewards.max())


def test_an_episode_that_ends_both_ways_counts_as_terminated(random_trajectories):
    data = random_trajectories([3, 3])
    both = with_columns(data, terminations=data.terminations | data.truncations)
    assert (describe(both).num_terminated, describe(both).num_truncated) == (2, 0)


def test_the_page_shows_every_number_and_warning(random_trajectories):
    page = describe(random_trajectories([1, 1_200], origin=Origin("tests/some-v0"))).text()
    assert page.startswith("tests/some-v0\n")
    assert "2 (1 terminated, 1 truncated)" in page
    assert "1,201" in page
    assert "  warning: 1 episodes have a single step." in page
    assert "  no warnings" in describe(random_trajectories([3, 4])).text()


def test_the_dictionary_is_json(random_trajectories):
    description = describe(random_trajectories([3, 4]))
    assert json.loads(json.dumps(description.to_dict()))["num_steps"] == 7


@pytest.mark.parametrize(
    ("env_spec", "limit"),
    [
        (spec(200), 200), (spec(None), None), (spec(0), None), (spec(-5), None), (spec("200"), None),
        (None, None), ("", None), ("not JSON", None), ("[1]", None), ("3", None), ("null", None),
    ],
)  # fmt: skip
def test_the_step_limit_is_read_from_the_spec_and_nothing_else_is_believed(env_spec, limit):
    assert env_step_limit(env_spec) == limit
