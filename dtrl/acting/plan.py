"""The episodes that are to be played, and what becomes of each."""

import warnings
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dtrl.acting.actor import Actor
from dtrl.acting.faults import BESIDE, RETRIES, UNMADE, EpisodeFault, Fault, where
from dtrl.errors import InputError
from dtrl.trajectories import Trajectories
from dtrl.trajectories.columns import Origin


@dataclass(frozen=True)
class Episode:
    """One episode to play."""

    target_return: float
    seed: int
    """Seed of the environment's reset and of sampled actions."""


def warn_of(fault: EpisodeFault) -> None:
    """What a rollout does with a fault where nobody asked to hear of it."""
    warnings.warn(f"{fault.message} The episode {'is lost' if fault.lost else 'begins again'}.", stacklevel=2)


class Plan:
    """The episodes that are to be played: which of them wait, and what came of the others. Any number of vector environments may take from it."""

    def __init__(
        self,
        episodes: Sequence[Episode],
        on_episode: Callable[[int], object],
        on_env_error: str = "raise",
        on_fault: Callable[[EpisodeFault], object] = warn_of,
    ) -> None:
        self.episodes, self.on_episode = episodes, on_episode
        self.on_env_error, self.on_fault = on_env_error, on_fault
        self.waiting = deque(range(len(episodes)))
        self.finished: dict[int, dict[str, Any]] = {}
        self.attempts: Counter[int] = Counter()
        """How often each episode has failed."""
        self.first_fault: EpisodeFault | None = None

    def next(self) -> int | None:
        """The number of the next episode that waits."""
        return self.waiting.popleft() if self.waiting else None

    def finish(self, index: int, episode: dict[str, Any]) -> None:
        self.finished[index] = episode
        self.on_episode(index)

    def fail(self, index: int, fault: Fault, env: int, step: int | None) -> None:
        """Do with an episode what `on_env_error` says, after a fault of its environment in a step (None: at the reset): InputError, or its end, or its
        place at the head of those that wait."""
        if fault.kind == BESIDE:
            self.waiting.appendleft(index)
            return
        episode = self.episodes[index]
        message = f"{where(env, step, episode.seed)} {fault.said}; the environment is at fault"
        if fault.kind == UNMADE:
            raise InputError(f"{message}; see that it can be made as often as it fails.") from fault.cause
        if self.on_env_error == "raise":
            raise InputError(
                f"{message}; an evaluation goes on with the others by on_env_error (--on-env-error) skip or retry."
            ) from fault.cause
        self.attempts[index] += 1
        lost = self.on_env_error == "skip" or self.attempts[index] > RETRIES
        told = EpisodeFault(
            index, episode.target_return, episode.seed, env, step, fault.kind, f"{message}.", self.attempts[index], lost
        )
        self.first_fault = self.first_fault or told
        self.on_fault(told)
        if lost:
            self.on_episode(index)
        else:
            self.waiting.appendleft(index)

    def gathered(self, policy: Actor) -> Trajectories:
        """All episodes that were played to their ends, in the order in which they were given. Raises InputError where there is none."""
        if not self.finished:
            assert self.first_fault is not None
            raise InputError(
                f"all {len(self.episodes)} episodes were lost to faults of the environment, which leaves nothing to report; the first: "
                f"{self.first_fault.message}"
            )
        ordered = [self.finished[index] for index in sorted(self.finished)]
        data = policy.data
        origin = Origin(f"rollouts of a policy trained on {data.dataset}", data.env_spec, data.reference)
        return Trajectories.from_episodes(ordered, policy.observation_space, policy.action_space, origin=origin)
