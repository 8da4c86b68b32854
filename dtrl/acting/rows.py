"""The rows of one vector environment, each playing one episode after another of a plan.

All rows go through the model in one forward. B rows, n entries of an action mask."""

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv

from dtrl.acting.actor import Actor
from dtrl.acting.environments import descend
from dtrl.acting.masks import MaskReader, Masks, joined_info
from dtrl.acting.steps import StepLog
from dtrl.acting.timing import Timing
from dtrl.acting.workers import WorkerGroup
from dtrl.errors import InputError
from dtrl.spaces import flatten, leaves, numbers_of, unflatten
from dtrl.trajectories import Trajectories
from dtrl.trajectories.columns import Origin

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Episode:
    """One episode to play."""

    target_return: float
    seed: int
    """Seed of the environment's reset and of sampled actions."""


class Plan:
    """The episodes that are to be played: which of them wait, and what came of the others. Any number of vector environments may take from it."""

    def __init__(self, episodes: Sequence[Episode], on_episode: Callable[[int], object]) -> None:
        self.episodes, self.on_episode = episodes, on_episode
        self.waiting = deque(range(len(episodes)))
        self.finished: dict[int, dict[str, Any]] = {}

    def next(self) -> int | None:
        """The number of the next episode that waits."""
        return self.waiting.popleft() if self.waiting else None

    def finish(self, index: int, episode: dict[str, Any]) -> None:
        self.finished[index] = episode
        self.on_episode(index)

    def gathered(self, policy: Actor) -> Trajectories:
        """All episodes, in the order in which they were given."""
        ordered = [self.finished[i] for i in range(len(self.episodes))]
        data = policy.data
        origin = Origin(f"rollouts of a policy trained on {data.dataset}", data.env_spec, data.reference)
        return Trajectories.from_episodes(ordered, policy.observation_space, policy.action_space, origin=origin)


