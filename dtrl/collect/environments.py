"""The environment of a recipe: made if Gymnasium knows its id, and whether it suits the algorithm and every behaviour."""

import copy
import inspect
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from dtrl.collect.reading import TYPE_NAMES, checked
from dtrl.collect.recipes import ALGORITHMS, Behaviour, Recipe
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
    try:
        check_spaces_and_behaviours(recipe, env)
    finally:
        env.close()


def check_spaces_and_behaviours(recipe: Recipe, env: "gymnasium.Env[Any, Any]") -> None:
    space = env.action_space
    check_space(env.observation_space, "observation", recipe.env)
    check_space(space, "action", recipe.env)
    policies = [b.policy for b in recipe.behaviour if b.policy not in ("random", "demonstrator")]
    composite = isinstance(env.observation_space, (spaces.Dict, spaces.Tuple, spaces.Text))
    if composite and (recipe.algorithm or policies):
        raise InputError(
            f"{recipe.source}: {recipe.env} has the observations {env.observation_space}, which trained policies and those of files do not read; "
            "choose a part of a Dict with observation_key, or use policy random or demonstrator."
        )
    kind = type(space).__name__
    if recipe.algorithm and kind not in ALGORITHMS[recipe.algorithm.name].actions:
        able = [name for name, algorithm in ALGORITHMS.items() if kind in algorithm.actions]
        raise InputError(
            f"{recipe.source}: {recipe.algorithm.name} cannot act in the {kind} actions of {recipe.env}; use one of {able}."
        )
    for number, behaviour in enumerate(recipe.behaviour, 1):
        where = f"{recipe.source}: behaviour {number}"
        if behaviour.policy == "demonstrator":
            check_demonstrator(env, behaviour, f"{where}: {recipe.env}")
        if behaviour.reset_options:
            try:
                env.reset(seed=0, options=copy.deepcopy(behaviour.reset_options))
            except Exception as error:
                reason = " ".join(str(error).split())
                raise InputError(
                    f"{where}: {recipe.env} cannot be reset with reset_options {behaviour.reset_options} ({reason}); correct them."
                ) from error
        if behaviour.noise and not (
            isinstance(space, gymnasium.spaces.Box) and np.isfinite([space.low, space.high]).all()
        ):
            raise InputError(
                f"{where}: noise needs bounded Box actions, {recipe.env} has {space}; use epsilon for Discrete ones."
            )


def check_demonstrator(env: "gymnasium.Env[Any, Any]", behaviour: Behaviour, where: str) -> None:
    """Whether the environment demonstrates, and its `demonstrate` takes the behaviour's options, by name and by type."""
    demonstrate = getattr(env.unwrapped, "demonstrate", None)
    if not callable(demonstrate):
        raise InputError(f"{where} has no demonstrate() method; use policy random, checkpoint or file.")
    parameters = inspect.signature(demonstrate).parameters.values()
    named = {p.name: p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for name, value in behaviour.options.items():
        if name not in named and not anything:
            raise InputError(f"{where}'s demonstrate() has no option {name!r}; {did_you_mean(name, list(named))}")
        annotation = named[name].annotation if name in named else None
        if annotation in TYPE_NAMES and annotation is not tuple:
            checked(annotation, value, f"{where}'s demonstrate(): option {name!r}")
    missing = [name for name, p in named.items() if p.default is p.empty and name not in behaviour.options]
    if missing:
        raise InputError(
            f"{where}'s demonstrate() needs the option {missing[0]!r}; write options = {{ {missing[0]} = … }}."
        )
