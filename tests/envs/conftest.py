"""Playing an episode."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def play():
    """(observations, rewards, last info) of one episode in which `choose(env)` gives the actions."""

    def play(env, choose, seed=None, options=None):
        observation, info = env.reset(seed=seed, options=options)
        observations, rewards, ended = [observation], [], False
        while not ended:
            observation, reward, terminated, truncated, info = env.step(choose(env))
            observations.append(observation)
            rewards.append(reward)
            ended = terminated or truncated
        return np.array(observations), np.array(rewards), info

    return play
