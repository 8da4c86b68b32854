"""The identity test of the package: in the corridor, what a Decision Transformer achieves is what it is asked for.

All of the chain takes part: recorded episodes, windows, training, acting, evaluation. An error in any of them (a return-to-go that
is one step off, a token in the wrong place, a cache that remembers too much) makes the equality fail; and behaviour cloning, which
does not see the return, must fail too, or the test would prove nothing."""

import gymnasium
import numpy as np
import pytest

import dtrl
from dtrl.envs.corridor import FARTHEST_RETURN
from dtrl.envs.delayed_reward import DelayedReward
from dtrl.trajectories.columns import Origin

RETURNS = list(range(-FARTHEST_RETURN, FARTHEST_RETURN + 1))
TINY = {"updates": 150, "context_length": 4, "width": 32, "layers": 1, "heads": 1, "learning_rate": 3e-3}
EPISODES = 20
"""Episodes for each asked return, on the same starts."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demonstrations():
    """Six episodes for each of the 17 returns, about 1,300 steps."""
    env = gymnasium.make("dtrl/Corridor-v0")
    episodes = []
    for seed, asked in enumerate(RETURNS * 6):
        observation, _ = env.reset(seed=seed, options={"asked_return": asked})
        observations, steps, ended = [observation], [], False
        while not ended:
            action = env.unwrapped.demonstrate()
            observation, reward, terminated, truncated, _ = env.step(action)
            observations.append(observation)
            steps.append((action, reward, terminated, truncated))
            ended = terminated or truncated
        columns = zip(("actions", "rewards", "terminations", "truncations"), zip(*steps, strict=True), strict=True)
        episodes.append({"observations": observations, **dict(columns)})
    origin = Origin("corridor", env.spec.to_json())
    return dtrl.Trajectories.from_episodes(episodes, env.observation_space, env.action_space, origin=origin)


def achieved(policy, **options):
    """(asked returns, episodes) returns, and the rank correlation of asked and mean achieved ones."""
    report = dtrl.evaluate(policy, target_returns=RETURNS, episodes=EPISODES, seed=1, **options)
    return np.array([target.returns for target in report.targets]), report.rank_correlation


ASKED = np.repeat(RETURNS, EPISODES).reshape(len(RETURNS), EPISODES)
CONTEXTS = {"window": "window", "block": "window", "banded": "banded", "full": "full"}
"""Context of acting → attention of training."""


@pytest.fixture(scope="module")
def trained(demonstrations):
    """Attention → a Decision Transformer, each trained once."""
    return {attention: dtrl.train(demonstrations, attention=attention, **TINY) for attention in set(CONTEXTS.values())}


@pytest.mark.parametrize(("context", "attention"), CONTEXTS.items(), ids=CONTEXTS)
def test_a_decision_transformer_achieves_exactly_what_it_is_asked_for(trained, context, attention):
    """With 20 seeds of training (`window`), every one of 6,800 episodes was exact."""
    returns, correlation = achieved(trained[attention].variant(context=context))
    np.testing.assert_array_equal(returns, ASKED)
    assert correlation == 1


def test_a_decision_transformer_that_hears_of_no_reward_walks_on(trained):
    """Hence the equality is owed to the return-to-go of every step. A wall is 8 away at least, and makes some exact."""
    returns, _ = achieved(trained["window"], env=lambda: DelayedReward(gymnasium.make("dtrl/Corridor-v0")))
    assert (np.abs(returns) >= np.abs(ASKED)).all()
    assert (returns == ASKED)[ASKED != 0].mean() < 0.05


@pytest.mark.parametrize("greedy", [True, False], ids=["greedy", "sampled"])
@pytest.mark.parametrize("preset", ["bc", "filtered_bc"])
def test_behaviour_cloning_does_the_same_whatever_it_is_asked_for(demonstrations, preset, greedy):
    policy = dtrl.train(demonstrations, preset=preset, **TINY)
    returns, correlation = achieved(policy, deterministic=greedy)
    np.testing.assert_array_equal(returns, returns[:1].repeat(len(RETURNS), axis=0))
    assert correlation is None
    # Each of the 20 starts has one return, so it can be right for one of the 17 asked returns at most.
    assert (returns == ASKED).mean() <= 1 / len(RETURNS)