class Rows:
    """A vector environment, the policy's state in it, and which episode each row plays.

    `begin`, then `act` and `take` in turns while it is `busy`: `act` sends a step, `take` waits for it. Between the two, others may act."""

    def __init__(
        self,
        policy: Actor,
        vector: "VectorEnv[Any, Any, Any] | WorkerGroup",
        seen: tuple[str | int, ...],
        plan: Plan,
        deterministic: bool,
        timing: Timing,
    ) -> None:
        self.policy, self.plan, self.deterministic, self.timing = policy, plan, deterministic, timing
        self.vector: Any = vector  # VectorEnv's own annotations leave out a list of seeds
        self.workers = vector if isinstance(vector, WorkerGroup) else None
        self.first_row = self.workers.first_row if self.workers else 0
        self.seen, self.masks = seen, MaskReader(vector.single_observation_space, seen, policy.mask_size)
        mode = vector.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        self.mode = AutoresetMode(mode) if not isinstance(mode, AutoresetMode) else mode
        n = vector.num_envs
        self.playing = [plan.next() for _ in range(n)]
        self.state = policy.initial_state(n)
        self.log = StepLog(n)
        self.first = np.ones(n, dtype=bool)
        self.skipped = np.zeros(n, dtype=bool)
        """Rows whose next step is NEXT_STEP's reset."""

    @property
    def busy(self) -> bool:
        return not self.idle.all()

    @property
    def idle(self) -> Masks:
        """(B,) rows that play nothing."""
        return np.array([index is None for index in self.playing])

    def begin(self) -> None:
        with self.waiting():
            self.observations, self.info = self.vector.reset(seed=[self.seed_of(row) for row in range(len(self.first))])

    def act(self) -> None:
        """Choose an action for every row, and begin the step."""
        idle = self.idle
        self.arm()
        masks = self.allowed(idle)
        self.shown = self.parts(self.observations)
        self.state.idle = idle
        with self.timing.adding("model_seconds"):
            self.actions, self.state = self.policy.predict(
                unflatten(self.policy.observation_space, self.shown),
                self.state,
                episode_start=self.first | self.skipped | idle,
                deterministic=self.deterministic,
                action_masks=masks,
            )
        if self.workers is not None:
            resets = {row: self.seed_of(row) for row in np.flatnonzero(self.skipped).tolist()}
            with self.waiting():  # a message may give the core to a worker at once
                self.workers.step_async(flatten(self.policy.action_space, self.actions), resets)

    def take(self) -> None:
        """Wait for the step, write it down, and give the rows that finished their next episodes."""
        with self.waiting():
            step = self.vector.step(self.actions) if self.workers is None else self.workers.step_wait()
        self.observations, rewards, terminated, truncated, self.info = step
        self.check_rewards(rewards)
        self.record(np.asarray(rewards, dtype=np.float64), terminated, truncated)
        self.state.reward = np.where(self.skipped, 0.0, rewards)
        done = (terminated | truncated) & ~self.skipped
        self.first, self.skipped = self.skipped, np.zeros(len(done), dtype=bool)
        if done.any():
            self.finish(done)

    def waiting(self) -> Any:
        return self.timing.adding("waited_seconds")

    def seed_of(self, row: int) -> int | None:
        index = self.playing[row]
        return None if index is None else self.plan.episodes[index].seed

    def arm(self) -> None:
        """Tell the policy what is asked of the rows that begin an episode now, and give each its own randomness."""
        for row in np.flatnonzero(self.first):
            if (index := self.playing[row]) is not None:
                self.state.target_returns[row] = self.plan.episodes[index].target_return
                self.state.generators[row] = np.random.default_rng([1, self.plan.episodes[index].seed])

    def allowed(self, idle: Masks) -> Masks | None:
        """(B, n) the action masks. That of a row that is about to be reset, or plays nothing, may be that of an end, which allows nothing."""
        masks = self.masks.read(self.observations, self.info, len(idle))
        return None if masks is None else masks | (self.skipped | (idle & ~masks.any(axis=1)))[:, None]

    def parts(self, observations: Any) -> dict[str, Array]:
        """Copies of the parts of a batch of observations by path: environments may write into their arrays again."""
        space = self.policy.observation_space
        parts = flatten(space, descend(observations, self.seen))
        return {leaf.path: np.array(numbers_of(leaf.space, parts[leaf.path]), copy=True) for leaf in leaves(space)}

    def record(self, rewards: Array, terminated: Array, truncated: Array) -> None:
        actions = flatten(self.policy.action_space, self.actions)
        self.log.append(
            {
                **{("observations", path): values for path, values in self.shown.items()},
                **{("actions", path): values for path, values in actions.items()},
                ("rewards", ""): rewards,
                ("terminations", ""): terminated,
                ("truncations", ""): truncated,
            }
        )
        if self.skipped.any():
            self.log.begin(self.skipped)

    def finish(self, done: Array) -> None:
        """Write down the episodes that have ended, and begin others; a row for which none is left goes on unrecorded."""
        last = self.last_observations(done)
        for row in np.flatnonzero(done).tolist():
            if (index := self.playing[row]) is not None:
                self.plan.finish(index, self.episode(row, {path: values[row] for path, values in last.items()}))
            self.playing[row] = self.plan.next()
        idle = self.idle
        self.log.begin(done | idle)
        if self.mode == AutoresetMode.DISABLED:
            seeds = [self.seed_of(row) if done[row] else None for row in range(len(done))]
            with self.waiting():
                self.observations, begun = self.vector.reset(seed=seeds, options={"reset_mask": done})
            self.info = joined_info(self.info, begun, done)
        if self.mode == AutoresetMode.NEXT_STEP:
            self.skipped = done if self.workers is None else done & ~idle
        else:
            self.first = self.first | done

    def last_observations(self, done: Array) -> dict[str, Array]:
        """What the finished rows showed last: in SAME_STEP the observations are already those of the next episode."""
        last = self.parts(self.observations)
        if self.mode == AutoresetMode.SAME_STEP:
            space = self.policy.observation_space
            for row in np.flatnonzero(done):
                final = flatten(space, descend(self.info["final_obs"][row], self.seen))
                for leaf in leaves(space):
                    last[leaf.path][row] = numbers_of(leaf.space, final[leaf.path])
        return last

    def episode(self, row: int, last: Mapping[str, Array]) -> dict[str, Any]:
        """The row's episode, in the form that `Trajectories.from_episodes` takes."""
        parts: dict[str, dict[str, Array]] = defaultdict(dict)
        for (name, path), values in self.log.of(row).items():
            parts[name][path] = values
        shown = {path: np.concatenate([values, last[path][None]]) for path, values in parts["observations"].items()}
        self.timing.steps += len(parts["rewards"][""])
        return {
            "observations": unflatten(self.policy.observation_space, shown),
            "actions": unflatten(self.policy.action_space, parts["actions"]),
            **{name: parts[name][""] for name in ("rewards", "terminations", "truncations")},
        }

    def check_rewards(self, rewards: Array) -> None:
        if not np.isfinite(rewards).all():
            row = int(np.flatnonzero(~np.isfinite(rewards))[0])
            raise InputError(
                f"environment {self.first_row + row} returned the reward {rewards[row]} at step {self.state.timesteps[row]} (seed {self.seed_of(row)}); "
                "the environment is at fault."
            )
