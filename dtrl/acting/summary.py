"""What a policy remembers of the data it was trained on: saved with it, so that it needs no dataset to act."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dtrl.trajectories import Trajectories

DEFAULT_TARGET_QUANTILE = 0.95
"""The default target return is this quantile of the episode returns in the data: high, and still inside what the model has seen."""

MAX_CEILINGS = 1_000


@dataclass(frozen=True)
class DataSummary:
    """Where the data came from, and how their returns are distributed."""

    dataset: str
    env_spec: str | None
    reference: tuple[float, float] | None
    fingerprint: str | None
    discount: float
    delayed: bool
    return_quantiles: tuple[float, ...]
    """Episode returns at 0, 1, …, 100 %."""
    ceilings: tuple[float, ...] = ()
    """Highest returns-to-go of steps 0 … n − 1, n … 2n − 1, … of the episodes; empty in policies that were saved before this was kept."""
    ceiling_steps: int = 1
    """That n: 1 where no episode is longer than 1,000 steps."""

    @classmethod
    def of(cls, trajectories: Trajectories) -> "DataSummary":
        quantiles = np.quantile(trajectories.episode_returns, np.linspace(0, 1, 101))
        o = trajectories.origin
        return cls(
            o.name,
            o.env_spec,
            o.reference,
            o.fingerprint,
            trajectories.discount,
            trajectories.delayed,
            tuple(float(q) for q in quantiles),
            *ceilings_of(trajectories),
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "DataSummary":
        """From the values that `dataclasses.asdict` gave, after a way through JSON. Raises KeyError or TypeError for others."""
        reference = tuple(values["reference"]) if values["reference"] else None
        quantiles, ceilings = (tuple(values.get(name, ())) for name in ("return_quantiles", "ceilings"))
        return cls(**{**values, "reference": reference, "return_quantiles": quantiles, "ceilings": ceilings})

    @property
    def default_target_return(self) -> float:
        return self.return_quantiles[round(100 * DEFAULT_TARGET_QUANTILE)]


def ceilings_of(trajectories: Trajectories) -> tuple[tuple[float, ...], int]:
    """The fields `ceilings` and `ceiling_steps`."""
    steps = np.arange(trajectories.num_steps) - np.repeat(trajectories.episode_starts, trajectories.episode_lengths)
    width = -(-int(trajectories.episode_lengths.max()) // MAX_CEILINGS)
    highest = np.full(int(steps.max()) // width + 1, -np.inf)
    np.maximum.at(highest, steps // width, trajectories.returns_to_go)
    return tuple(float(x) for x in highest), width
