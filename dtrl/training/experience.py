"""What a policy is fine-tuned on: the best episodes of the data, and those that it plays, in a replay buffer of whole episodes.

Relabelling in hindsight [Zheng et al. 2022, algorithm 2, arXiv:2202.05607] needs no code here: the returns-to-go of `Trajectories` are those that were
achieved, whatever was asked. An episode that the time limit cut ends its returns-to-go there, as those of the data do."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from dtrl.acting import Episode, Policy, rollout
from dtrl.acting.artefact import load_arrays, parameters_sha256, save_arrays
from dtrl.acting.rollouts import Env
from dtrl.config import OnlineConfig
from dtrl.errors import InputError
from dtrl.trajectories import Trajectories
from dtrl.trajectories.columns import Origin
from dtrl.trajectories.mixture import joined

EXPERIENCE_FILE = "experience.safetensors"
"""In a checkpoint: the played episodes that are still in the buffer. Those of the data are chosen anew from the data."""


class Experience:
    """The replay buffer [Zheng et al. 2022, algorithm 1]: at first the `buffer_episodes` best episodes of the data; then the oldest leave as new ones come.

    Those of the data count as older the less they return, so the worst of them leaves first. What is played in a round depends on the weights, the seed
    and the round's number alone."""

    def __init__(self, start: Policy, data: Trajectories, config: OnlineConfig, seed: int, env: Env) -> None:
        quantiles = np.quantile(data.episode_returns, [0.5, 1.0])
        if config.explore_return is None:
            config = replace(config, explore_return=float(2 * quantiles[1] - quantiles[0]))
        self.start, self.config, self.seed, self.env = start, config, seed, env
        order = np.argsort(data.episode_returns, kind="stable")[-config.buffer_episodes :]
        self.offline = replace(data.select(order), mixture=None)
        """The best episodes of the data, by rising return."""
        self.played: Trajectories | None = None
        """Episodes that were played, the oldest first; at most `buffer_episodes`."""
        self.trajectories = self.offline
        """The buffer, the oldest episode first."""
        self.rounds = self.episodes = self.steps = self.truncated = 0
        """Played so far: rounds, episodes, environment steps, and episodes that were cut by a time limit."""

    def due(self, update: int) -> bool:
        """Whether a round is to be played before this update, counted from 1."""
        return (update - 1) % self.config.round_updates == 0

    def play(self, policy: Policy, update: int) -> dict[str, float]:
        """Play the round that comes before an update, with sampled actions, and take its episodes into the buffer. Returns scalars by tag."""
        assert self.config.explore_return is not None
        self.rounds = (update - 1) // self.config.round_updates + 1
        # neither windows ([seed, update]), dropout ([2, seed, update]) nor evaluation ([seed, 0]) draw from this stream
        seeds = np.random.default_rng([3, self.seed, self.rounds]).integers(2**31, size=self.config.round_episodes)
        episodes = [Episode(self.config.explore_return, int(seed)) for seed in seeds]
        playing = policy.variant(context=self.start.context, context_length=self.start.context_length)
        new = rollout(playing, self.env, episodes, deterministic=False)
        self.take(new)
        return {
            "online/return": float(new.episode_returns.mean()),
            "online/length": float(new.episode_lengths.mean()),
            "online/rounds": self.rounds,
            "online/episodes": self.episodes,
            "online/steps": self.steps,
            "online/truncated": self.truncated / self.episodes,
            "online/buffer_episodes": self.trajectories.num_episodes,
            "online/buffer_return": float(self.trajectories.episode_returns.mean()),
        }

    def take(self, new: Trajectories) -> None:
        """Put episodes at the young end of the buffer. Their returns-to-go are made as those of the data are: with its discount and delay."""
        new = replace(new, discount=self.offline.discount, delayed=self.offline.delayed)
        self.episodes += new.num_episodes
        self.steps += new.num_steps
        last = new.episode_ends - 1
        self.truncated += int((new.truncations[last] & ~new.terminations[last]).sum())
        self.fill(new if self.played is None else end_to_end(self.played, new))

    def fill(self, played: Trajectories) -> None:
        """Let the buffer be the youngest of the data's episodes and the played ones."""
        self.played = newest(played, self.config.buffer_episodes)
        kept = min(self.offline.num_episodes, self.config.buffer_episodes - self.played.num_episodes)
        self.trajectories = end_to_end(newest(self.offline, kept), self.played) if kept else self.played

    def settings(self) -> dict[str, Any]:
        """All that makes a fine-tuning what it is, beside the data and the training settings. Functions that make environments all look alike."""
        env = self.env if isinstance(self.env, str) else "a function"
        return {
            **asdict(self.config),
            "env": env,
            "context": self.start.context,
            "context_length": self.start.context_length,
            "begun_from": parameters_sha256(self.start.model),
        }

    def summary(self) -> dict[str, Any]:
        """How much experience was used, and from which weights it began: for result.json."""
        return {
            "rounds": self.rounds,
            "episodes": self.episodes,
            "steps": self.steps,
            "truncated_episodes": self.truncated,
            "updates_before": self.start.updates,
            **self.settings(),
        }

    def save(self, folder: Path) -> None:
        """Write the played episodes into a checkpoint's folder."""
        counts = {name: getattr(self, name) for name in ("rounds", "episodes", "steps", "truncated")}
        played = self.played
        arrays = {} if played is None else {**played.columns, "episode_starts": played.episode_starts}
        save_arrays(folder / EXPERIENCE_FILE, arrays, counts)

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote."""
        path = folder / EXPERIENCE_FILE
        arrays, counts = load_arrays(path)
        like = {**self.offline.columns, "episode_starts": self.offline.episode_starts}
        found, expected = ({n: (a.shape[1:], a.dtype) for n, a in columns.items()} for columns in (arrays, like))
        names = ("rounds", "episodes", "steps", "truncated")
        if not all(type(counts.get(name)) is int for name in names) or (arrays and found != expected):
            raise InputError(
                f"{path} holds no episodes of this run's spaces; delete that folder to go back to the checkpoint before it."
            )
        self.rounds, self.episodes, self.steps, self.truncated = (counts[name] for name in names)
        if arrays:
            starts = arrays.pop("episode_starts")
            self.fill(replace(self.offline, columns=arrays, episode_starts=starts, origin=Origin("rollouts")))


def newest(trajectories: Trajectories, count: int) -> Trajectories:
    """The last `count` episodes, or all where there are fewer."""
    episodes = trajectories.num_episodes
    return trajectories if count >= episodes else trajectories.select(np.arange(episodes - count, episodes))


def end_to_end(older: Trajectories, newer: Trajectories) -> Trajectories:
    """The episodes of both, in memory."""
    columns = joined([older, newer])
    starts = np.asarray(columns.pop("episode_starts"))
    return replace(older, columns=columns, episode_starts=starts, origin=replace(newer.origin, fingerprint=None))
