"""Evaluating in many environments: what acting costs where environments cost nothing, and worker processes where they cost something."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from dtrl.acting import Actor, Episode, ExportedPolicy, Policy, Timing
from dtrl.acting.guard import GuardedEnvs
from dtrl.acting.plan import Plan
from dtrl.acting.rollouts import halves, play
from dtrl.acting.rows import Rows
from dtrl.acting.summary import DataSummary
from dtrl.acting.worker import Job
from dtrl.acting.workers import Workers
from dtrl.bench.peers import MAX_TIMESTEP, RETURN_SCALE, TARGET
from dtrl.bench.timing import Job as Repetition
from dtrl.bench.timing import compare, device_of, document, interleaved, table, torch_threads
from dtrl.bench.training import hopper_shaped
from dtrl.config import ModelConfig
from dtrl.presets import build, columns_for, resolve

__all__ = ["run", "table"]

NULL_LOOP = "plain loop, no-cost vector"
SYNC, ASYNC = "plain loop, gymnasium's SyncVectorEnv", "plain loop, gymnasium's AsyncVectorEnv"


def run(
    repetitions: int = 10,
    steps: int = 50,
    max_envs: int = 64,
    envs: int = 16,
    microseconds: int = 500,
    workers: int = 2,
    threads: int = 1,
    cuda: int = 0,
    graph: int = 0,
) -> dict[str, Any]:
    """Episodes of so many steps, one a row: in 1, 8, … `max_envs` environments without cost; and in `envs` that cost so many microseconds a step (0 leaves
    them out), with that many worker processes. `cuda` 1 puts the model on the GPU, `graph` 1 replays a step there as one CUDA graph. The start of processes is
    not timed."""
    options = dict(locals())
    eager = hopper_policy().to(device_of(cuda))
    policy: Actor = ExportedPolicy.of(eager, "graph") if graph else eager
    with torch_threads(threads):
        counts = [n for n in (1, 8, 64, 512, 4_096) if n <= max_envs]
        results = [null_row(policy, n, steps, repetitions) for n in counts]
        if envs:
            results += costly_rows(policy, envs, steps, microseconds, workers, repetitions)
    return document("rollouts", options, results)


def hopper_policy() -> Policy:
    """The paper's model for Hopper with random weights, and the `block` context."""
    trajectories = hopper_shaped(1)
    asked = ModelConfig(context_length=20, max_timestep=MAX_TIMESTEP, return_scale=RETURN_SCALE)
    config = resolve(asked, trajectories)
    model = build(config, trajectories.observation_space, trajectories.action_space)
    model.fit(columns_for(model, trajectories))
    data = DataSummary.of(trajectories)
    return Policy(
        model,
        config,
        trajectories.observation_space,
        trajectories.action_space,
        data,
        context="block",
        target_return=TARGET,
    )


def null_row(policy: Actor, envs: int, steps: int, repetitions: int) -> dict[str, Any]:
    vector = NullVector(policy.observation_space, policy.action_space, envs, steps)
    jobs = {"rollout": rollout_of(policy, [vector], envs), NULL_LOOP: plain_loop(policy, vector, steps)}
    times = interleaved(jobs, repetitions)
    work = f"{envs:,} environment{'s' if envs > 1 else ''} without cost"
    return with_rates(compare(work, times, "rollout", NULL_LOOP), envs * steps)


def costly_rows(
    policy: Actor, envs: int, steps: int, microseconds: int, workers: int, repetitions: int
) -> list[dict[str, Any]]:
    make = busy_env(policy.observation_space, policy.action_space, microseconds, steps)
    ours = {
        "rollout, 0 workers": None,
        f"{workers} workers, in turns": [envs],
        f"{workers} workers": halves(policy, envs, envs),
    }
    policy_spaces = policy.observation_space, policy.action_space
    job = Job(make, policy_spaces, (), policy_spaces, policy.mask_size)
    with ExitStack() as stack:
        jobs: dict[str, Repetition] = {}
        for name, sizes in ours.items():
            vectors: Sequence[Any] = [GuardedEnvs(make, envs)]
            if sizes is not None:
                vectors = stack.enter_context(Workers(job, sizes, workers)).groups
            jobs[name] = rollout_of(policy, vectors, envs)
        jobs[SYNC] = plain_loop(policy, SyncVectorEnv([make] * envs), steps)
        asynchronous = AsyncVectorEnv([make] * envs, context="spawn")
        stack.callback(asynchronous.close)
        jobs[ASYNC] = plain_loop(policy, asynchronous, steps)
        times = interleaved(jobs, repetitions)
    work = f"{envs:,} environments of {microseconds:,} µs a step"
    return [
        with_rates(compare(work, times, name, peer), envs * steps)
        for peer in (SYNC, ASYNC, "rollout, 0 workers")
        for name in ours
        if name != peer
    ]


def with_rates(row: dict[str, Any], steps: int) -> dict[str, Any]:
    return row | {"env_steps_per_second": {key: steps / row[f"{key}_seconds"]["p10"] for key in ("dtrl", "peer")}}


def rollout_of(policy: Actor, vectors: Sequence[Any], envs: int) -> Repetition:
    """One episode a row, as `dtrl.rollout` plays them."""

    def prepare() -> Callable[[], object]:
        plan = Plan([Episode(TARGET, seed) for seed in range(envs)], lambda index: None)
        rows = [Rows(policy, vector, (), plan, True, Timing()) for vector in vectors]
        return lambda: play(rows)

    return prepare


def plain_loop(policy: Actor, vector: Any, steps: int) -> Repetition:
    """The model, then the environments, one after the other; nothing is recorded."""

    def prepare() -> Callable[[], object]:
        state = policy.initial_state(vector.num_envs)

        def call() -> None:
            observations, _ = vector.reset(seed=list(range(vector.num_envs)))
            for _ in range(steps):
                actions, _ = policy.predict(observations, state)
                observations, rewards, *_ = vector.step(actions)
                state.reward += rewards

        return call

    return prepare


class NullVector(VectorEnv[Any, Any, Any]):
    """Shows zeros, and ends every episode after so many steps."""

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], envs: int, steps: int
    ) -> None:
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.num_envs, self.steps, self.now = envs, steps, 0
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        self.shown = np.zeros((envs, *(observation_space.shape or ())), np.float32)
        self.rewards = np.zeros(envs)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.now = 0
        return self.shown, {}

    def step(self, actions: Any) -> Any:
        self.now += 1
        ended = np.full(self.num_envs, self.now == self.steps)
        return self.shown, self.rewards, np.zeros_like(ended), ended, {}


def busy_env(
    observation_space: spaces.Space[Any], action_space: spaces.Space[Any], microseconds: int, steps: int
) -> Callable[[], "gymnasium.Env[Any, Any]"]:
    """A class of environments that compute for so long at every step. It is made here so that it is sent whole: other processes need no torch for it."""
    seen, acted = observation_space, action_space

    class Busy(gymnasium.Env[Any, Any]):
        observation_space, action_space = seen, acted

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            self.now = 0
            return np.zeros(seen.shape or (), np.float32), {}

        def step(self, action: Any) -> Any:
            until = time.perf_counter() + microseconds * 1e-6
            while time.perf_counter() < until:
                pass
            self.now += 1
            return np.zeros(seen.shape or (), np.float32), 0.0, False, self.now == steps, {}

    return Busy
