"""Recording an environment while something acts in it: a Gymnasium wrapper that writes a Minari dataset."""

import warnings
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from dtrl.collect.episodes import check_finite, kept
from dtrl.collect.recording import check_target, create, spec_of, write_whole
from dtrl.errors import InputError
from dtrl.spaces import check_space, stack

if TYPE_CHECKING:
    from minari.data_collector import EpisodeBuffer


class Episode:
    """What happened since a reset."""

    def __init__(self, observation: Any, seed: int | None, options: dict[str, Any] | None) -> None:
        self.seed, self.options = seed, options
        self.observations, self.actions = [kept(observation)], list[Any]()
        self.rewards = list[float]()
        self.terminated = self.truncated = False

    def buffer(self, number: int, env: "gymnasium.Env[Any, Any]") -> "EpisodeBuffer":
        """As Minari stores it; an episode that did not end counts as truncated. Raises InputError where it holds NaN or infinity."""
        from minari.data_collector import EpisodeBuffer

        steps = len(self.rewards)
        values = {
            "observations": stack(env.observation_space, self.observations),
            "actions": stack(env.action_space, self.actions),
            "rewards": np.asarray(self.rewards, dtype=np.float64),
        }
        advice = "the episode is left out, and what gave them needs a repair."
        check_finite(values, f"recorded episode {number}", advice)
        last = np.arange(steps) == steps - 1
        return EpisodeBuffer(
            id=number,
            seed=self.seed,
            options=self.options,
            terminations=last & self.terminated,
            truncations=last & (self.truncated or not self.terminated),
            **values,
        )


class Recorder(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment that is recorded: step it as ever, and `close()` (or `write()`) makes the Minari dataset `dataset_id`.

    Seeds and options given to `reset`, terminated and truncated are kept apart. A reset in the middle of an episode, and the end of the recording, cut
    the episode there: it counts as truncated, and a warning says how many were. Episodes are in memory until they are written; `write` may
    be called in between, and replaces what this recorder has written before.

        with dtrl.Recorder(gymnasium.make("CartPole-v1"), "mine/cartpole-v0") as env:
            ...

    Raises InputError at once where the id is malformed, the dataset exists (unless `overwrite`), or dtrl could not load the spaces."""

    def __init__(
        self,
        env: "gymnasium.Env[Any, Any]",
        dataset_id: str,
        *,
        description: str = "",
        algorithm: str = "",
        overwrite: bool = False,
    ) -> None:
        if not isinstance(env, gymnasium.Env):
            raise InputError(
                f"{type(env).__name__} is no single environment; record one gymnasium.Env, not a vector of them."
            )
        check_target(dataset_id, overwrite)
        check_space(env.observation_space, "observation", str(env))
        check_space(env.action_space, "action", str(env))
        super().__init__(env)
        self.dataset_id, self.description, self.algorithm, self.overwrite = (
            dataset_id,
            description,
            algorithm,
            overwrite,
        )
        self.episodes: list[EpisodeBuffer] = []
        self.cut = 0
        """Episodes that were left before their end."""
        self.running: Episode | None = None
        self.unwritten = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.leave()
        observation, info = self.env.reset(seed=seed, options=options)
        self.running = Episode(observation, seed, options)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        episode = self.running
        if episode is None:
            raise InputError("the environment is stepped after the end of an episode, or before the first; call reset.")
        result = observation, reward, terminated, truncated, _ = self.env.step(action)
        episode.actions.append(kept(action))
        episode.observations.append(kept(observation))
        episode.rewards.append(float(reward))
        self.unwritten = True
        if terminated or truncated:
            episode.terminated, episode.truncated = bool(terminated), bool(truncated)
            self.leave()
        return result

    def leave(self) -> None:
        """End the running episode where it stands; one without a step is forgotten."""
        episode, self.running = self.running, None
        if episode is not None and episode.rewards:
            self.episodes.append(episode.buffer(len(self.episodes), self.env))
            self.cut += not (episode.terminated or episode.truncated)

    def write(self) -> str:
        """Write all episodes, the running one as far as it has come, and return the dataset's id. Raises InputError where there is no step."""
        from minari.data_collector import EpisodeBuffer

        episodes: list[EpisodeBuffer] = list(self.episodes)
        cut, problem = self.cut, None
        if self.running is not None and self.running.rewards:
            try:
                episodes.append(self.running.buffer(len(episodes), self.env))
                cut += 1
            except InputError as error:  # the episodes before it shall not be lost
                self.running, problem = None, error
        if problem is not None and not episodes:
            raise problem
        if not episodes:
            raise InputError(f"nothing was recorded for {self.dataset_id}; reset and step the environment first.")
        check_target(self.dataset_id, self.overwrite)
        write_whole(self.dataset_id, lambda: self.create(episodes))
        self.overwrite, self.unwritten = True, False
        if cut:
            warnings.warn(
                f"{cut} of {len(episodes)} episodes of {self.dataset_id} were left before the environment ended them; they count as truncated",
                stacklevel=2,
            )
        if problem is not None:
            raise problem
        return self.dataset_id

    def create(self, episodes: "list[EpisodeBuffer]") -> None:
        create(
            self.dataset_id,
            episodes,
            spec_of(self.env),
            observation_space=self.observation_space,
            action_space=self.action_space,
            algorithm_name=self.algorithm or None,
            description=self.description or f"Recorded in {self.env}.",
        )

    def close(self) -> None:
        """Write what has not been written yet, and close the environment."""
        try:
            if self.unwritten:
                self.write()
        finally:
            self.running = None
            self.env.close()
