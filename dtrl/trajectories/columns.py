"""The type every arrow of dtrl carries: episodes laid end to end in flat columns, with the offset at which each begins.

Letters: N steps in all episodes together, E episodes, S width of an observation, A width of an action. All values are in the
environment's own units; nothing is normalised here."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from dtrl.config import DataConfig, SourceConfig
from dtrl.errors import InputError
from dtrl.spaces import Space, flatten, leaves, numbers_of, unflatten
from dtrl.trajectories.filling import empty_columns, fill_episode

Array = npt.NDArray[Any]


UNNAMED = "unnamed"
"""The name of data that were made in Python and not given one."""


@dataclass(frozen=True)
class Origin:
    """Where trajectories came from, as far as a policy trained on them needs to know."""

    name: str
    """A Minari dataset id, or a word for data that has none."""
    env_spec: str | None = None
    """The environment as Gymnasium's EnvSpec in JSON; data only, never called without a check."""
    reference: tuple[float, float] | None = None
    """Returns of a random and of an expert policy, when the dataset states them."""
    fingerprint: str | None = None
    """sha256 of the dataset's files; where episodes were chosen or datasets mixed, of that too."""
    parts: tuple["Origin", ...] = ()
    """Those of the datasets that were mixed."""
    lossy_images: bool = False
    """Whether the images were stored as JPEG, which changes pixels."""
    loaded: tuple[SourceConfig, DataConfig] | None = None
    """What `load_trajectories` was asked for; None for other data, and where some of the episodes were selected since."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """How often windows are drawn from each of the datasets that were mixed."""

    part: npt.NDArray[np.int64]
    """(E,) number of the dataset that each episode is from."""
    weights: tuple[float, ...]
    """By dataset: windows from it, relative to the others'."""

    def share_out(self, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(E,) the episodes' weights, scaled so that those of a dataset add up to the dataset's weight."""
        totals = np.bincount(self.part, weights, minlength=len(self.weights))
        scale = np.divide(self.weights, totals, out=np.zeros(len(totals)), where=totals > 0)
        return np.asarray(weights * scale[self.part])


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Episodes as flat columns.

    `columns` maps a name to an array whose first axis runs over the N steps of all episodes; `final_observations`, alone, has a row an episode:
    the observation after its last step. A composite space has one column a leaf (`observations/image`, see `dtrl.spaces`), a simple one has one
    column in all. Arrays may be read-only memory maps."""

    columns: Mapping[str, Array]
    episode_starts: npt.NDArray[np.int64]
    """(E,) row at which each episode begins."""
    observation_space: Space
    action_space: Space
    origin: Origin = field(default_factory=lambda: Origin(UNNAMED))
    discount: float = 1.0
    """γ of `returns_to_go`."""
    delayed: bool = False
    """Whether every reward was moved to the end of its episode before `returns_to_go` was computed."""
    mixture: Mixture | None = None
    """For datasets that were mixed with weights."""

    @property
    def observations(self) -> Any:
        """What the environment showed before each step: (N, S) float32 for a vector Box, (N,) int64 for Discrete, (N, …) in the layout of
        `dtrl.spaces.column_layout` for other simple spaces, a dict or tuple of such columns for composite ones."""
        return self.structured("observations", self.observation_space)

    @property
    def final_observations(self) -> Any:
        """(E, …) in the same layout: what it showed after the last step of each episode."""
        return self.structured("final_observations", self.observation_space)

    @property
    def actions(self) -> Any:
        """(N, A) float32 for a vector Box, (N,) int64 for Discrete, and as observations for others."""
        return self.structured("actions", self.action_space)

    def structured(self, name: str, space: Space) -> Any:
        return unflatten(space, {leaf.path: self.columns[leaf.name(name)] for leaf in leaves(space)})

    def parts(self, role: str) -> list[tuple[str, Space, Array]]:
        """Name, space and column of each leaf of the `observations` or `actions`."""
        space = self.observation_space if role == "observations" else self.action_space
        return [(leaf.name(role), leaf.space, self.columns[leaf.name(role)]) for leaf in leaves(space)]

    @property
    def rewards(self) -> Array:
        """(N,) float32, undelayed and undiscounted."""
        return self.columns["rewards"]

    @property
    def terminations(self) -> Array:
        """(N,) bool: the environment ended the episode here (a goal, a fall)."""
        return self.columns["terminations"]

    @property
    def truncations(self) -> Array:
        """(N,) bool: the episode was cut here from outside (a time limit, the recorder), and could have gone on."""
        return self.columns["truncations"]

    @cached_property
    def returns_to_go(self) -> Array:
        """(N,) float32: the reward from each step to the end of its episode, its own included; discounted by `discount`.

        At a truncation it ends too: the rewards after the cut were never seen. `dtrl datasets show` says how many episodes that concerns."""
        rewards = self.delayed_rewards() if self.delayed else self.rewards
        return returns_to_go(rewards, self.episode_starts, self.discount, np.float32)

    def delayed_rewards(self) -> Array:
        """(N,) float64: the whole return of an episode at its last step, and zero before."""
        moved = np.zeros(self.num_steps)
        moved[self.episode_ends - 1] = self.episode_returns
        return moved

    @property
    def num_steps(self) -> int:
        return len(self.rewards)

    @property
    def num_episodes(self) -> int:
        return len(self.episode_starts)

    @cached_property
    def episode_ends(self) -> npt.NDArray[np.int64]:
        """(E,) row after the last of each episode."""
        return np.append(self.episode_starts, self.num_steps)[1:].astype(np.int64)

    @property
    def episode_lengths(self) -> npt.NDArray[np.int64]:
        """(E,) in steps."""
        return self.episode_ends - self.episode_starts

    @cached_property
    def episode_returns(self) -> npt.NDArray[np.float64]:
        """(E,) sum of rewards, undiscounted."""
        if not self.num_episodes:
            return np.zeros(0)
        return np.add.reduceat(self.rewards, self.episode_starts, dtype=np.float64)

    def select(self, episodes: Sequence[int] | Array) -> "Trajectories":
        """The given episodes, in the given order, copied; the origin's fingerprint is then of the data and this choice."""
        episodes = np.asarray(episodes, dtype=np.int64)
        lengths = self.episode_lengths[episodes]
        starts = np.cumsum(lengths) - lengths
        rows = np.repeat(self.episode_starts[episodes] - starts, lengths) + np.arange(lengths.sum())
        columns = {
            name: column[episodes if name.startswith("final_") else rows] for name, column in self.columns.items()
        }
        mixture = self.mixture and replace(self.mixture, part=self.mixture.part[episodes])
        fingerprint = self.origin.fingerprint
        if fingerprint is not None:
            fingerprint = hashlib.sha256(fingerprint.encode() + episodes.tobytes()).hexdigest()
        origin = replace(self.origin, fingerprint=fingerprint, loaded=None)
        return replace(self, columns=columns, episode_starts=starts, origin=origin, mixture=mixture)

    def best(self, fraction: float) -> "Trajectories":
        """The `fraction` of episodes with the highest returns, at least one, in their own order."""
        count = max(1, round(fraction * self.num_episodes))
        order = np.argsort(-self.episode_returns, kind="stable")
        return self.select(np.sort(order[:count]))

    def split(self, fraction: float, seed: int = 0) -> "tuple[Trajectories, Trajectories]":
        """`fraction` of the episodes, drawn at random, and the rest, both in their own order; at least one episode in each.

        The same seed gives the same split of the same episodes. Raises InputError for a fraction outside (0, 1), and for fewer than 2 episodes."""
        if not 0 < fraction < 1:
            raise InputError(
                f"fraction {fraction} is outside (0, 1); 0.9 gives nine tenths of the episodes and the rest."
            )
        if self.num_episodes < 2:
            raise InputError(
                f"{self.origin.name} has {self.num_episodes} episode, and a split needs 2; give more data."
            )
        order = np.random.default_rng(seed).permutation(self.num_episodes)
        count = min(max(1, round(fraction * self.num_episodes)), self.num_episodes - 1)
        return self.select(np.sort(order[:count])), self.select(np.sort(order[count:]))

    @classmethod
    def from_arrays(
        cls,
        observations: Any,
        actions: Any,
        rewards: Any,
        terminations: Any,
        truncations: Any,
        observation_space: Space,
        action_space: Space,
        *,
        episode_starts: Any = None,
        final_observations: Any = None,
        **rest: Any,
    ) -> "Trajectories":
        """Trajectories from episodes laid end to end in arrays (N, …).

        Observations and actions of a composite space are a dict or tuple with an array (N, …) for each of its parts, nested as the space is, and so are
        `final_observations`. Episodes begin at `episode_starts` (E,), by default after every row that is terminated or truncated; an unfinished last one
        counts as truncated. Without `final_observations` (E, …) the last observation of each episode stands for the one after its last step. Raises
        InputError as `from_episodes` does, and where the arrays differ in length."""
        observed = arrays_of(observations, observation_space, "observations")
        acted = arrays_of(actions, action_space, "actions")
        others = {
            "rewards": np.asarray(rewards),
            "terminations": np.asarray(terminations, dtype=bool),
            "truncations": np.array(truncations, dtype=bool),
        }
        steps = len(others["rewards"])
        for name, values in [*observed.values(), *acted.values(), *others.items()]:
            if len(values) != steps:
                raise InputError(
                    f"{name} have {len(values)} rows for {steps} rewards; every array needs a row for every step."
                )
        if episode_starts is None:
            episode_starts = starts_after(others["terminations"] | others["truncations"])
        ends = np.append(episode_starts, steps)[1:].astype(np.int64)
        others["truncations"][ends - 1] |= ~others["terminations"][ends - 1]
        if final_observations is None:
            finals = {path: (name, values[ends - 1]) for path, (name, values) in observed.items()}
        else:
            finals = arrays_of(final_observations, observation_space, "final_observations")
        for name, values in finals.values():
            if len(values) != len(ends):
                raise InputError(f"{name} have {len(values)} rows for {len(ends)} episodes; give one for each.")
        episodes = []
        for i, (start, end) in enumerate(zip(episode_starts, ends, strict=True)):
            seen = {
                path: np.concatenate([values[start:end], finals[path][1][i : i + 1]])
                for path, (_, values) in observed.items()
            }
            done = {path: values[start:end] for path, (_, values) in acted.items()}
            episodes.append(
                {
                    "observations": unflatten(observation_space, seen),
                    "actions": unflatten(action_space, done),
                    **{name: values[start:end] for name, values in others.items()},
                }
            )
        return cls.from_episodes(episodes, observation_space, action_space, **rest)

    @classmethod
    def from_episodes(
        cls, episodes: Iterable[Mapping[str, Any]], observation_space: Space, action_space: Space, **rest: Any
    ) -> "Trajectories":
        """Trajectories from one mapping an episode: observations (T+1, …), actions, rewards, terminations and truncations (T, …).

        Raises InputError where an episode has no step, or its arrays disagree in length, do not fit the spaces, or hold NaN or infinity."""
        episodes = list(episodes)
        lengths = np.array([len(episode["rewards"]) for episode in episodes], dtype=np.int64)
        if not lengths.all():
            raise InputError(f"episode {int(np.argmin(lengths))} of the given episodes has no step; leave it out.")
        columns = empty_columns(int(lengths.sum()), len(lengths), observation_space, action_space)
        starts = np.cumsum(lengths) - lengths
        for i, (start, episode) in enumerate(zip(starts, episodes, strict=True)):
            fill_episode(columns, i, int(start), episode, observation_space, action_space, "the given episodes")
        return cls(columns, starts, observation_space, action_space, **rest)

    def episode(self, i: int) -> dict[str, Any]:
        """Episode `i` as `from_episodes` takes it: views, and observations with the final one appended (T+1, …)."""
        rows = slice(int(self.episode_starts[i]), int(self.episode_ends[i]))
        observations = {
            leaf.path: np.concatenate(
                [
                    self.columns[leaf.name("observations")][rows],
                    self.columns[leaf.name("final_observations")][i : i + 1],
                ]
            )
            for leaf in leaves(self.observation_space)
        }
        actions = {leaf.path: self.columns[leaf.name("actions")][rows] for leaf in leaves(self.action_space)}
        return {
            "observations": unflatten(self.observation_space, observations),
            "actions": unflatten(self.action_space, actions),
            **{name: self.columns[name][rows] for name in ("rewards", "terminations", "truncations")},
        }


def returns_to_go(
    rewards: Array, episode_starts: Array, discount: float = 1.0, dtype: npt.DTypeLike = np.float64
) -> Array:
    """(N,) Σ_{u ≥ t} γ^(u−t)·r_u within each episode [Chen et al. 2021, §3, arXiv:2106.01345], summed in float64 and kept as `dtype`.

    Undiscounted it is one reverse cumulative sum an episode; discounted it is the same recurrence run over all episodes side by side."""
    rewards = np.asarray(rewards)
    ends = np.append(episode_starts, len(rewards))[1:]
    out = np.empty(len(rewards), dtype)
    if discount == 1.0:
        for start, end in zip(episode_starts, ends, strict=True):
            out[start:end] = np.cumsum(rewards[start:end][::-1], dtype=np.float64)[::-1]
        return out
    order = np.argsort(
        episode_starts - ends, kind="stable"
    )  # longest first, so that the episodes still running are a prefix
    starts, lengths = np.asarray(episode_starts)[order], (ends - episode_starts)[order]
    tail = np.zeros(len(starts))
    for back in range(1, int(lengths.max(initial=0)) + 1):
        running = int(np.searchsorted(-lengths, -back, side="right"))
        rows = starts[:running] + lengths[:running] - back
        tail[:running] = rewards[rows] + discount * tail[:running]
        out[rows] = tail[:running]
    return out


def arrays_of(value: Any, space: Space, role: str) -> dict[str, tuple[str, Array]]:
    """Path of each leaf of a space → its name in messages, and its values as an array with a row a step. Raises InputError where a part is missing or has
    no rows."""
    parts, found = flatten(space, value), {}
    for leaf in leaves(space):
        name = leaf.name(role)
        try:
            values = numbers_of(leaf.space, parts[leaf.path])
        except ValueError as error:
            raise InputError(
                f"{name} are no array of rows of one shape ({error}); the space is {leaf.space}."
            ) from error
        if not values.ndim:
            raise InputError(
                f"{name} are {str(values)[:60]}, and the space is {space}; give an array with a row a step for each of its parts."
            )
        found[leaf.path] = name, values
    return found


def starts_after(ends: Array) -> npt.NDArray[np.int64]:
    """(E,) the first row of each episode, when `ends` (N,) marks their last rows; the last episode may be unfinished."""
    starts = np.append(0, np.flatnonzero(ends) + 1)
    return (starts[:-1] if not len(ends) or ends[-1] else starts).astype(np.int64)
