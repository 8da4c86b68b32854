"""The episodes in a replay buffer of Stable-Baselines3: what D4RL calls medium-replay, [Fu et al. 2020, arXiv:2004.07219].

The buffer is a ring of steps of all training environments. A step says whether the episode was done, and whether that was a timeout; the seed of the
episode is what SeededResets noted."""

from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from dtrl.collect.episodes import Episode

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm


class SeededResets(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Resets with a seed of its own every time, and notes it, so that each episode of a training can be played again."""

    def __init__(self, env: "gymnasium.Env[Any, Any]") -> None:
        super().__init__(env)
        self.steps = 0
        self.seed_at: dict[int, int] = {}
        """Seed of the episode that begins when so many steps have been taken."""
        self.random = np.random.default_rng(0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.random = np.random.default_rng(seed)
        own = int(self.random.integers(2**31))
        self.seed_at[self.steps] = own
        return self.env.reset(seed=own, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.env.step(action)


def episodes_of_buffer(model: "BaseAlgorithm", steps: int) -> list[Episode]:
    """The whole episodes among the `steps` first steps of each training environment, in the order in which they ended.

    Those that began before what a full ring still holds, or have not ended, are left out. An action is the one that the environment was given,
    the observations after a timeout and a termination are the true last ones, rewards are float32 as the buffer holds them. A step that was
    terminated and truncated at once counts as terminated: the buffer does not hold more."""
    buffer = model.replay_buffer  # type: ignore[attr-defined]
    env = model.get_env()
    assert env is not None
    size = buffer.buffer_size
    first = max(0, steps - size)
    assert buffer.pos == steps % size
    rows = np.arange(first, steps) % size
    found = []
    for index, seed_at in enumerate(env.get_attr("seed_at")):
        begin = 0
        for end in np.flatnonzero(buffer.dones[rows, index]) + 1:
            if first + begin in seed_at:
                found.append((end, episode(model, rows[begin:end], index, seed_at[first + begin])))
            begin = int(end)
    return [whole for _, whole in sorted(found, key=lambda pair: int(pair[0]))]


def episode(model: "BaseAlgorithm", rows: "np.ndarray[Any, Any]", index: int, seed: int) -> Episode:
    """The episode in these rows of the ring, of one training environment."""
    buffer = model.replay_buffer  # type: ignore[attr-defined]
    observations = np.concatenate([buffer.observations[rows, index], buffer.next_observations[rows[-1:], index]])
    actions = buffer.actions[rows, index]
    if isinstance(model.action_space, gymnasium.spaces.Box):
        # The buffer holds actions scaled to ±1. Only DQN and its kin, whose actions are Discrete, store them as they are.
        actions = model.policy.unscale_action(actions).astype(model.action_space.dtype)
    else:
        actions = actions[:, 0]
    ended = buffer.dones[rows, index] > 0
    timeout = buffer.timeouts[rows, index] > 0
    return Episode(
        seed=seed,
        observations=as_given(observations, model),
        actions=actions,
        rewards=buffer.rewards[rows, index].astype(np.float64),
        terminations=ended & ~timeout,
        truncations=ended & timeout,
    )


def as_given(observations: "np.ndarray[Any, Any]", model: "BaseAlgorithm") -> "np.ndarray[Any, Any]":
    """Observations as the environment gives them: the buffer adds an axis to Discrete ones, and may hold images with the channels first."""
    from stable_baselines3.common.vec_env import VecTransposeImage, is_vecenv_wrapped

    env = model.get_env()
    assert env is not None
    if is_vecenv_wrapped(env, VecTransposeImage):
        return np.moveaxis(observations, 1, -1)
    return observations[:, 0] if isinstance(model.observation_space, gymnasium.spaces.Discrete) else observations
