"""How a behaviour acts, and the episodes it plays. Each has its own seeds, so that it is the same whoever plays it, and when."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from dtrl.collect.array_policy import ArrayPolicy, fitted, load_array_policy, seen
from dtrl.collect.episodes import Episode, kept
from dtrl.collect.recipes import Behaviour, Recipe
from dtrl.errors import InputError
from dtrl.spaces import stack

Act = Callable[["gymnasium.Env[Any, Any]", Any, np.random.Generator], Any]
"""An environment, its current observation and a generator of random numbers to an action."""


def load_file(behaviour: Behaviour, recipe: Recipe, observation_space: Any, action_space: Any) -> ArrayPolicy:
    """The policy of a behaviour's file. InputError if it cannot be read, or cannot act in the spaces."""
    from dtrl.collect.stable_baselines import load_zip, with_statistics

    assert behaviour.path is not None
    path = Path(recipe.source).parent / behaviour.path
    if path.suffix == ".zip":
        policy = load_zip(
            path, observation_space, action_space, behaviour.deterministic, images=behaviour.normalize is None
        )
    else:
        policy = load_array_policy(path, behaviour.snapshot)
    if behaviour.normalize:
        policy = with_statistics(policy, Path(recipe.source).parent / behaviour.normalize)
    return fitted(policy, observation_space, action_space, f"policy {path} in {recipe.env}")


def check_policy(behaviour: Behaviour, policy: ArrayPolicy, where: str) -> None:
    """Refuse a temperature for a policy whose actions cannot be drawn."""
    if behaviour.temperature is not None and not policy.has_spread:
        raise InputError(
            f"{where}: temperature needs a policy that draws its actions, this one's head is {policy.head} without log_std; use noise."
        )


def actor(behaviour: Behaviour, policy: ArrayPolicy | None) -> Act:
    """How a behaviour acts; `policy` is None for random actions and demonstrators."""
    temperature = 0.0 if behaviour.deterministic else behaviour.temperature

    def act(env: "gymnasium.Env[Any, Any]", observation: Any, random: np.random.Generator) -> Any:
        space = env.action_space
        if behaviour.policy == "random" or (behaviour.epsilon and random.random() < behaviour.epsilon):
            return space.sample()
        if policy is None:
            action = env.unwrapped.demonstrate(**behaviour.options)  # type: ignore[attr-defined]
        else:
            action = policy.action(seen(observation, env.observation_space), random, temperature)
            if isinstance(space, gymnasium.spaces.Discrete):
                action = np.int64(space.start + action)
        if behaviour.noise:
            assert isinstance(space, gymnasium.spaces.Box)
            action = action + behaviour.noise * (space.high - space.low) / 2 * random.standard_normal(space.shape)
            action = np.clip(action, space.low, space.high)
        return np.asarray(action, space.dtype) if isinstance(space, gymnasium.spaces.Box) else action

    return act


def seeds_of(recipe_seed: int, index: int, number: int) -> list[int]:
    """Seeds of the environment, of its action space and of the policy, for an episode of a behaviour.

    An action space seeded like its environment would draw the very numbers that chose the initial state, hence several. They don't depend on how
    many episodes there are, so a recipe with more of them keeps those it had."""
    seeds: list[int] = np.random.SeedSequence([recipe_seed, index, number]).generate_state(3).tolist()
    return seeds


def play(env: "gymnasium.Env[Any, Any]", act: Act, seeds: list[int], options: dict[str, Any] | None = None) -> Episode:
    """One episode from its first step to its end; `options` are those of `reset`."""
    env.action_space.seed(seeds[1])
    random = np.random.default_rng(seeds[2])
    observation = env.reset(seed=seeds[0], options=copy.deepcopy(options) or None)[0]
    observations, steps, done = [kept(observation)], [], False
    while not done:
        action = act(env, observation, random)
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(kept(observation))
        steps.append((kept(action), float(reward), bool(terminated), bool(truncated)))
        done = bool(terminated or truncated)
    actions, rewards, terminations, truncations = zip(*steps, strict=True)
    return Episode(
        seed=seeds[0],
        observations=stack(env.observation_space, observations),
        actions=stack(env.action_space, actions),
        rewards=np.array(rewards, np.float64),
        terminations=np.array(terminations),
        truncations=np.array(truncations),
    )
