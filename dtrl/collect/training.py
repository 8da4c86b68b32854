"""Training behaviour policies with Stable-Baselines3: what is kept of a training are array policies and the episodes of replay buffers."""

import dataclasses
import importlib
import inspect
import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from dtrl.collect.array_policy import ArrayPolicy, fitted
from dtrl.collect.environments import make_environment
from dtrl.collect.episodes import Episode
from dtrl.collect.recipes import ALGORITHMS, CONTRIB, Algorithm, Recipe
from dtrl.collect.replay import SeededResets, episodes_of_buffer
from dtrl.collect.stable_baselines import array_policy_of
from dtrl.errors import InputError, did_you_mean

# Only for annotations: the command line reads recipes without paying for these imports.
if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm


@contextmanager
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from more threads, and the number of threads would change the rounding of sums."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train(
    recipe: Recipe,
    algorithm: Algorithm,
    progress: bool,
    keep_policy: Callable[[int, ArrayPolicy], None],
    keep_replay: Callable[[int, list[Episode]], None],
) -> None:
    """Train once, and hand over the policy at each checkpoint, and the whole episodes of the replay buffer where a behaviour asks for them.

    In one call of `learn`: schedules (DQN's exploration) run over the steps of a call and would start anew in every further one. A policy is taken
    before it learns from the step at which it is due; a buffer holds that step, and the others of the vector environment taken with it."""
    from tqdm import tqdm

    replays = sorted({b.checkpoint for b in recipe.behaviour if b.policy == "replay" and b.checkpoint is not None})
    model = untrained(recipe, algorithm, seeded_resets=bool(replays))
    due = deque(step for step in algorithm.checkpoints if step < algorithm.timesteps)
    due_replays = deque(step for step in replays if step < algorithm.timesteps)

    with (
        one_thread(),
        tqdm(
            total=algorithm.timesteps,
            desc=f"training {algorithm.name}",
            unit="step",
            disable=None if progress else True,
        ) as bar,
    ):

        def keep(_locals: dict[str, Any], _globals: dict[str, Any]) -> bool:
            bar.update(model.num_timesteps - bar.n)
            while due and model.num_timesteps >= due[0]:
                keep_policy(due.popleft(), policy_of(model, recipe))
            stored = model.num_timesteps - algorithm.envs  # the buffer gets a step after the callback
            while due_replays and stored >= due_replays[0]:
                keep_replay(due_replays.popleft(), episodes_of_buffer(model, stored // algorithm.envs))
            return True

        model.learn(algorithm.timesteps, callback=keep)
    while due:  # an algorithm that calls back once per rollout
        keep_policy(due.popleft(), policy_of(model, recipe))
    if algorithm.timesteps in algorithm.checkpoints:
        keep_policy(algorithm.timesteps, policy_of(model, recipe))
    for step in [*due_replays, *(step for step in replays if step == algorithm.timesteps)]:
        keep_replay(step, episodes_of_buffer(model, model.num_timesteps // algorithm.envs))
    env = model.get_env()
    assert env is not None
    env.close()


def constructor(name: str, where: str) -> Any:
    """The class of an algorithm of ALGORITHMS; InputError if its package is not installed."""
    package = ALGORITHMS[name].package
    try:
        return vars(importlib.import_module(package))[name]
    except ImportError as error:
        extra = "contrib" if package == CONTRIB else None
        advice = f"pip install 'dtrl[{extra}]'" if extra else f"pip install {package}"
        raise InputError(f"{where}: {name} is part of {package}, which is not installed; {advice}.") from error


def settings(name: str, where: str) -> dict[str, Any]:
    """The options of an algorithm and their defaults."""
    ours = ("self", "policy", "env", "seed", "device", "_init_setup_model")
    parameters = inspect.signature(constructor(name, where)).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in ours}


def untrained(recipe: Recipe, algorithm: Algorithm, seeded_resets: bool = False) -> "BaseAlgorithm":
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecEnv, VecNormalize

    known = list(settings(algorithm.name, recipe.source))
    for name in algorithm.options:
        if name not in known:
            raise InputError(f"{recipe.source}: {algorithm.name} has no option {name!r}; {did_you_mean(name, known)}")
    wrapper = SeededResets if seeded_resets else None
    env: VecEnv = make_vec_env(
        lambda: make_environment(recipe), n_envs=algorithm.envs, seed=recipe.seed, wrapper_class=wrapper
    )
    options = objects(algorithm.options, env.action_space, recipe.source)
    try:
        if algorithm.normalize:
            env = VecNormalize(env, gamma=float(options.get("gamma", 0.99)))
        model: BaseAlgorithm = constructor(algorithm.name, recipe.source)(
            "MlpPolicy", env, seed=recipe.seed, device="cpu", **options
        )
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"{recipe.source}: {algorithm.name} refuses algorithm.options {algorithm.options}: {error}"
        ) from error
    return model


def objects(options: dict[str, Any], action_space: Any, where: str) -> dict[str, Any]:
    """Options with the few that are no plain data in Stable-Baselines3 made from data."""
    from stable_baselines3.common.noise import NormalActionNoise
    from stable_baselines3.common.utils import LinearSchedule
    from torch import nn

    options = dict(options)
    if "action_noise" in options:
        sigma = options["action_noise"]
        if type(sigma) not in (int, float) or not sigma >= 0 or not isinstance(action_space, gymnasium.spaces.Box):
            raise InputError(
                f"{where}: action_noise {sigma!r} must be the σ of Gaussian noise on Box actions that are scaled to ±1."
            )
        options["action_noise"] = NormalActionNoise(
            np.zeros(action_space.shape), np.full(action_space.shape, float(sigma))
        )
    for name in ("learning_rate", "clip_range"):
        if isinstance(options.get(name), str):
            found = re.fullmatch(r"lin_(\d+\.?\d*(?:e-?\d+)?)", options[name])
            if not found:
                raise InputError(
                    f'{where}: {name} {options[name]!r} is no number; write one, or one that falls to 0 as in "lin_0.001".'
                )
            options[name] = LinearSchedule(float(found[1]), 0.0, 1.0)
    if isinstance(options.get("train_freq"), list):
        options["train_freq"] = tuple(options["train_freq"])
    if isinstance(kwargs := options.get("policy_kwargs"), dict) and "activation_fn" in kwargs:
        activations = {"relu": nn.ReLU, "tanh": nn.Tanh}
        if kwargs["activation_fn"] not in activations:
            raise InputError(
                f"{where}: activation_fn {kwargs['activation_fn']!r} is unknown; use one of {', '.join(activations)}."
            )
        options["policy_kwargs"] = {**kwargs, "activation_fn": activations[kwargs["activation_fn"]]}
    return options


def policy_of(model: "BaseAlgorithm", recipe: Recipe) -> ArrayPolicy:
    """The model's policy as it is now."""
    assert recipe.algorithm is not None
    env = make_environment(recipe)  # the model's own spaces may be transposed
    spaces = env.observation_space, env.action_space
    env.close()
    parameters = {name: tensor.detach().numpy().copy() for name, tensor in model.policy.state_dict().items()}
    where = f"{recipe.source}: {recipe.algorithm.name}"
    kwargs = recipe.algorithm.options.get("policy_kwargs", {})
    policy = array_policy_of(
        parameters,
        *spaces,
        where,
        kwargs.get("activation_fn"),
        float(kwargs.get("clip_mean", 2.0)),
        images=model.observation_space.dtype == np.uint8,
    )
    statistics = model.get_vec_normalize_env()
    if statistics is not None:
        rms: Any = statistics.obs_rms
        policy = dataclasses.replace(
            policy,
            obs_mean=rms.mean.reshape(-1).copy(),
            obs_std=np.sqrt(rms.var + statistics.epsilon).reshape(-1),
            obs_clip=float(statistics.clip_obs),
        )
    return fitted(policy, *spaces, where)
