"""Trajectories → batches of windows (B, K), drawn by index arithmetic. The one place that cuts and pads.

Conventions, fixed here: a window begins at any step of any episode and runs K steps or to the episode's end, whichever is first
[Chen et al. 2021, algorithm 1]; it is padded on the right with zeros, so that behind a causal model padding cannot become content;
timesteps count from the beginning of the episode; masks are True where a step is real, and are called `valid`."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dtrl.spaces import leaves
from dtrl.trajectories import Trajectories


def field_columns(trajectories: Trajectories, names: Iterable[str] | None = None) -> dict[str, npt.NDArray[Any]]:
    """Name of what a model's field reads → its column, of the given names or of those that every model knows: `return`, `observation` and `action`, or
    `observation/PATH` a leaf of a composite space. Others are `reward`; `value`, the return-to-go of the next step, 0 after the last
    [Janner et al. 2021, arXiv:2106.02039, §3]; and `terminal`, 1 where the episode terminates."""
    columns: dict[str, npt.NDArray[Any]] = {"return": trajectories.returns_to_go}
    for field, column, space in (
        ("observation", "observations", trajectories.observation_space),
        ("action", "actions", trajectories.action_space),
    ):
        columns |= {leaf.name(field): trajectories.columns[leaf.name(column)] for leaf in leaves(space)}
    if names is None:
        return columns
    return {name: MORE_COLUMNS[name](trajectories) if name in MORE_COLUMNS else columns[name] for name in names}


def values_after(trajectories: Trajectories) -> npt.NDArray[np.float32]:
    """(N,) the return-to-go of the step after each."""
    value = np.append(trajectories.returns_to_go[1:], np.float32(0))
    value[trajectories.episode_ends - 1] = 0
    return value


EPISODE_RETURN = "episode_return"
"""Name of the column that holds the return of a step's whole episode: nothing a model may see, but what says how good a window is."""
MORE_COLUMNS: dict[str, Callable[[Trajectories], npt.NDArray[Any]]] = {
    "reward": lambda trajectories: np.asarray(trajectories.rewards, dtype=np.float32),
    "value": values_after,
    EPISODE_RETURN: lambda trajectories: np.repeat(
        trajectories.episode_returns.astype(np.float32), trajectories.episode_lengths
    ),
    "terminal": lambda trajectories: np.asarray(trajectories.terminations, dtype=np.int64),
}


@dataclass(frozen=True)
class Batch:
    """Windows in env units."""

    values: Mapping[str, Tensor]
    """Field name → (B, K, …): "return" (B, K), "observation" (B, K, S) or (B, K), "action" (B, K, A) or (B, K), or one a leaf: "observation/image";
    "reward" and "value" (B, K)."""
    timesteps: Tensor
    """(B, K) int64, steps since the beginning of the episode; 0 in padding."""
    valid: Tensor
    """(B, K) bool."""

    def to(self, device: torch.device) -> "Batch":
        values = {name: x.to(device, non_blocking=True) for name, x in self.values.items()}
        return Batch(values, self.timesteps.to(device, non_blocking=True), self.valid.to(device, non_blocking=True))

    def cleared(self) -> "Batch":
        """The same windows with zeros in the padding, whatever stood there."""

        def clear(x: Tensor) -> Tensor:
            return torch.where(self.valid.view(*self.valid.shape, *[1] * (x.dim() - 2)), x, 0)

        return Batch({name: clear(x) for name, x in self.values.items()}, clear(self.timesteps), self.valid)

    def split(self, pieces: int) -> list["Batch"]:
        """Cut into `pieces` batches of equal size along B."""
        values: dict[str, tuple[Tensor, ...]] = {name: torch.chunk(x, pieces) for name, x in self.values.items()}
        rest = zip(torch.chunk(self.timesteps, pieces), torch.chunk(self.valid, pieces), strict=True)
        return [Batch({name: x[i] for name, x in values.items()}, t, v) for i, (t, v) in enumerate(rest)]


