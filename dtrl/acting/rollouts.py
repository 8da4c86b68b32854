"""Policy + vector environment → Trajectories: the loop that acts.

All rows of the vector environment go through the model in one forward. An episode is given by a target return and a seed, so its course depends neither
on the number of rows nor on the order in which rows finish (up to the rounding of batched matrix products)."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from dtrl.acting.environments import make_environment
from dtrl.acting.policy import Policy, PolicyState
from dtrl.errors import InputError
from dtrl.spaces import same_space
from dtrl.trajectories import Trajectories
from dtrl.trajectories.columns import Origin

Array = npt.NDArray[Any]
MAX_ENVS = 64
"""Default number of rows of a vector environment: enough for the model to be efficient, few enough for a laptop."""


@dataclass(frozen=True)
class Episode:
    """One episode to play."""

    target_return: float
    seed: int
    """Seed of the environment's reset and of sampled actions."""


def rollout(
    policy: Policy,
    env: "str | Callable[[], gymnasium.Env[Any, Any]] | VectorEnv[Any, Any, Any] | None",
    episodes: Sequence[Episode],
    *,
    num_envs: int | None = None,
    deterministic: bool = True,
    on_episode: Callable[[int], object] = lambda index: None,
) -> Trajectories:
    """Play the episodes and return them, in the order in which they were given.

    `env` is an id, an EnvSpec in JSON, a function that makes one environment, or a vector environment (any autoreset mode; its episodes after the
    first of a row cannot be seeded unless the mode is DISABLED); None stands for the environment of the policy's data. `on_episode(index)` is
    called as episodes end. Raises InputError where the environment's spaces are not the policy's, or it returns NaN."""
    if not episodes or (num_envs is not None and num_envs < 1):
        raise InputError(
            f"there is no episode to play, or num_envs {num_envs} is not at least 1; give one episode or more."
        )
    vector = (
        env
        if isinstance(env, VectorEnv)
        else make_vector(env or policy.data.env_spec, min(num_envs or MAX_ENVS, len(episodes)))
    )
    try:
        check_spaces(policy, vector)
        return Rollout(policy, vector, episodes, deterministic, on_episode).run()
    finally:
        if vector is not env:
            vector.close()


def make_vector(env: "str | Callable[[], gymnasium.Env[Any, Any]] | None", num_envs: int) -> "VectorEnv[Any, Any, Any]":
    """`num_envs` copies of an environment in this process, never reset but on request."""
    if env is None:
        raise InputError(
            "the policy's data name no environment; give one with env (an id such as Hopper-v5, or a function that makes one)."
        )
    if isinstance(env, gymnasium.Env):
        raise InputError(
            "env is an environment, of which there can be no copies; give its id, or a function that makes one (lambda: gymnasium.make(…))."
        )
    make = partial(make_environment, env) if isinstance(env, str) else env
    return SyncVectorEnv([make] * num_envs, autoreset_mode=AutoresetMode.DISABLED)


def check_spaces(policy: Policy, vector: "VectorEnv[Any, Any, Any]") -> None:
    for role, trained, given in (
        ("observation", policy.observation_space, vector.single_observation_space),
        ("action", policy.action_space, vector.single_action_space),
    ):
        if not same_space(trained, given):
            raise InputError(
                f"the {role} space of the environment is {given}, and the policy was trained on {policy.data.dataset} with {trained}; "
                "evaluate it in the environment of its data."
            )


