"""Policy + vector environment → Trajectories: the loop that acts.

All rows of the vector environment go through the model in one forward. An episode is given by a target return and a seed, so its course depends neither
on the number of rows nor on the order in which rows finish (up to the rounding of batched matrix products)."""

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from dtrl.acting.actor import Actor
from dtrl.acting.environments import descend, make_environment, seen_part
from dtrl.acting.masks import MaskReader, joined_info
from dtrl.acting.state import PolicyState
from dtrl.errors import InputError
from dtrl.spaces import Space, flatten, leaves, numbers_of, same_space, unflatten
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
    policy: Actor,
    env: "str | Callable[[], gymnasium.Env[Any, Any]] | VectorEnv[Any, Any, Any] | None",
    episodes: Sequence[Episode],
    *,
    num_envs: int | None = None,
    deterministic: bool = True,
    observation: str | None = None,
    on_episode: Callable[[int], object] = lambda index: None,
) -> Trajectories:
    """Play the episodes and return them, in the order in which they were given.

    `env` is an id, an EnvSpec in JSON, a function that makes one environment, or a vector environment (any autoreset mode; its episodes after the
    first of a row cannot be seeded unless the mode is DISABLED); None stands for the environment of the policy's data. `observation` names the part of
    its observations that the policy sees ("image"), where more than one could be meant. `on_episode(index)` is called as episodes end. Raises InputError
    where the environment's spaces are not the policy's, or it returns NaN."""
    if not episodes or (num_envs is not None and num_envs < 1):
        raise InputError(
            f"there is no episode to play, or num_envs {num_envs} is not at least 1; give one episode or more."
        )
    vector = (
        env
        if isinstance(env, VectorEnv)
        else make_vector(env or policy.data.env_spec, num_envs_for(policy, num_envs, len(episodes)))
    )
    try:
        seen = check_spaces(policy, vector, observation)
        return Rollout(policy, vector, seen, episodes, deterministic, on_episode).run()
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


def num_envs_for(policy: Actor, asked: int | None, episodes: int) -> int:
    """Rows of the vector environment: no more than there are episodes, unless the policy takes a fixed number."""
    if policy.rows is not None:
        return asked or policy.rows
    return min(asked or MAX_ENVS, episodes)


def check_spaces(policy: Actor, vector: "VectorEnv[Any, Any, Any]", observation: str | None) -> tuple[str | int, ...]:
    """The keys of the part of the observations that the policy sees. Raises InputError where the environment's spaces are not the policy's."""
    if isinstance(vector, AsyncVectorEnv) and vector.shared_memory and has_texts(policy.observation_space):
        raise InputError(
            "an AsyncVectorEnv with shared memory gives other texts than its environments (seen in Gymnasium 1.4); make it with shared_memory=False."
        )
    seen = seen_part(vector.single_observation_space, policy.observation_space, observation, policy.data.dataset)
    if not same_space(policy.action_space, vector.single_action_space):
        raise InputError(
            f"the action space of the environment is {vector.single_action_space}, and the policy was trained on {policy.data.dataset} with "
            f"{policy.action_space}; evaluate it in the environment of its data."
        )
    return seen


def has_texts(space: Space) -> bool:
    return any(isinstance(leaf.space, spaces.Text) for leaf in leaves(space))


