"""A batch of windows as the Decision Transformer's published training makes it, written afresh from its description [Chen et al. 2021, algorithm 1]:
one window after the other."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dtrl.trajectories import Trajectories

PADDED_ACTION = -10.0
"""What stands before an episode's first action: no action of the data."""


class PaperLoop:
    """Episodes in memory, drawn in proportion to their lengths; of each drawn one a window from a step of it on, padded on the left."""

    def __init__(self, trajectories: Trajectories, length: int, batch_size: int) -> None:
        self.episodes = [trajectories.episode(i) for i in range(trajectories.num_episodes)]
        self.share = trajectories.episode_lengths / trajectories.num_steps
        self.mean, self.deviation = trajectories.observations.mean(axis=0), trajectories.observations.std(axis=0) + 1e-6
        self.length, self.batch_size = length, batch_size
        self.random = np.random.default_rng(0)

    def batch(self) -> dict[str, Tensor]:
        """Observations (B, K, S), normalised; actions (B, K, A); rewards and returns-to-go (B, K, 1); timesteps and valid (B, K)."""
        drawn = self.random.choice(len(self.episodes), size=self.batch_size, replace=True, p=self.share)
        windows = [self.window(self.episodes[i]) for i in drawn]
        return {name: torch.from_numpy(np.concatenate([window[name] for window in windows])) for name in windows[0]}

    def window(self, episode: dict[str, Any]) -> dict[str, npt.NDArray[Any]]:
        """(1, K, …) of each column."""
        start = int(self.random.integers(len(episode["rewards"])))
        cut = slice(start, start + self.length)
        observations = (episode["observations"][:-1][cut] - self.mean) / self.deviation
        steps = len(observations)
        return {
            "observations": self.pad(observations, 0.0),
            "actions": self.pad(episode["actions"][cut], PADDED_ACTION),
            "rewards": self.pad(episode["rewards"][cut, None], 0.0),
            "returns_to_go": self.pad(returns_to_go(episode["rewards"][start:])[:steps, None], 0.0),
            "timesteps": self.pad(np.arange(start, start + steps), 0),
            "valid": self.pad(np.ones(steps, dtype=np.int64), 0),
        }

    def pad(self, x: npt.NDArray[Any], value: float) -> npt.NDArray[Any]:
        """(n, …) → (1, K, …), padded on the left."""
        return np.concatenate([np.full((self.length - len(x), *x.shape[1:]), value, dtype=x.dtype), x])[None]


def returns_to_go(rewards: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Sums from each step to the end, one after the other, anew for every window."""
    sums = np.zeros_like(rewards)
    total = 0.0
    for i in range(len(rewards) - 1, -1, -1):
        total += float(rewards[i])
        sums[i] = total
    return sums
