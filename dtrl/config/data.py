"""Which data are loaded, and how they become trajectories."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dtrl.config.options import check_choices, check_positive, option
from dtrl.errors import InputError


@dataclass(frozen=True)
class SourceConfig:
    """Which data are loaded: all that has to be said again to load the same."""

    datasets: tuple[str, ...]
    """Ids, and absolute paths of folders and files."""
    weights: tuple[float, ...] | None = None
    """How often windows are drawn from each of several datasets, relative to the others; None for every episode of all alike."""
    format: str | None = None
    """Of the files among them, a name in `dtrl.trajectories.formats.FORMATS`; None where it is told by their content."""
    env: str | None = None
    """Id of the environment that the files are from."""
    columns: Mapping[str, Sequence[str]] | None = None
    """Role → the columns of a table that hold it."""

    def __post_init__(self) -> None:
        datasets = [os.path.abspath(d) if os.path.exists(d) else str(d) for d in texts("datasets", self.datasets)]
        object.__setattr__(self, "datasets", tuple(datasets))
        if self.weights is not None:
            if not all(type(w) in (int, float) for w in self.weights):
                raise InputError(f"weights {list(self.weights)!r} must be numbers, one a dataset.")
            object.__setattr__(self, "weights", tuple(float(w) for w in self.weights))
        for name in ("format", "env"):
            if type(getattr(self, name)) not in (str, type(None)):
                raise InputError(f"{name} {getattr(self, name)!r} is no text.")
        if self.columns is not None:
            if not isinstance(self.columns, Mapping):
                raise InputError(f"columns {self.columns!r} are no mapping from roles to lists of columns.")
            columns = {role: texts(f"the columns of {role}", names) for role, names in self.columns.items()}
            object.__setattr__(self, "columns", columns)


def texts(what: str, values: Any) -> list[str]:
    """The values as a list of texts, which paths are too."""
    if isinstance(values, str) or not all(isinstance(value, str | os.PathLike) for value in values):
        shown = values if isinstance(values, str) else list(values)
        raise InputError(f"{what} {shown!r} must be a list of texts.")
    return [os.fspath(value) for value in values]


@dataclass(frozen=True)
class DataConfig:
    """How a dataset becomes trajectories."""

    discount: float = option(1.0, "discount γ of the returns-to-go; 1 is the published Decision Transformer")
    delayed: bool = option(False, "move every reward to the end of its episode (the paper's delayed-reward setting)")
    short_episodes: str = option(
        "refuse",
        "episodes of 0 or 1 steps: refuse the dataset, skip them, or keep those of 1",
        ("refuse", "skip", "keep"),
    )
    min_return: float | None = option(None, "keep episodes that return at least this")
    max_return: float | None = option(None, "keep episodes that return at most this")
    min_length: int | None = option(None, "keep episodes of at least so many steps")
    max_length: int | None = option(None, "keep episodes of at most so many steps")
    endings: str = option(
        "all",
        "keep all episodes, those that the environment ended (terminated), or those that were cut (truncated)",
        ("all", "terminated", "truncated"),
    )

    def __post_init__(self) -> None:
        check_choices(self)
        check_positive(self, "min_length", "max_length")
        for what in ("return", "length"):
            low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if any(value is not None and math.isnan(value) for value in (low, high)):
                raise InputError(f"min_{what} {low} and max_{what} {high} must be numbers; leave one out for no bound.")
            if low is not None and high is not None and low > high:
                raise InputError(f"min_{what} {low} is above max_{what} {high}; no episode can have both.")
        if not 0 < self.discount <= 1:
            raise InputError(f"discount {self.discount} is outside (0, 1]; 1 means no discount.")
