"""Dreams beside what was recorded: how far they go along with it, and how they end."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from dtrl.evaluation.plots import BLUE, DARK, GREY, new_figure, plain_axes
from dtrl.evaluation.report import aligned
from dtrl.trajectories import Trajectories

if TYPE_CHECKING:
    from matplotlib.figure import Figure

END = {True: "terminated", False: "cut"}
PANELS = 5
"""Dimensions of the observation that are drawn."""


@dataclass(frozen=True)
class Dreamt:
    """One imagined episode and the recorded one that it begins as."""

    steps: int
    recorded_steps: int
    terminated: bool
    recorded_terminated: bool
    episode_return: float
    recorded_return: float
    drift: float | None
    """Root of the mean squared difference of the observations, over the steps that both have, in standard deviations of the recorded ones; None where
    observations are no numbers."""


def compare(recorded: Trajectories, dreamt: Trajectories, prompt_steps: int) -> list[Dreamt]:
    """Episode by episode. They play different actions, so their observations need not be the same: a drift of about √2 is that of strangers."""
    deviations = flat(recorded.observations).std(axis=0) if is_vector(recorded) else None
    rows = []
    for i in range(dreamt.num_episodes):
        one, other = dreamt.episode(i), recorded.episode(i)
        drift = None
        if deviations is not None:
            both = slice(prompt_steps, min(len(one["rewards"]), len(other["rewards"])))
            difference = (flat(one["observations"])[both] - flat(other["observations"])[both]) / np.where(
                deviations > 0, deviations, 1
            )
            drift = float(np.sqrt(np.square(difference).mean())) if difference.size else 0.0
        rows.append(
            Dreamt(
                len(one["rewards"]),
                len(other["rewards"]),
                bool(one["terminations"][-1]),
                bool(other["terminations"][-1]),
                float(np.sum(one["rewards"], dtype=np.float64)),
                float(np.sum(other["rewards"], dtype=np.float64)),
                drift,
            )
        )
    return rows


def document(rows: list[Dreamt]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


def table(rows: list[Dreamt]) -> str:
    """A line an episode, in fixed width."""
    columns = [
        ("episode", [str(i) for i in range(len(rows))]),
        ("dreamt steps", [f"{row.steps:,}" for row in rows]),
        ("recorded", [f"{row.recorded_steps:,}" for row in rows]),
        ("end", [END[row.terminated] for row in rows]),
        ("recorded", [END[row.recorded_terminated] for row in rows]),
        ("return", [f"{row.episode_return:,.4g}" for row in rows]),
        ("recorded", [f"{row.recorded_return:,.4g}" for row in rows]),
        ("drift", ["–" if row.drift is None else f"{row.drift:.2f}" for row in rows]),
    ]
    return "\n".join(aligned(columns))


def dream_figure(recorded: Trajectories, dreamt: Trajectories, prompt_steps: int) -> "Figure":
    """The first episode: its rewards and the first dimensions of its observations over the steps, dreamt and recorded."""
    one, other = dreamt.episode(0), recorded.episode(0)
    panels = [("reward", one["rewards"], other["rewards"])]
    if is_vector(dreamt):
        both = flat(one["observations"]), flat(other["observations"])
        panels += [(f"observation {i}", both[0][:, i], both[1][:, i]) for i in range(min(PANELS, both[0].shape[1]))]
    figure = new_figure(height=1.3 * len(panels) + 0.8)
    shared = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, imagined, real) in zip(shared, panels, strict=True):
        axes.plot(real[: len(imagined)], color=GREY, linewidth=2.2, label="recorded")
        axes.plot(imagined, color=BLUE, linewidth=1.2, label="dreamt")
        axes.axvline(prompt_steps - 1, color=DARK, linewidth=1, linestyle=(0, (5, 4)))
        axes.set_ylabel(name, fontsize=8)
        plain_axes(axes)
    shared[0].set_title("a dream beside the episode that it begins as", loc="left", fontsize=12, fontweight="bold")
    shared[0].legend(loc="upper right", frameon=False, fontsize=8)
    shared[-1].set_xlabel("step; the dashed line is the last recorded observation that the model saw")
    return figure


def is_vector(episodes: Trajectories) -> bool:
    """Whether observations are numbers that can be compared."""
    return isinstance(episodes.observation_space, spaces.Box)


def flat(observations: Any) -> npt.NDArray[np.float64]:
    """(T, …) → (T, d)."""
    array = np.asarray(observations, dtype=np.float64)
    return array.reshape(len(array), -1)
