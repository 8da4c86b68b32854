"""Trajectories → batches of windows (B, K), drawn by index arithmetic. The one place that cuts and pads.

Conventions, fixed here: a window begins at any step of any episode and runs K steps or to the episode's end, whichever is first
[Chen et al. 2021, algorithm 1]; it is padded on the right with zeros, so that behind a causal model padding cannot become content;
timesteps count from the beginning of the episode; masks are True where a step is real, and are called `valid`.

With blocks of H > 1 steps a window is K blocks, whose first steps are H apart, the first at any step. Of a block's first step are the return, the
observation and the timestep; of its action there is a chunk, (H, …). A chunk that its episode cuts short repeats the last action: a tokenizer of whole
chunks cannot leave single steps out, nobody executes what comes after the end, and nothing of the data is lost [Chi et al. 2023, Diffusion Policy,
arXiv:2303.04137, does the same]."""

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


def chunk_rows(rows: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], block_length: int) -> npt.NDArray[np.int64]:
    """(…, H) the rows of the chunks of H steps that begin at `rows` (…), in episodes that end before `ends` (…); their last again where a chunk is cut."""
    return np.asarray(np.minimum(rows[..., None] + np.arange(block_length), ends[..., None] - 1))


def is_chunked(name: str, block_length: int) -> bool:
    """Whether the column that a field reads is given in chunks: those of actions, where blocks have several steps."""
    return block_length > 1 and name.split("/")[0] == "action"


@dataclass(frozen=True)
class Batch:
    """Windows in env units."""

    values: Mapping[str, Tensor]
    """Field name → (B, K, …): "return" (B, K), "observation" (B, K, S) or (B, K), "action" (B, K, A) or (B, K), or one a leaf: "observation/image";
    "reward" and "value" (B, K). With blocks of H > 1 steps, K blocks, and actions (B, K, H, A) or (B, K, H)."""
    timesteps: Tensor
    """(B, K) int64, steps since the beginning of the episode, of a block's first one; 0 in padding."""
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
    """Draws batches of windows of `length` blocks, of `block_length` steps each, from trajectories, of what `names` name (see `field_columns`).

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
        block_length: int = 1,
    ) -> None:
        self.trajectories = trajectories
        self.length, self.batch_size, self.seed, self.block_length = length, batch_size, seed, block_length
        self.columns = field_columns(trajectories, names)
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
        steps = starts[:, None] + np.arange(0, self.length * self.block_length, self.block_length)
        # of each window, not of each step of the data: those would take more memory than a small environment's columns
        episodes = np.searchsorted(self.trajectories.episode_starts, starts, side="right") - 1
        ends = self.trajectories.episode_ends[episodes][:, None]
        valid = steps < ends
        rows = np.where(valid, steps, starts[:, None])
        timesteps = (rows - self.trajectories.episode_starts[episodes][:, None]) * valid
        values = {}
        for name, column in self.columns.items():
            at = chunk_rows(rows, ends, self.block_length) if is_chunked(name, self.block_length) else rows
            values[name] = torch.from_numpy(zero_padding(column[at], valid))
        return Batch(values, torch.from_numpy(timesteps), torch.from_numpy(valid))

    @property
    def nbytes(self) -> int:
        """Bytes of all that batches are gathered from."""
        episodes = self.trajectories.episode_starts, self.trajectories.episode_ends
        return sum(column.nbytes for column in (*self.columns.values(), *episodes))

    def describe(self, update: int) -> str:
        """Which episodes batch `update` drew from, for error messages."""
        episodes = np.unique(np.searchsorted(self.trajectories.episode_starts, self.draw(update), side="right") - 1)
        shown = ", ".join(map(str, episodes[:8]))
        return f"episodes {shown}{f' and {len(episodes) - 8} more' if len(episodes) > 8 else ''}"


class ResidentWindows:
    """The windows of `Windows`, gathered on a device where all the data lie: the same index arithmetic, without a copy from the host or a wait for it."""

    def __init__(self, windows: Windows, device: torch.device) -> None:
        self.columns = {name: on_device(column, device) for name, column in windows.columns.items()}
        self.episode_starts = on_device(windows.trajectories.episode_starts, device)
        self.episode_ends = on_device(windows.trajectories.episode_ends, device)
        self.block_length = windows.block_length
        self.offsets = torch.arange(0, windows.length * self.block_length, self.block_length, device=device)
        self.within = torch.arange(self.block_length, device=device)

    def gather(self, starts: Tensor) -> Batch:
        """The windows that begin at the rows `starts` (B,), int64 on the device. Equal to `Windows.gather`."""
        first = starts[:, None]
        episodes = torch.searchsorted(self.episode_starts, first, right=True) - 1
        steps, ends = first + self.offsets, self.episode_ends[episodes]
        valid = steps < ends
        rows = torch.where(valid, steps, first)
        timesteps = rows - self.episode_starts[episodes]
        chunks = rows
        if self.block_length > 1:
            chunks = torch.minimum(rows.unsqueeze(-1) + self.within, ends.unsqueeze(-1) - 1)
        values = {
            name: column[chunks if is_chunked(name, self.block_length) else rows]
            for name, column in self.columns.items()
        }
        return Batch(values, timesteps, valid).cleared()


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


MOST_FITTED = 2**24
"""Numbers of actions, of all chunks together, above which chunks are fitted on that do not begin at every step."""


def fitted_chunks(trajectories: Trajectories, column: npt.NDArray[Any], block_length: int) -> npt.NDArray[Any]:
    """(M, H, …) chunks of a column (N, …) for a tokenizer to be fitted to: as in windows, those that begin at every step, or at every second, third, …,
    where these are many. Every step is in one of them."""
    numbers = column.size * block_length
    every = min(block_length, max(1, -(-numbers // MOST_FITTED)))
    within = np.arange(trajectories.num_steps) - np.repeat(trajectories.episode_starts, trajectories.episode_lengths)
    rows = np.flatnonzero(within % every == 0)
    ends = np.repeat(trajectories.episode_ends, trajectories.episode_lengths)[rows]
    return np.asarray(column[chunk_rows(rows, ends, block_length)])
