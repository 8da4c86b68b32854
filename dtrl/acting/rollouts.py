"""Policy + vector environment → Trajectories: the loop that acts.

All rows of the vector environment go through the model in one forward, or in two halves while the environments of the other half step in worker processes.
An episode is given by a target return and a seed, so its course depends neither on the number of rows or workers nor on the order in which rows finish (up
to the rounding of batched matrix products)."""

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import gymnasium
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, VectorEnv

from dtrl.acting.actor import Actor
from dtrl.acting.environments import make_environment, seen_part
from dtrl.acting.faults import EpisodeFault, check_on_env_error
from dtrl.acting.guard import GuardedEnvs
from dtrl.acting.plan import Episode, Plan, warn_of
from dtrl.acting.rows import Rows
from dtrl.acting.timing import Timing
from dtrl.acting.worker import Job, specs_of
from dtrl.acting.workers import WorkerGroup, Workers
from dtrl.errors import InputError
from dtrl.spaces import Space, leaves, same_space
from dtrl.trajectories import Trajectories

Env = str | Callable[[], gymnasium.Env[Any, Any]]
"""An id, an EnvSpec in JSON, or a function that makes one environment."""
MAX_ENVS = 64
"""Default number of rows of a vector environment: enough for the model to be efficient, few enough for a laptop."""
AUTO_STEP_SECONDS = 5e-3
"""`env_workers="auto"` starts workers where a step of all rows takes so long: halved, it pays for their start, of some second, within 1,000 steps."""
AUTO_STEPS, AUTO_SECONDS = 200, 0.2
"""At most so long it measures."""


def rollout(
    policy: Actor,
    env: "Env | VectorEnv[Any, Any, Any] | None",
    episodes: Sequence[Episode],
    *,
    num_envs: int | None = None,
    deterministic: bool = True,
    observation: str | None = None,
    env_workers: int | str = 0,
    env_timeout: float | None = None,
    on_env_error: str = "raise",
    on_episode: Callable[[int], object] = lambda index: None,
    on_fault: Callable[[EpisodeFault], object] = warn_of,
    timing: Timing | None = None,
) -> Trajectories:
    """Play the episodes and return them, in the order in which they were given.

    `env` is an id, an EnvSpec in JSON, a function that makes one environment, or a vector environment (any autoreset mode; its episodes after the
    first of a row cannot be seeded unless the mode is DISABLED); None stands for the environment of the policy's data. `observation` names the part of
    its observations that the policy sees ("image"), where more than one could be meant. `env_workers` processes step the environments, half of the rows
    while the model computes for the other half; 0 steps them in this process, "auto" measures whether workers are worth their cost.

    An environment is at fault where it raises, or shows or returns what is no observation or no number; where, in a worker, it ends its process, or takes
    longer than `env_timeout` seconds (None: 600) for a step or a reset; in this process nothing can interrupt it. `on_env_error` "raise" ends the rollout
    with an InputError that names environment, step and seed; "skip" loses the episode; "retry" begins it again in a new environment, and loses it after
    2 retries. `on_fault` is called with each fault, and warns where it is not given. What is lost is left out of the result.

    `on_episode(index)` is called as episodes end or are lost; seconds and steps are added to `timing`. Raises InputError where the environment's spaces are
    not the policy's, where every episode is lost, and where the policy acts outside of the action space."""
    if not episodes or (num_envs is not None and num_envs < 1):
        raise InputError(
            f"there is no episode to play, or num_envs {num_envs} is not at least 1; give one episode or more."
        )
    check_workers(env_workers, env_timeout)
    check_on_env_error(on_env_error)
    timing, plan = timing or Timing(), Plan(episodes, on_episode, on_env_error, on_fault)
    play_plan(policy, env, plan, num_envs, deterministic, observation, env_workers, env_timeout, timing)
    return plan.gathered(policy)


def play_plan(
    policy: Actor,
    env: "Env | VectorEnv[Any, Any, Any] | None",
    plan: Plan,
    num_envs: int | None,
    deterministic: bool,
    observation: str | None,
    env_workers: int | str,
    env_timeout: float | None,
    timing: Timing,
) -> None:
    """Play all that waits in the plan; arguments as of `rollout`."""
    with timing.adding("wall_seconds"), ExitStack() as stack:
        if isinstance(env, VectorEnv):
            refuse_for_vectors(env_workers, plan.on_env_error)
            vectors, seen = [env], seen_by(policy, env, observation)
        else:
            vectors, seen = opened(
                stack, policy, env, len(plan.episodes), num_envs, observation, env_workers, timeout=env_timeout
            )
        waited = timing.waited_seconds
        play([Rows(policy, vector, seen, plan, deterministic, timing) for vector in vectors])
        workers = vectors[0].workers if isinstance(vectors[0], WorkerGroup) else None
        timing.env_workers = workers.count if workers else 0
        timing.env_seconds += workers.env_seconds if workers else timing.waited_seconds - waited


def play(groups: Sequence[Rows]) -> None:
    """Play all episodes of a plan. While the environments of one group step, the model chooses the actions of the next."""
    for rows in groups:
        rows.begin()
    for rows in groups:
        if rows.busy:
            rows.act()
    while any(rows.busy for rows in groups):
        for rows in groups:
            if rows.busy:
                rows.take()
                if rows.busy:
                    rows.act()


