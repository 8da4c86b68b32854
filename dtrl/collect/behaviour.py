"""Behaviour policies: whether an environment suits them, training them with Stable-Baselines3, and the episodes they play."""

import copy
import inspect
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dtrl.collect.recipes import ALGORITHMS, Algorithm, Behaviour, Recipe
from dtrl.errors import InputError, did_you_mean

# Only for annotations: the command line reads recipes without paying for these imports.
if TYPE_CHECKING:
    import gymnasium
    from minari.data_collector import EpisodeBuffer
    from stable_baselines3.common.base_class import BaseAlgorithm

    Act = Callable[[list[gymnasium.Env[Any, Any]], list[Any]], list[Any]]
    """Environments and their current observations to one action each."""

PARALLEL_EPISODES = 8
"""Episodes played side by side, so that one forward pass acts for all of them."""


def check_environment(recipe: Recipe) -> None:
    """Whether the environment exists and suits the algorithm and every behaviour."""
    import gymnasium
    import numpy as np

    from dtrl.spaces import check_space

    try:
        env = gymnasium.make(recipe.env)
    except (gymnasium.error.Error, ImportError) as error:
        known = list(gymnasium.registry)
        hint = "install what it needs." if recipe.env in known else did_you_mean(recipe.env, known)
        raise InputError(f"{recipe.source}: env {recipe.env!r} cannot be made ({error}); {hint}") from error
    space, has_demonstrator = env.action_space, hasattr(env.unwrapped, "demonstrate")
    check_space(env.observation_space, "observation", recipe.env)
    check_space(space, "action", recipe.env)
    env.close()
    kind = type(space).__name__
    if recipe.algorithm and kind not in ALGORITHMS[recipe.algorithm.name]:
        able = [name for name, kinds in ALGORITHMS.items() if kind in kinds]
        raise InputError(
            f"{recipe.source}: {recipe.algorithm.name} cannot act in the {kind} actions of {recipe.env}; use one of {able}."
        )
    for number, behaviour in enumerate(recipe.behaviour, 1):
        where = f"{recipe.source}: behaviour {number}"
        if behaviour.policy == "demonstrator" and not has_demonstrator:
            raise InputError(f"{where}: {recipe.env} has no demonstrate() method; use policy random or checkpoint.")
        if behaviour.epsilon and kind != "Discrete":
            raise InputError(f"{where}: epsilon needs Discrete actions, {recipe.env} has {space}; use noise.")
        if behaviour.noise and not (
            isinstance(space, gymnasium.spaces.Box) and np.isfinite([space.low, space.high]).all()
        ):
            raise InputError(
                f"{where}: noise needs bounded Box actions, {recipe.env} has {space}; use epsilon for Discrete ones."
            )


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


def train(recipe: Recipe, algorithm: Algorithm, progress: bool) -> "tuple[BaseAlgorithm, dict[int, dict[str, Any]]]":
    """The trained model, and the parameters of its policy at each checkpoint.

    In one call of `learn`: schedules (DQN's exploration) run over the steps of a call and would start anew in every further one."""
    from tqdm import tqdm

    model = untrained(recipe, algorithm)
    kept = {}
    due = deque(step for step in algorithm.checkpoints if step < algorithm.timesteps)

    with tqdm(
        total=algorithm.timesteps, desc=f"training {algorithm.name}", unit="step", disable=None if progress else True
    ) as bar:

        def keep(_locals: dict[str, Any], _globals: dict[str, Any]) -> bool:
            bar.update(model.num_timesteps - bar.n)
            while due and model.num_timesteps >= due[0]:
                kept[due.popleft()] = copy.deepcopy(model.policy.state_dict())
            return True

        model.learn(algorithm.timesteps, callback=keep)
    kept[algorithm.timesteps] = copy.deepcopy(model.policy.state_dict())
    return model, kept


