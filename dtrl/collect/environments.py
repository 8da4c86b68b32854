"""The environment of a recipe: made if Gymnasium knows its id, and whether it suits the algorithm and every behaviour."""

from typing import Any

import gymnasium
import numpy as np

import dtrl
from dtrl.collect.recipes import ALGORITHMS, Recipe
from dtrl.errors import InputError, did_you_mean
from dtrl.registration import registered
from dtrl.spaces import check_space


def environment_spec(recipe: Recipe) -> "gymnasium.envs.registration.EnvSpec":
    """What Gymnasium has registered under the recipe's id."""
    return registered(recipe.env, recipe.env_options, f"{recipe.source}: ")


def make_environment(recipe: Recipe, spec: Any = None) -> "gymnasium.Env[Any, Any]":
    """The environment, with the recipe's `env_options`. InputError if a package is missing or an option is refused."""
    spec = spec or environment_spec(recipe)
    try:
        env = gymnasium.make(spec, disable_env_checker=True, **recipe.env_options)
    except (gymnasium.error.Error, AssertionError, AttributeError, ImportError, TypeError, ValueError) as error:
        options = f" with env_options {recipe.env_options}" if recipe.env_options else ""
        raise InputError(
            f"{recipe.source}: env {recipe.env!r} cannot be made{options} ({error}); install what it needs, or correct the options."
        ) from error
    return env if recipe.observation_key is None else OnePart(env, recipe.observation_key, recipe.source)


class OnePart(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Of Dict observations, one part. A dataset names the environment without it, since a reader only needs the values."""

    def __init__(self, env: "gymnasium.Env[Any, Any]", key: str, where: str) -> None:
        super().__init__(env)
        space = env.observation_space
        parts = dict(space.spaces) if isinstance(space, gymnasium.spaces.Dict) else {}
        if key not in parts:
            env.close()
            raise InputError(
                f"{where}: observation_key {key!r} is no part of {space}; {did_you_mean(key, list(parts))}"
            )
        self.key = key
        self.observation_space = parts[key]

    def observation(self, observation: Any) -> Any:
        return observation[self.key]


def check_environment(recipe: Recipe) -> None:
    """Whether the environment exists and suits the algorithm and every behaviour."""
    env = make_environment(recipe)
    space = env.action_space
    check_space(env.observation_space, "observation", recipe.env)
    check_space(space, "action", recipe.env)
    demonstrates = hasattr(env.unwrapped, "demonstrate")
    env.close()
    kind = type(space).__name__
    if recipe.algorithm and kind not in ALGORITHMS[recipe.algorithm.name].actions:
        able = [name for name, algorithm in ALGORITHMS.items() if kind in algorithm.actions]
        raise InputError(
            f"{recipe.source}: {recipe.algorithm.name} cannot act in the {kind} actions of {recipe.env}; use one of {able}."
        )
    for number, behaviour in enumerate(recipe.behaviour, 1):
        where = f"{recipe.source}: behaviour {number}"
        if behaviour.policy == "demonstrator" and not (recipe.env in dtrl.ENVIRONMENTS and demonstrates):
            raise InputError(
                f"{where}: {recipe.env} has no demonstrate() method of dtrl's own; use policy random, checkpoint or file."
            )
        if behaviour.noise and not (
            isinstance(space, gymnasium.spaces.Box) and np.isfinite([space.low, space.high]).all()
        ):
            raise InputError(
                f"{where}: noise needs bounded Box actions, {recipe.env} has {space}; use epsilon for Discrete ones."
            )