def opened(
    stack: ExitStack,
    policy: Actor,
    env: Env | None,
    episodes: int,
    num_envs: int | None,
    observation: str | None,
    env_workers: int | str,
    timeout: float | None = None,
) -> tuple[list[Any], tuple[str | int, ...]]:
    """Vector environments that the stack closes, and the keys of what the policy sees of their observations."""
    env = env or policy.data.env_spec
    make, rows = maker(env), num_envs_for(policy, num_envs, episodes)
    if env_workers:
        example = make()
        try:
            env_spaces = example.observation_space, example.action_space
            seen = check_spaces(policy, *env_spaces, observation)
            count = auto_workers(example, rows, timeout) if env_workers == "auto" else int(env_workers)
        finally:
            example.close()
        if count:
            specs = specs_of(env) if isinstance(env, str) else []
            job = Job(make, env_spaces, seen, (policy.observation_space, policy.action_space), policy.mask_size, specs)
            workers = stack.enter_context(Workers(job, halves(policy, rows, episodes), count, timeout))
            return list(workers.groups), ()  # they show the part alone
    vector = GuardedEnvs(make, rows)
    stack.callback(vector.close)
    seen = seen_by(policy, vector, observation)
    vector.look_at(policy.observation_space, seen)
    return [vector], seen


def maker(env: Env | None) -> Callable[[], "gymnasium.Env[Any, Any]"]:
    """The function that makes one environment."""
    if env is None:
        raise InputError(
            "the policy's data name no environment; give one with env (an id such as Hopper-v5, or a function that makes one)."
        )
    if isinstance(env, gymnasium.Env):
        raise InputError(
            "env is an environment, of which there can be no copies; give its id, or a function that makes one (lambda: gymnasium.make(…))."
        )
    return partial(make_environment, env) if isinstance(env, str) else env


def num_envs_for(policy: Actor, asked: int | None, episodes: int) -> int:
    """Rows of the vector environment: no more than there are episodes, unless the policy takes a fixed number."""
    if policy.rows is not None:
        return asked or policy.rows
    return min(asked or MAX_ENVS, episodes)


def halves(policy: Actor, rows: int, episodes: int) -> list[int]:
    """Sizes of the groups that take turns. A policy that takes a fixed number of environments has two full ones, where there is enough to play."""
    if policy.rows is not None:
        return [rows] * (2 if episodes > rows else 1)
    return [rows - rows // 2, rows // 2] if rows > 1 else [rows]


def check_workers(env_workers: int | str, timeout: float | None) -> None:
    if env_workers != "auto" and (not isinstance(env_workers, int) or env_workers < 0):
        raise InputError(f"env_workers {env_workers!r} is neither a number of processes from 0 nor auto.")
    if timeout is None:
        return
    if not (isinstance(timeout, (int, float)) and 0 < timeout < math.inf):
        raise InputError(f"env_timeout {timeout!r} is not a positive number of seconds.")
    if env_workers == 0:
        raise InputError(
            f"env_timeout is {timeout:g}, and an environment of this process cannot be interrupted; use env_workers 1 or more."
        )


def refuse_for_vectors(env_workers: int | str, on_env_error: str) -> None:
    """Raise InputError for what cannot be had of a vector environment that is not dtrl's."""
    if env_workers:
        raise InputError(
            f"env_workers is {env_workers!r}, and a vector environment steps as it was made; give the id, or a function that makes one environment."
        )
    if on_env_error != "raise":
        raise InputError(
            f"on_env_error is {on_env_error}, and of a vector environment no part can be replaced; give the id, or a function that makes one environment."
        )


def auto_workers(env: "gymnasium.Env[Any, Any]", rows: int, timeout: float | None = None) -> int:
    """As many workers as there are cores for, where random actions take `AUTO_STEP_SECONDS` for all rows; else, or where these fail, 0.

    With a timeout, which this process could not keep, nothing is measured: as many as there are cores for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if timeout is not None:
        return min(cores, rows)
    if min(cores, rows) < 2:
        return 0
    env.action_space.seed(0)
    try:
        env.reset(seed=0)
        started, steps, ended = time.perf_counter(), 0, False
        while steps < AUTO_STEPS and time.perf_counter() - started < AUTO_SECONDS:
            if ended:
                env.reset()
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            steps, ended = steps + 1, bool(terminated or truncated)
        taken = (time.perf_counter() - started) / steps
    except Exception:  # such as an action that a mask forbids; a real fault shows again when it plays
        return 0
    return min(cores, rows) if rows * taken >= AUTO_STEP_SECONDS else 0


def seen_by(policy: Actor, vector: "VectorEnv[Any, Any, Any]", observation: str | None) -> tuple[str | int, ...]:
    """`check_spaces` of a vector environment."""
    if isinstance(vector, AsyncVectorEnv) and vector.shared_memory and has_texts(policy.observation_space):
        raise InputError(
            "an AsyncVectorEnv with shared memory gives other texts than its environments (seen in Gymnasium 1.4); make it with shared_memory=False."
        )
    return check_spaces(policy, vector.single_observation_space, vector.single_action_space, observation)


def check_spaces(policy: Actor, shown: Space, acted: Space, observation: str | None) -> tuple[str | int, ...]:
    """The keys of the part of the observations `shown` that the policy sees. Raises InputError where the environment's spaces are not the policy's."""
    seen = seen_part(shown, policy.observation_space, observation, policy.data.dataset)
    check_actions(acted, policy.action_space, policy.data.dataset)
    return seen


def check_actions(acted: Space, trained: Space, dataset: str) -> None:
    """Raise InputError where an environment does not take the actions of the dataset."""
    if not same_space(trained, acted):
        raise InputError(
            f"the action space of the environment is {acted}, and the policy was trained on {dataset} with {trained}; "
            "evaluate it in the environment of its data."
        )


def has_texts(space: Space) -> bool:
    return any(isinstance(leaf.space, spaces.Text) for leaf in leaves(space))
