"""What a meter found, and the unit in which actions are compared."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from dtrl.presets import WHOLE_ACTIONS
from dtrl.spaces import leaves
from dtrl.tokenizers.continuous import CONSTANT
from dtrl.trajectories import Trajectories

Array = npt.NDArray[Any]
RESAMPLES = 2_000
PAIRS = 2_000
WITHOUT_ACTIONS = f"--no-action-context (of {', '.join(WHOLE_ACTIONS)})"
"""Advice against following past actions."""


@dataclass(frozen=True)
class Finding:
    """One meter's answer."""

    meter: str
    fine: bool | None
    """False where the meter has tripped; None where it could not be read, and `says` why."""
    says: str
    """In plain words, with the numbers."""
    advice: str = ""
    """What to try next, where it has tripped."""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """The same numbers as JSON values."""

    def text(self) -> str:
        """A paragraph."""
        mark = {True: "fine   ", False: "WARNING", None: "unknown"}[self.fine]
        advice = f"\n         try: {self.advice}" if self.advice and self.fine is False else ""
        return f"{mark}  {self.meter}: {self.says}{advice}"


class ActionScale:
    """How far apart two actions are. Numbers of a Box count in standard deviations of the data's, as a root mean square over its entries (those that are
    constant in the data are left out); of choices it is the share that differs; several parts of an action count alike."""

    def __init__(self, trajectories: Trajectories, seed: int = 0) -> None:
        self.deviations: dict[str, Array | None] = {}
        columns = {leaf.path: trajectories.columns[leaf.name("actions")] for leaf in leaves(trajectories.action_space)}
        for leaf in leaves(trajectories.action_space):
            column = columns[leaf.path]
            box = isinstance(leaf.space, spaces.Box)
            self.deviations[leaf.path] = column.reshape(len(column), -1).std(axis=0, dtype=np.float64) if box else None
        rows = np.random.default_rng(seed).integers(trajectories.num_steps, size=(2, PAIRS))
        one, other = ({path: column[r] for path, column in columns.items()} for r in rows)
        self.spread = float(self.distance(one, other).mean())
        """Mean distance of two steps' actions, drawn at random from the data; 0 where all are the same."""

    def distance(self, one: Mapping[str, Array], other: Mapping[str, Array]) -> npt.NDArray[np.float64]:
        """(B,) how far apart actions are, given by their parts (B, …) by path."""
        parts = [gap.mean(axis=1) if choice else np.sqrt(gap.mean(axis=1)) for gap, choice in self.gaps(one, other)]
        return np.asarray(np.mean(parts, axis=0))

    def gaps(self, one: Mapping[str, Array], other: Mapping[str, Array]) -> list[tuple[npt.NDArray[np.float64], bool]]:
        """Of each part: (B, n) squared differences in squared deviations, or whether choices differ; and which of the two it is."""
        out = []
        for path, deviation in self.deviations.items():
            a, b = (np.asarray(x[path]).reshape(len(x[path]), -1) for x in (one, other))
            if deviation is None:
                out.append(((a != b).astype(np.float64), True))
                continue
            varies = deviation >= CONSTANT
            scaled = (a.astype(np.float64) - b)[:, varies] / deviation[varies]
            out.append((np.square(scaled) if varies.any() else np.zeros((len(a), 1)), False))
        return out


def actions_at(trajectories: Trajectories, rows: Any) -> dict[str, Array]:
    """Path → the recorded actions (B, …) of the given steps."""
    return {leaf.path: trajectories.columns[leaf.name("actions")][rows] for leaf in leaves(trajectories.action_space)}


def observations_at(trajectories: Trajectories, rows: Any) -> dict[str, Array]:
    """Path → the recorded observations (B, …) of the given steps."""
    space = trajectories.observation_space
    return {leaf.path: trajectories.columns[leaf.name("observations")][rows] for leaf in leaves(space)}


def quotient_ci95(top: Array, bottom: Array, seed: int = 0) -> tuple[float, tuple[float, float]] | None:
    """Σ top / Σ bottom over episodes (E,), and its 95 % percentile interval from 2,000 resamples of episodes; None where the bottom adds up to 0."""
    if not bottom.sum() > 0:
        return None
    rows = np.random.default_rng(seed).integers(len(top), size=(RESAMPLES, len(top)))
    above, below = top[rows].sum(axis=1), bottom[rows].sum(axis=1)
    drawn = above[below > 0] / below[below > 0]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(top.sum() / bottom.sum()), (float(low), float(high))
