"""What a policy remembers of the data it was trained on: saved with it, so that it needs no dataset to act."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dtrl.trajectories import Trajectories

DEFAULT_TARGET_QUANTILE = 0.95
"""The default target return is this quantile of the episode returns in the data: high, and still inside what the model has seen."""


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
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "DataSummary":
        """From the values that `dataclasses.asdict` gave, after a way through JSON. Raises KeyError or TypeError for others."""
        reference = tuple(values["reference"]) if values["reference"] else None
        return cls(**{**values, "reference": reference, "return_quantiles": tuple(values["return_quantiles"])})

    @property
    def default_target_return(self) -> float:
        return self.return_quantiles[round(100 * DEFAULT_TARGET_QUANTILE)]
