"""The rows of one vector environment, each playing one episode after another of a plan.

All rows go through the model in one forward. B rows, n entries of an action mask."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv

from dtrl.acting.actor import Actor
from dtrl.acting.environments import descend
from dtrl.acting.faults import Fault, where
from dtrl.acting.guard import GuardedEnvs, blank
from dtrl.acting.masks import MaskReader, Masks, joined_info
from dtrl.acting.plan import Plan
from dtrl.acting.steps import StepLog
from dtrl.acting.timing import Timing
from dtrl.acting.workers import WorkerGroup
from dtrl.errors import InputError
from dtrl.spaces import contains, flatten, leaves, numbers_of, unflatten

Array = npt.NDArray[Any]


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
        self.guarded = vector if isinstance(vector, (WorkerGroup, GuardedEnvs)) else None
        """The environments, where one may fail without the others."""
        self.first_row = self.workers.first_row if self.workers else 0
        self.seen, self.masks = seen, MaskReader(vector.single_observation_space, seen, policy.mask_size)
        mode = vector.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        self.mode = AutoresetMode(mode) if not isinstance(mode, AutoresetMode) else mode
        n = vector.num_envs
        self.playing = [plan.next() for _ in range(n)]
        self.state = policy.initial_state(n)
        self.log = StepLog(n)
        self.observed, self.acted = leaves(policy.observation_space), leaves(policy.action_space)
        empty = flatten(policy.observation_space, blank(policy.observation_space))
        self.blank = {leaf.path: numbers_of(leaf.space, empty[leaf.path]) for leaf in self.observed}
        self.first = np.ones(n, dtype=bool)
        self.skipped = np.zeros(n, dtype=bool)
        """Rows whose next step is NEXT_STEP's reset."""
        self.reset = np.ones(n, dtype=bool)
        """Rows whose last step was a reset."""
        self.failed = np.zeros(n, dtype=bool)
        """Rows whose environment has failed, and was not reset since: the policy may not see what they show."""

    @property
    def busy(self) -> bool:
        return not self.idle.all()

    @property
    def idle(self) -> Masks:
        """(B,) rows that play nothing."""
        return np.array([index is None for index in self.playing])

    def begin(self) -> None:
        if self.guarded is not None:
            self.guarded.rest(self.idle)
        with self.waiting():
            self.observations, self.info = self.vector.reset(seed=[self.seed_of(row) for row in range(len(self.first))])
        self.now = self.parts(self.observations)
        if faults := self.faults(self.now):
            self.failed = self.rows_of(faults)
            self.finish(self.failed, faults)

    def act(self) -> None:
        """Choose an action for every row, and begin the step."""
        idle = self.idle
        self.arm()
        masks = self.allowed(idle)
        self.shown = self.now
        if (veiled := idle | self.failed).any():
            for path, values in self.shown.items():
                values[veiled] = self.blank[path]
        self.state.idle = idle
        with self.timing.adding("model_seconds"):
            self.actions, self.state = self.policy.predict(
                unflatten(self.policy.observation_space, self.shown),
                self.state,
                episode_start=self.first | self.skipped | idle,
                deterministic=self.deterministic,
                action_masks=masks,
            )
        self.acts = flatten(self.policy.action_space, self.actions)
        self.check_actions(~(self.skipped | idle))
        if self.workers is not None:
            resets = {row: self.seed_of(row) for row in np.flatnonzero(self.skipped).tolist()}
            with self.waiting():  # a message may give the core to a worker at once
                self.workers.step_async(self.acts, resets)

    def take(self) -> None:
        """Wait for the step, write it down, and give the rows that finished their next episodes."""
        with self.waiting():
            step = self.vector.step(self.actions) if self.workers is None else self.workers.step_wait()
        self.observations, rewards, terminated, truncated, self.info = step
        self.now, self.reset = self.parts(self.observations), self.skipped
        faults = self.faults(self.now, rewards)
        self.failed = self.rows_of(faults)
        if faults:
            rewards = np.where(self.failed, 0.0, rewards)
        self.record(np.asarray(rewards, dtype=np.float64), terminated, truncated)
        self.state.reward = np.where(self.skipped, 0.0, rewards)
        done = ((terminated | truncated) & ~self.skipped) | self.failed
        self.first, self.skipped = self.skipped, np.zeros(len(done), dtype=bool)
        if done.any():
            self.finish(done, faults)

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
        return {leaf.path: np.array(numbers_of(leaf.space, parts[leaf.path]), copy=True) for leaf in self.observed}

    def record(self, rewards: Array, terminated: Array, truncated: Array) -> None:
        self.log.append(
            {
                **{("observations", path): values for path, values in self.shown.items()},
                **{("actions", path): values for path, values in self.acts.items()},
                ("rewards", ""): rewards,
                ("terminations", ""): terminated,
                ("truncations", ""): truncated,
            }
        )
        if self.skipped.any():
            self.log.begin(self.skipped)

    def finish(self, done: Array, faults: Mapping[int, Fault]) -> None:
        """Write down the episodes that have ended, and begin others; a row for which none is left goes on unrecorded."""
        last = self.last_observations(done & ~self.failed)
        for row in np.flatnonzero(done).tolist():
            if row in faults:
                self.fail(row, faults[row])
            elif (index := self.playing[row]) is not None:
                self.plan.finish(index, self.episode(row, {path: values[row] for path, values in last.items()}))
            self.playing[row] = self.plan.next()
        self.log.begin(done | self.idle)
        if self.mode == AutoresetMode.DISABLED:
            self.begin_again(done)
        if self.mode == AutoresetMode.NEXT_STEP:
            self.skipped = done if self.workers is None else done & ~self.idle
        else:
            self.first = self.first | done

    def begin_again(self, done: Array) -> None:
        """Reset the rows that are done, each with the seed of its episode, and again where that fails."""
        while done.any():
            if self.guarded is not None:
                self.guarded.rest(self.idle)
            seeds = [self.seed_of(row) if done[row] else None for row in range(len(done))]
            with self.waiting():
                self.observations, begun = self.vector.reset(seed=seeds, options={"reset_mask": done})
            self.info = joined_info(self.info, begun, done)
            self.now, self.reset = self.parts(self.observations), done
            faults = self.faults(self.now)
            for row, fault in faults.items():
                self.fail(row, fault)
                self.playing[row] = self.plan.next()
            done = self.failed = self.rows_of(faults)

    def fail(self, row: int, fault: Fault) -> None:
        """Give up the episode of a row, for now or for good."""
        index = self.playing[row]
        assert index is not None
        if self.guarded is not None:
            self.guarded.replace(row)
        self.plan.fail(index, fault, self.first_row + row, self.step_of(row))

    def faults(self, shown: Mapping[str, Array], rewards: Array | None = None) -> dict[int, Fault]:
        """Row → what its environment did wrong in the last step or reset, of the rows that play something, in their order.

        `shown` are the parts (B, …) of the observations by path."""
        found = dict(self.guarded.faults()) if self.guarded is not None else {}
        for path, reader in self.policy.observing.leaves.items():
            for row, said in reader.wrong(shown[path]).items():
                found.setdefault(row, Fault("observation", f"showed {f'in {path} ' if path else ''}{said}"))
        if rewards is not None and not np.isfinite(rewards).all():
            for row in np.flatnonzero(~np.isfinite(rewards)).tolist():
                found.setdefault(row, Fault("reward", f"returned the reward {rewards[row]}"))
        return {row: found[row] for row in sorted(found) if self.playing[row] is not None} if found else found

    def rows_of(self, faults: Mapping[int, Fault]) -> Masks:
        rows = np.zeros(len(self.playing), dtype=bool)
        rows[list(faults)] = True
        return rows

    def step_of(self, row: int) -> int | None:
        """Number of the row's last step; None for a reset."""
        return None if self.reset[row] else int(self.state.timesteps[row])

    def last_observations(self, done: Array) -> dict[str, Array]:
        """What the finished rows showed last: in SAME_STEP the observations are already those of the next episode."""
        last = self.now
        if self.mode == AutoresetMode.SAME_STEP:
            last, space = {path: values.copy() for path, values in last.items()}, self.policy.observation_space
            for row in np.flatnonzero(done).tolist():
                final = flatten(space, descend(self.info["final_obs"][row], self.seen))
                for leaf in self.observed:
                    last[leaf.path][row] = numbers_of(leaf.space, final[leaf.path])
            for row, fault in self.faults(last).items():
                self.fail(row, fault)
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

    def check_actions(self, playing: Masks) -> None:
        """Raise InputError where the policy does what no environment can be asked to do; whatever is to be done about environments that fail."""
        for leaf in self.acted:
            outside = playing & ~contains(leaf.space, self.acts[leaf.path])
            if outside.any():
                row = int(np.flatnonzero(outside)[0])
                place = where(self.first_row + row, int(self.state.timesteps[row]), self.seed_of(row))
                raise InputError(
                    f"{place} was given the action {self.acts[leaf.path][row].tolist()}, which is not in {leaf.space}; the policy is at fault, "
                    "so look whether its weights are finite."
                )
