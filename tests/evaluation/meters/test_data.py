"""What stands in the way of learning, told before training."""

import dataclasses
import re

import numpy as np
import pytest

from dtrl.config import ModelConfig
from dtrl.evaluation.meters.data import examine_data

LENGTHS = (12, 9, 14, 10, 8, 13)


def said(data, **settings):
    return " ".join(f"{finding.says} {finding.advice}" for finding in examine_data(data, ModelConfig(**settings)))


def changed(data, **columns):
    return dataclasses.replace(data, columns={**data.columns, **columns})


def test_sound_data_get_one_line(random_trajectories):
    (finding,) = examine_data(random_trajectories(LENGTHS), ModelConfig(context_length=4))
    assert finding.fine


@pytest.mark.parametrize(
    ("change", "settings", "says"),
    [
        (lambda d: {"rewards": np.ones(66, np.float32)}, {}, "every reward is 1"),
        (lambda d: {"rewards": np.zeros(66, np.float32)}, {}, "one return level"),
        (lambda d: {"actions": np.ones((66, 2), np.float32)}, {}, "repeat the one before"),
        (lambda d: {"observations": d.observations * np.float32([1, 0, 1])}, {}, "constant in dimension 1"),
        (lambda d: {"observations": d.observations * np.float32([1, 1e-7, 1])}, {}, "hardly vary in dimension 1"),
        (lambda d: {"observations": d.observations / np.float32([1, 1, 1e4]) + np.float32([0, 0, 1])}, {}, "hardly vary in dimension 2"),
        (lambda d: {}, {"context_length": 13}, r"longer than 67% .*padding. --context-length 11"),
        (lambda d: {}, {"max_timestep": 12}, "2 episodes are longer than the timestep table of 12"),
        (lambda d: {}, {"return_scale": 1e3}, "too narrow to be told apart"),
        (lambda d: {}, {"return_scale": 1e-3}, "too wide"),
    ],
)  # fmt: skip
def test_each_problem_is_told(random_trajectories, change, settings, says):
    data = random_trajectories(LENGTHS)
    assert re.search(says, said(changed(data, **change(data)), **{"context_length": 4, **settings}))


def test_few_different_returns_are_told(random_trajectories):
    data = random_trajectories(LENGTHS)
    rewards = np.zeros(66, np.float32)
    rewards[data.episode_ends[:3] - 1] = 1
    assert "only 2 different returns" in said(changed(data, rewards=rewards), context_length=4)


def test_a_filtered_preset_is_judged_by_what_it_learns_from(random_trajectories):
    assert "one return level" in said(random_trajectories(LENGTHS), preset="filtered_bc", context_length=4)
