"""Policies that Stable-Baselines3 has saved, or that are plain arrays, behind dtrl's interface for acting: they can be evaluated and recorded like any other.

Nothing is unpickled: see `dtrl.collect.stable_baselines`. B environments."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from dtrl.acting import Actor
from dtrl.acting.environments import make_environment
from dtrl.acting.masks import Masks
from dtrl.acting.state import Begins, PolicyState
from dtrl.acting.summary import DataSummary
from dtrl.collect.array_policy import ArrayPolicy, fitted, load_array_policy, seen
from dtrl.collect.stable_baselines import load_zip, with_statistics
from dtrl.config import DecodingConfig, ModelConfig
from dtrl.errors import InputError

Array = npt.NDArray[Any]
ENDINGS = (".zip", ".npz")
"""Of files that `load_actor` reads."""


class ArrayActor(Actor):
    """A policy of arrays as an `Actor`. It looks at the observation alone: whatever return is asked for, it acts alike."""

    def __init__(self, policy: ArrayPolicy, name: str, env: str, decoding: DecodingConfig | None = None) -> None:
        made = make_environment(env)
        self.space = made.observation_space
        super().__init__(made.observation_space, made.action_space, summary(name, env), decoding, 0.0)
        made.close()
        self.policy = policy
        self.context, self.context_length, self.updates = "window", 1, 0
        self.config = ModelConfig(preset="array_policy", context_length=1)

    def new_context(self, rows: int) -> None:
        return None

    def choose_actions(
        self,
        state: PolicyState,
        observations: Mapping[str, Array],
        first: Begins,
        allowed: Masks | None,
        decoding: DecodingConfig,
    ) -> dict[str, Array]:
        """The most likely actions, or drawn ones where the decoding samples. Raises InputError for an action mask, which it has not learned to heed."""
        if allowed is not None:
            raise InputError(f"{self.data.dataset} knows no action masks; evaluate it in an environment without them.")
        temperature = 0.0 if decoding.greedy else decoding.temperature
        rows = [
            self.policy.action(seen(observation, self.space), random, temperature)
            for observation, random in zip(observations[""], state.generators, strict=True)
        ]
        actions = np.stack(rows).reshape(len(rows), *(self.action_space.shape or ()))
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions + self.action_space.start
        return {"": self.limits["action"](actions)}

    def check_decoding(self) -> None:
        """Raise InputError for what means nothing to such a policy: it has one distribution, and it may have none."""
        useless = [name for name in self.decoding.changed if name not in ("strategy", "temperature")]
        if useless or self.decoding.strategy not in ("greedy", "sample"):
            what = ", ".join(useless) or f"strategy {self.decoding.strategy}"
            raise InputError(
                f"{self.data.dataset} goes with strategy greedy or sample and a temperature, not with {what}."
            )
        if not self.decoding.greedy and not self.policy.has_spread:
            raise InputError(f"{self.data.dataset} holds no distribution to draw from; leave --strategy to greedy.")


def load_actor(
    path: str | os.PathLike[str],
    env: str,
    statistics: str | os.PathLike[str] | None = None,
    decoding: DecodingConfig | None = None,
) -> ArrayActor:
    """The policy of a model saved by Stable-Baselines3 (.zip) or of plain arrays (.npz), as it acts in an environment: an id, or an EnvSpec in JSON.

    `statistics` are those of a VecNormalize with which it was trained, as an .npz or .json file. `decoding` greedy (the default) takes the most likely action,
    sample draws at its temperature. Raises InputError where a file cannot be read, is of another
    kind of policy (recurrent, of images, of several inputs), or does not fit the environment's spaces."""
    path = Path(path)
    if path.suffix not in ENDINGS:
        raise InputError(f"{path} ends in none of {', '.join(ENDINGS)}; name a policy saved by Stable-Baselines3.")
    made = make_environment(env)
    shown, acted = made.observation_space, made.action_space
    made.close()
    if not isinstance(shown, spaces.Box | spaces.Discrete) or not isinstance(acted, spaces.Box | spaces.Discrete):
        raise InputError(
            f"policy {path} can see and act a Box or a Discrete space alone, and {env} has {shown} and {acted}; give another --env."
        )
    if path.suffix == ".zip":
        policy = load_zip(path, shown, acted, deterministic=True, images=statistics is None)
    else:
        policy = load_array_policy(path)
    if statistics is not None:
        policy = with_statistics(policy, Path(statistics))
    return ArrayActor(fitted(policy, shown, acted, f"policy {path} in {env}"), path.name, env, decoding)


def summary(name: str, env: str) -> DataSummary:
    """Of data that nobody knows."""
    return DataSummary(
        name, env, reference=None, fingerprint=None, discount=1.0, delayed=False, return_quantiles=(0.0,) * 101
    )
