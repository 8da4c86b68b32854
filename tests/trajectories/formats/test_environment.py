"""What a file's reader learns from the environment that the user names."""

import subprocess
import sys

import pytest

from dtrl.errors import InputError
from dtrl.trajectories.formats.environment import look_up


def test_spaces_and_steps_are_those_of_the_environment():
    found = look_up("CartPole-v1")
    assert (found.observation_space.shape, found.action_space.n, found.max_episode_steps) == ((4,), 2, 500)


def test_the_package_of_an_environment_is_imported_for_it():
    pytest.importorskip("minigrid")
    code = "from dtrl.trajectories.formats.environment import look_up; print(look_up('MiniGrid-Empty-5x5-v0').action_space)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "Discrete(7)"


def test_an_unknown_environment_is_answered_with_the_nearest():
    with pytest.raises(InputError, match=r"environment 'CartPol-v1' cannot be made .* did you mean 'CartPole-v[01]'"):
        look_up("CartPol-v1")