def untrained(recipe: Recipe, algorithm: Algorithm) -> "BaseAlgorithm":
    import stable_baselines3
    from stable_baselines3.common.env_util import make_vec_env

    constructor = vars(stable_baselines3)[algorithm.name]
    ours = ("self", "policy", "env", "seed", "device", "_init_setup_model")
    known = [name for name in inspect.signature(constructor).parameters if name not in ours]
    for name in algorithm.options:
        if name not in known:
            raise InputError(f"{recipe.source}: {algorithm.name} has no option {name!r}; {did_you_mean(name, known)}")
    env = make_vec_env(recipe.env, n_envs=algorithm.envs, seed=recipe.seed)
    try:
        model: BaseAlgorithm = constructor("MlpPolicy", env, seed=recipe.seed, device="cpu", **algorithm.options)
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError(
            f"{recipe.source}: {algorithm.name} refuses algorithm.options {algorithm.options}: {error}"
        ) from error
    return model


def actor(behaviour: Behaviour, model: "BaseAlgorithm | None") -> "Act":
    """How a behaviour acts. All that is drawn comes from the action spaces' own generators, save a checkpoint's choice (torch)."""
    import gymnasium
    import numpy as np

    def act(envs: "list[gymnasium.Env[Any, Any]]", observations: list[Any]) -> list[Any]:
        spaces = [env.action_space for env in envs]
        if behaviour.policy == "random":
            return [space.sample() for space in spaces]
        if behaviour.policy == "demonstrator":
            actions = [env.unwrapped.demonstrate() for env in envs]  # type: ignore[attr-defined]
        else:
            assert model is not None
            actions = list(model.predict(np.stack(observations), deterministic=behaviour.deterministic)[0])
        return [disturbed(action, space) for action, space in zip(actions, spaces, strict=True)]

    def disturbed(action: Any, space: "gymnasium.Space[Any]") -> Any:
        if behaviour.epsilon and space.np_random.random() < behaviour.epsilon:
            return space.sample()
        if behaviour.noise:
            assert isinstance(space, gymnasium.spaces.Box)
            noise = behaviour.noise * (space.high - space.low) / 2 * space.np_random.standard_normal(space.shape)
            return np.clip(action + noise, space.low, space.high).astype(space.dtype)
        return action

    return act


def play(recipe: Recipe, index: int, act: "Act", progress: bool) -> "list[EpisodeBuffer]":
    """The episodes of one behaviour, several at a time; each begins with a seed of its own, which is recorded."""
    import gymnasium
    import numpy as np
    import torch
    from minari.data_collector import EpisodeBuffer
    from tqdm import tqdm

    count = recipe.behaviour[index].episodes
    # An action space seeded like its environment would draw the very numbers that chose the initial state, hence two seeds.
    *seeds, torch_seed = np.random.SeedSequence([recipe.seed, index]).generate_state(2 * count + 1).tolist()
    torch.manual_seed(torch_seed)
    buffers = [EpisodeBuffer(seed=seed, observations=[], actions=[]) for seed in seeds[:count]]
    waiting = deque(range(count))

    def begin(env: "gymnasium.Env[Any, Any]") -> "tuple[gymnasium.Env[Any, Any], EpisodeBuffer]":
        number = waiting.popleft()
        env.action_space.seed(seeds[count + number])
        buffers[number].observations.append(env.reset(seed=seeds[number])[0])
        return env, buffers[number]

    envs = [gymnasium.make(recipe.env, disable_env_checker=True) for _ in range(min(PARALLEL_EPISODES, count))]
    running = [begin(env) for env in envs]
    with tqdm(
        total=count, desc=recipe.behaviour[index].name, unit="episode", disable=None if progress else True
    ) as bar:
        while running:
            actions = act([env for env, _ in running], [buffer.observations[-1] for _, buffer in running])
            ended = [step(env, buffer, action) for (env, buffer), action in zip(running, actions, strict=True)]
            bar.update(sum(ended))
            running = [
                begin(pair[0]) if done else pair
                for pair, done in zip(running, ended, strict=True)
                if not done or waiting
            ]
    for env in envs:
        env.close()
    return buffers


def step(env: "gymnasium.Env[Any, Any]", buffer: "EpisodeBuffer", action: Any) -> bool:
    """Take one step and record it; whether the episode ended."""
    observation, reward, terminated, truncated, _ = env.step(action)
    buffer.actions.append(action)
    buffer.observations.append(observation)
    buffer.rewards.append(float(reward))
    buffer.terminations.append(terminated)
    buffer.truncations.append(truncated)
    return bool(terminated or truncated)