class Rollout:
    """The state of one call of `rollout`: which episode each row plays, and what it has recorded."""

    def __init__(
        self,
        policy: Actor,
        vector: "VectorEnv[Any, Any, Any]",
        seen: tuple[str | int, ...],
        episodes: Sequence[Episode],
        deterministic: bool,
        on_episode: Callable[[int], object],
    ) -> None:
        self.seen, self.masks = seen, MaskReader(vector.single_observation_space, seen, policy.mask_size)
        self.policy, self.episodes, self.deterministic, self.on_episode = policy, episodes, deterministic, on_episode
        self.vector: Any = vector  # VectorEnv's own annotations leave out a list of seeds
        mode = vector.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        self.mode = AutoresetMode(mode) if not isinstance(mode, AutoresetMode) else mode
        self.waiting = deque(range(len(episodes)))
        self.playing: list[int | None] = [None] * vector.num_envs
        self.records: list[dict[tuple[str, str], list[Any]]] = [{} for _ in range(vector.num_envs)]
        self.finished: dict[int, dict[str, Any]] = {}

    def run(self) -> Trajectories:
        n = self.vector.num_envs
        state = self.policy.initial_state(n)
        for row in range(n):
            self.begin(row)
        observations, info = self.vector.reset(seed=[self.seed_of(row) for row in range(n)])
        first = np.ones(n, dtype=bool)
        skipped = np.zeros(n, dtype=bool)  # rows whose next step is NEXT_STEP's reset
        while any(p is not None for p in self.playing):
            seen = self.parts(observations)
            self.arm(state, first)
            masks = self.masks.read(observations, info, n)
            if (
                masks is not None
            ):  # of a row that is about to be reset, or plays nothing, the mask may be that of an end, which allows nothing
                idle = np.array([index is None for index in self.playing])
                masks = masks | (skipped | (idle & ~masks.any(axis=1)))[:, None]
            actions, state = self.policy.predict(
                unflatten(self.policy.observation_space, seen),
                state,
                episode_start=first | skipped,
                deterministic=self.deterministic,
                action_masks=masks,
            )
            observations, rewards, terminated, truncated, info = self.vector.step(actions)
            self.check_rewards(rewards, state)
            self.record(seen, flatten(self.policy.action_space, actions), rewards, terminated, truncated, ~skipped)
            state.reward = np.where(skipped, 0.0, rewards)
            done = (terminated | truncated) & ~skipped
            first, skipped = skipped.copy(), np.zeros(n, dtype=bool)
            if done.any():
                last = self.last_observations(observations, done, info)
                for row in np.flatnonzero(done).tolist():
                    self.finish(row, {path: values[row] for path, values in last.items()})
                    self.begin(row)
                if self.mode == AutoresetMode.DISABLED:
                    seeds = [self.seed_of(row) if done[row] else None for row in range(n)]
                    observations, begun = self.vector.reset(seed=seeds, options={"reset_mask": done})
                    info = joined_info(info, begun, done)
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
        self.records[row] = defaultdict(list)

    def arm(self, state: PolicyState, first: npt.NDArray[np.bool_]) -> None:
        """Tell the policy what is asked of the rows that begin an episode now, and give each its own randomness."""
        for row in np.flatnonzero(first):
            if (index := self.playing[row]) is not None:
                state.target_returns[row] = self.episodes[index].target_return
                state.generators[row] = np.random.default_rng([1, self.episodes[index].seed])

    def parts(self, observations: Any) -> dict[str, Array]:
        """Copies of the parts of a batch of observations by path: environments may write into their arrays again."""
        space = self.policy.observation_space
        parts = flatten(space, descend(observations, self.seen))
        return {leaf.path: np.array(numbers_of(leaf.space, parts[leaf.path]), copy=True) for leaf in leaves(space)}

    def record(
        self,
        observations: Mapping[str, Array],
        actions: Mapping[str, Array],
        rewards: Array,
        terminated: Array,
        truncated: Array,
        real: Array,
    ) -> None:
        step = {
            **{("observations", path): values for path, values in observations.items()},
            **{("actions", path): values for path, values in actions.items()},
            ("rewards", ""): rewards,
            ("terminations", ""): terminated,
            ("truncations", ""): truncated,
        }
        for row, index in enumerate(self.playing):
            if index is not None and real[row]:
                for key, values in step.items():
                    self.records[row][key].append(values[row])

    def last_observations(self, observations: Any, done: Array, info: dict[str, Any]) -> dict[str, Array]:
        """What the finished rows showed last: in SAME_STEP the observations are already those of the next episode."""
        last = self.parts(observations)
        if self.mode == AutoresetMode.SAME_STEP:
            space = self.policy.observation_space
            for row in np.flatnonzero(done):
                final = flatten(space, descend(info["final_obs"][row], self.seen))
                for leaf in leaves(space):
                    last[leaf.path][row] = numbers_of(leaf.space, final[leaf.path])
        return last

    def finish(self, row: int, last: Mapping[str, Array]) -> None:
        index = self.playing[row]
        if index is None:
            return
        for path, value in last.items():
            self.records[row]["observations", path].append(value)
        parts: dict[str, dict[str, Array]] = defaultdict(dict)
        for (name, path), values in self.records[row].items():
            parts[name][path] = np.asarray(values)
        policy = self.policy
        self.finished[index] = {
            "observations": unflatten(policy.observation_space, parts["observations"]),
            "actions": unflatten(policy.action_space, parts["actions"]),
            **{name: parts[name][""] for name in ("rewards", "terminations", "truncations")},
        }
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