class Rollout:
    """The state of one call of `rollout`: which episode each row plays, and what it has recorded."""

    def __init__(
        self,
        policy: Policy,
        vector: "VectorEnv[Any, Any, Any]",
        episodes: Sequence[Episode],
        deterministic: bool,
        on_episode: Callable[[int], object],
    ) -> None:
        self.policy, self.episodes, self.deterministic, self.on_episode = policy, episodes, deterministic, on_episode
        self.vector: Any = vector  # VectorEnv's own annotations leave out a list of seeds
        mode = vector.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        self.mode = AutoresetMode(mode) if not isinstance(mode, AutoresetMode) else mode
        self.waiting = deque(range(len(episodes)))
        self.playing: list[int | None] = [None] * vector.num_envs
        self.records: list[dict[str, list[Any]]] = [{} for _ in range(vector.num_envs)]
        self.finished: dict[int, dict[str, Array]] = {}

    def run(self) -> Trajectories:
        n = self.vector.num_envs
        state = self.policy.initial_state(n)
        for row in range(n):
            self.begin(row)
        observations, _ = self.vector.reset(seed=[self.seed_of(row) for row in range(n)])
        first = np.ones(n, dtype=bool)
        skipped = np.zeros(n, dtype=bool)  # rows whose next step is NEXT_STEP's reset
        while any(p is not None for p in self.playing):
            seen = np.array(observations, copy=True)
            self.arm(state, first)
            actions, state = self.policy.predict(
                seen, state, episode_start=first | skipped, deterministic=self.deterministic
            )
            observations, rewards, terminated, truncated, info = self.vector.step(actions)
            self.check_rewards(rewards, state)
            self.record(seen, actions, rewards, terminated, truncated, ~skipped)
            state.reward = np.where(skipped, 0.0, rewards)
            done = (terminated | truncated) & ~skipped
            first, skipped = skipped.copy(), np.zeros(n, dtype=bool)
            if done.any():
                last = self.last_observations(observations, done, info)
                for row in np.flatnonzero(done).tolist():
                    self.finish(row, last[row])
                    self.begin(row)
                if self.mode == AutoresetMode.DISABLED:
                    seeds = [self.seed_of(row) if done[row] else None for row in range(n)]
                    observations, _ = self.vector.reset(seed=seeds, options={"reset_mask": done})
                if self.mode == AutoresetMode.NEXT_STEP:
                    skipped = done
                else:
                    first = first | done
        return self.gathered()

    def seed_of(self, row: int) -> int | None:
        index = self.playing[row]
        return None if index is None else self.episodes[index].seed

    def begin(self, row: int) -> None:
        """Give the row the next episode that waits, if any; a row without one goes on unrecorded."""
        self.playing[row] = self.waiting.popleft() if self.waiting else None
        self.records[row] = {name: [] for name in ("observations", "actions", "rewards", "terminations", "truncations")}

    def arm(self, state: PolicyState, first: npt.NDArray[np.bool_]) -> None:
        """Tell the policy what is asked of the rows that begin an episode now, and give each its own randomness."""
        for row in np.flatnonzero(first):
            if (index := self.playing[row]) is not None:
                state.target_returns[row] = self.episodes[index].target_return
                state.generators[row] = np.random.default_rng([1, self.episodes[index].seed])

    def record(
        self, observations: Array, actions: Array, rewards: Array, terminated: Array, truncated: Array, real: Array
    ) -> None:
        step = {
            "observations": observations,
            "actions": actions,
            "rewards": rewards,
            "terminations": terminated,
            "truncations": truncated,
        }
        for row, index in enumerate(self.playing):
            if index is not None and real[row]:
                for name, values in step.items():
                    self.records[row][name].append(values[row])

    def last_observations(self, observations: Array, done: Array, info: dict[str, Any]) -> Array:
        """What the finished rows showed last: in SAME_STEP the observations are already those of the next episode."""
        if self.mode != AutoresetMode.SAME_STEP:
            return np.array(observations, copy=True)
        last = np.array(observations, copy=True)
        for row in np.flatnonzero(done):
            last[row] = info["final_obs"][row]
        return last

    def finish(self, row: int, last: Array) -> None:
        index = self.playing[row]
        if index is None:
            return
        record = self.records[row]
        self.finished[index] = {name: np.asarray(values) for name, values in record.items()}
        self.finished[index]["observations"] = np.concatenate(
            [self.finished[index]["observations"], np.asarray(last)[None]]
        )
        self.on_episode(index)

    def check_rewards(self, rewards: Array, state: PolicyState) -> None:
        if not np.isfinite(rewards).all():
            row = int(np.flatnonzero(~np.isfinite(rewards))[0])
            raise InputError(
                f"environment {row} returned the reward {rewards[row]} at step {state.timesteps[row]} (seed {self.seed_of(row)}); the environment is at fault."
            )

    def gathered(self) -> Trajectories:
        ordered = [self.finished[i] for i in range(len(self.episodes))]
        p = self.policy
        origin = Origin(f"rollouts of a policy trained on {p.data.dataset}", p.data.env_spec, p.data.reference)
        return Trajectories.from_episodes(ordered, p.observation_space, p.action_space, origin=origin)