class Windows:
    """Draws batches of windows from trajectories, of what `names` name (see `field_columns`).

    Randomness is counter-based: batch number `update` depends on `(seed, update)` alone, so a resumed run needs no sampler state. `sampling`:
    every step alike ("step"), every episode alike and then every step of it ("episode"), or an episode in proportion to its length times the
    rank of its return, 1 for the worst ("return"). Of datasets that were mixed with weights, one is drawn by its weight first."""

    def __init__(
        self,
        trajectories: Trajectories,
        length: int,
        batch_size: int,
        sampling: str = "step",
        seed: int = 0,
        names: Iterable[str] | None = None,
    ) -> None:
        self.trajectories = trajectories
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.columns = field_columns(trajectories, names)
        self.end_of_step = np.repeat(trajectories.episode_ends, trajectories.episode_lengths)
        self.start_of_step = np.repeat(trajectories.episode_starts, trajectories.episode_lengths)
        alike = sampling == "step" and trajectories.mixture is None
        self.cumulative = None if alike else np.cumsum(episode_weights(trajectories, sampling))

    def draw(self, update: int) -> npt.NDArray[np.int64]:
        """(B,) the rows at which the windows of batch `update` begin."""
        random = np.random.default_rng([self.seed, update])
        if self.cumulative is None:
            return random.integers(self.trajectories.num_steps, size=self.batch_size)
        u = random.random((2, self.batch_size))
        episodes = np.searchsorted(self.cumulative, u[0] * self.cumulative[-1], side="right")
        offsets = (u[1] * self.trajectories.episode_lengths[episodes]).astype(np.int64)
        starts: npt.NDArray[np.int64] = self.trajectories.episode_starts[episodes] + offsets
        return starts

    def batch(self, update: int) -> Batch:
        return self.gather(self.draw(update))

    def gather(self, starts: npt.NDArray[np.int64]) -> Batch:
        """The windows that begin at the given rows."""
        steps = starts[:, None] + np.arange(self.length)
        valid = steps < self.end_of_step[starts][:, None]
        rows = np.where(valid, steps, starts[:, None])
        timesteps = (rows - self.start_of_step[starts][:, None]) * valid
        values = {name: torch.from_numpy(zero_padding(column[rows], valid)) for name, column in self.columns.items()}
        return Batch(values, torch.from_numpy(timesteps), torch.from_numpy(valid))

    @property
    def nbytes(self) -> int:
        """Bytes of all that batches are gathered from."""
        columns = [*self.columns.values(), self.end_of_step, self.start_of_step]
        return sum(column.nbytes for column in columns)

    def describe(self, update: int) -> str:
        """Which episodes batch `update` drew from, for error messages."""
        episodes = np.unique(np.searchsorted(self.trajectories.episode_starts, self.draw(update), side="right") - 1)
        shown = ", ".join(map(str, episodes[:8]))
        return f"episodes {shown}{f' and {len(episodes) - 8} more' if len(episodes) > 8 else ''}"


class ResidentWindows:
    """The windows of `Windows`, gathered on a device where all the data lie: the same index arithmetic, without a copy from the host or a wait for it."""

    def __init__(self, windows: Windows, device: torch.device) -> None:
        self.columns = {name: on_device(column, device) for name, column in windows.columns.items()}
        self.end_of_step = on_device(windows.end_of_step, device)
        self.start_of_step = on_device(windows.start_of_step, device)
        self.offsets = torch.arange(windows.length, device=device)

    def gather(self, starts: Tensor) -> Batch:
        """The windows that begin at the rows `starts` (B,), int64 on the device. Equal to `Windows.gather`."""
        first = starts[:, None]
        steps = first + self.offsets
        valid = steps < self.end_of_step[first]
        rows = torch.where(valid, steps, first)
        timesteps = rows - self.start_of_step[first]
        return Batch({name: column[rows] for name, column in self.columns.items()}, timesteps, valid).cleared()


def on_device(column: npt.NDArray[Any], device: torch.device) -> Tensor:
    """A copy of a column; a memory-mapped one may not be written to, and torch would warn of sharing it."""
    return torch.from_numpy(np.array(column)).to(device)


def episode_weights(trajectories: Trajectories, sampling: str) -> npt.NDArray[np.float64]:
    """(E,) unnormalised probability of drawing a window from each episode."""
    weights = np.ones(trajectories.num_episodes)
    if sampling == "return":
        weights[np.argsort(trajectories.episode_returns, kind="stable")] = np.arange(1, trajectories.num_episodes + 1)
    if sampling != "episode":
        weights *= trajectories.episode_lengths
    return weights if trajectories.mixture is None else trajectories.mixture.share_out(weights)


def zero_padding(values: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    values[~valid] = 0
    return values
