"""Measuring the two reference returns of an environment: a random policy's, and that of a policy taken as the expert."""

import math
import sys
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from dtrl.acting import Actor, Episode, rollout
from dtrl.acting.environments import make_environment
from dtrl.errors import InputError


@dataclass(frozen=True)
class Measured:
    """Returns of one policy, undiscounted, in the environment's reward units."""

    returns: tuple[float, ...]
    how: str
    """What played, in words."""

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def standard_error(self) -> float:
        """Of the mean; NaN for a single episode."""
        return float(np.std(self.returns, ddof=1) / math.sqrt(len(self.returns))) if len(self.returns) > 1 else math.nan

    def to_dict(self) -> dict[str, Any]:
        error = self.standard_error
        return {
            "mean": self.mean,
            "standard_error": None if math.isnan(error) else error,
            "how": self.how,
            "returns": list(self.returns),
        }


def random_return(env: str, episodes: int = 100, seed: int = 0, progress: bool = False) -> Measured:
    """Returns of actions drawn uniformly from the action space, in episodes that begin with the seeds `seed` to `seed + episodes - 1`."""
    check(episodes, seed)
    from tqdm import tqdm

    played = make_environment(env)
    # Seeded like its environment, an action space would draw the very numbers that chose the initial state.
    played.action_space.seed(int(np.random.SeedSequence([seed, 1]).generate_state(1)[0]))
    hidden = not (progress and sys.stderr.isatty())
    numbers = tqdm(range(episodes), desc="random policy", unit="episode", disable=hidden, leave=False)
    try:
        returns = tuple(random_episode(played, seed + i) for i in numbers)
    finally:
        played.close()
    return Measured(returns, f"{episodes} episodes of uniform random actions, seeds {seed} to {seed + episodes - 1}")


def random_episode(env: "gymnasium.Env[Any, Any]", seed: int) -> float:
    env.reset(seed=seed)
    total, ended = 0.0, False
    while not ended:
        _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        total, ended = total + float(reward), terminated or truncated
    return total


def policy_return(
    policy: Actor, env: str, episodes: int = 100, seed: int = 0, target_return: float | None = None
) -> Measured:
    """Returns of a policy that is asked for `target_return` (by default its own), in episodes with the same seeds as `random_return`.

    One of another library (`dtrl.interop.stable_baselines.load_actor`) acts alike whatever it is asked for."""
    check(episodes, seed)
    target = policy.target_return if target_return is None else target_return
    plan = [Episode(target, seed + i) for i in range(episodes)]
    played = rollout(policy, env, plan, deterministic=policy.decoding.greedy)
    trained = f"a policy trained on {policy.data.dataset} and asked for {target:.6g}"
    who = policy.data.dataset if policy.config.preset == "array_policy" else trained
    how = f"{episodes} episodes of {who}, seeds {seed} to {seed + episodes - 1}"
    return Measured(tuple(float(r) for r in played.episode_returns), how)


def check(episodes: int, seed: int) -> None:
    if episodes < 1 or seed < 0:
        raise InputError(f"episodes ({episodes}) must be at least 1, and seed ({seed}) not negative.")
