"""Dreams: what a model imagines is what it would say of its own tokens, and becomes episodes like any others."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from dtrl.errors import InputError
from dtrl.windows import Windows

ACTED = spaces.Box(-1, 1, (2,))
LENGTHS = (9, 12, 7)


@pytest.fixture
def prompt(random_trajectories):
    return random_trajectories(LENGTHS, spaces.Box(-np.inf, np.inf, (2,)), ACTED)


@pytest.fixture
def policy(prompt, untrained_policy):
    policy = untrained_policy(prompt, preset="tt", bins=5, attention="banded")
    with torch.no_grad():
        policy.model.head_of["terminal"].bias[:, 0] += 3.0  # else hardly any lives for more than three steps
    return policy


@pytest.mark.parametrize("prompt_steps", [1, 4])
def test_a_greedy_dream_is_the_mode_of_each_token_given_those_before(policy, prompt, prompt_steps):
    """Teacher forcing over what was dreamt finds each dreamt token the most probable one."""
    dreamt = policy.sample(prompt, 6, prompt_steps=prompt_steps)
    model, seen = policy.model, 0
    assert dreamt.num_episodes == len(LENGTHS)
    for i in range(dreamt.num_episodes):
        before, after = prompt.episode(i), dreamt.episode(i)
        np.testing.assert_array_equal(after["observations"][:prompt_steps], before["observations"][:prompt_steps])
        np.testing.assert_array_equal(after["actions"][: prompt_steps - 1], before["actions"][: prompt_steps - 1])
        steps = len(after["rewards"])
        assert steps == prompt_steps - 1 + 6 or after["terminations"][-1]
        episode = dreamt.select([i])
        batch = Windows(episode, steps, 1, names=model.sources).gather(np.array([0]))
        with torch.inference_mode():
            distributions = model(batch)
        for name in ("action", "reward", "terminal", "observation"):
            tokens = model.by_name[name].tokenizer.encode(batch.values[name])[0]
            begin = prompt_steps if name == "observation" else prompt_steps - 1
            mode = distributions[name].mode[0]
            assert torch.equal(mode[begin:], tokens[begin:])
            seen += mode[begin:].numel()
    assert seen > 100


def test_a_dream_ends_where_the_model_says_so(policy, prompt):
    with torch.no_grad():
        policy.model.head_of["terminal"].bias[:, 0] -= 2.5
    dreamt = policy.sample(prompt, 50, strategy="sample", seed=3)
    assert dreamt.terminations.sum() + dreamt.truncations.sum() == dreamt.num_episodes
    assert dreamt.terminations.any()
    for i in range(dreamt.num_episodes):
        episode = dreamt.episode(i)
        assert not episode["terminations"][:-1].any()
        if not episode["terminations"][-1]:
            assert len(episode["rewards"]) == 50


def test_a_row_dreams_the_same_alone(policy, prompt):
    together = policy.sample(prompt, 8, strategy="sample", temperature=1.3, seed=1)
    alone = policy.sample(prompt.select([0]), 8, strategy="sample", temperature=1.3, seed=1)
    np.testing.assert_array_equal(together.episode(0)["observations"], alone.episode(0)["observations"])
    again = policy.sample(prompt, 8, strategy="sample", temperature=1.3, seed=2)
    assert not np.array_equal(
        together.episode(0)["actions"], again.episode(0)["actions"][: len(together.episode(0)["actions"])]
    )


def test_what_cannot_be_dreamt_is_refused(policy, prompt, untrained_policy, random_trajectories):
    with pytest.raises(InputError, match="preset dt predicts none; train with --preset tt"):
        untrained_policy(prompt).sample(prompt, 3)
    with pytest.raises(InputError, match="past the window that context window recomputes"):
        untrained_policy(prompt, preset="tt", bins=5, attention="window").sample(prompt, 3)
    with pytest.raises(InputError, match="strategy greedy or sample, not beam"):
        policy.sample(prompt, 3, strategy="beam")
    with pytest.raises(InputError, match="shortest episode has 7 steps, and 8 are asked for"):
        policy.sample(prompt, 3, prompt_steps=8)
    with pytest.raises(InputError, match="steps 0 and prompt_steps 1 must be positive"):
        policy.sample(prompt, 0)
    with pytest.raises(InputError, match="the prompt's action_space is"):
        policy.sample(random_trajectories((5,), prompt.observation_space, spaces.Discrete(2)), 3)
