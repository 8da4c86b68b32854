"""What several tests of acting play with."""

import pytest


@pytest.fixture
def policy_for(random_trajectories, untrained_policy, scripted_env):
    """Makes a policy for `scripted_env`, whose episodes have at most 9 steps, and whose actions are discrete: rounding can't show."""

    def make(**options):
        data = random_trajectories([9, 5, 7], scripted_env.observation_space, scripted_env.action_space)
        return untrained_policy(data, **options)

    return make
