"""How returns, lengths, actions and observations of a dataset are distributed: the numbers behind the plots of `dtrl datasets show`.

Letters as in columns.py: N steps, E episodes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from dtrl.trajectories.columns import Array, Trajectories

Floats = npt.NDArray[np.float64]

MAX_BINS = 40
MAX_DIMENSIONS = 16
"""Dimensions of the actions that are counted, the first ones: more could not be looked at."""
MAX_LISTED_VALUES = 64
"""A Discrete space up to this size is listed in full, so that values which never occur are seen to be missing."""
MAX_SAMPLED_STEPS, MIN_SAMPLED_STEPS = 5_000, 100
SAMPLED_NUMBERS = 1_000_000
"""Steps times dimensions that principal components are computed from: a second's work."""


@dataclass(frozen=True)
class Histogram:
    """How often values occur: of a whole number each value by itself, of a real number the values between two edges."""

    name: str
    counts: npt.NDArray[np.int64]
    """(bins,)"""
    edges: Floats | None
    """(bins + 1,) ascending; the last bin holds its right edge too. None for whole numbers and for a constant."""
    values: Array | None
    """(bins,) the value each count is of; None where there are edges."""


@dataclass(frozen=True)
class Coverage:
    """Where a sample of the observations lies in the plane in which they differ most."""

    steps: npt.NDArray[np.int64]
    """(M,) rows of the sampled steps, ascending."""
    points: Floats
    """(M, 2) first two principal components, in standard deviations of a dimension; 0 where the data have fewer."""
    returns: Floats
    """(M,) return of the episode each step belongs to."""
    explained: tuple[float, float]
    """Shares of the variance that the two components have."""


def histogram(name: str, values: Array, bins: int | None = None) -> Histogram:
    """Equal bins from the smallest value to the largest: `bins`, or as many as there are values, at most 40. Values that agree in nine
    digits are one value."""
    values = np.asarray(values, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        return Histogram(name, np.array([len(values)]), None, np.array([low]))
    counts, edges = np.histogram(values, bins or min(MAX_BINS, len(np.unique(values))))
    return Histogram(name, counts.astype(np.int64), edges, None)


def counts_of_values(name: str, values: Array, space: Any = None) -> Histogram:
    """Counts of whole numbers: of all that a Discrete space has, if they are not too many, otherwise of those that occur."""
    found, counts = np.unique(values, return_counts=True)
    if isinstance(space, spaces.Discrete) and space.n <= MAX_LISTED_VALUES:
        listed = np.arange(space.start, space.start + space.n)
        every = np.zeros(len(listed), np.int64)
        every[found - space.start] = counts
        return Histogram(name, every, None, listed)
    return Histogram(name, counts.astype(np.int64), None, found)


def action_histograms(trajectories: Trajectories) -> list[Histogram]:
    """One for each dimension of the actions, of the first 16."""
    found: list[Histogram] = []
    for name, space, column in trajectories.parts("actions"):
        flat = column.reshape(len(column), -1)
        for i in range(min(flat.shape[1], MAX_DIMENSIONS - len(found))):
            label = name if column.ndim == 1 else f"{name}[{i}]"
            if _is_whole(column):
                found.append(counts_of_values(label, flat[:, i], space))
            else:
                found.append(histogram(label, flat[:, i], MAX_BINS))
    return found


def num_action_dimensions(trajectories: Trajectories) -> int:
    return sum(int(np.prod(column.shape[1:])) for _, _, column in trajectories.parts("actions"))


def coverage(trajectories: Trajectories, seed: int = 0) -> Coverage:
    """Principal components of a sample of the observations, by a singular value decomposition.

    Every dimension that varies is first centred and divided by its standard deviation, so that units decide nothing. A column of ids
    counts as one dimension, 0 or 1, an id."""
    columns = [column for _, _, column in trajectories.parts("observations")]
    width = sum(map(_num_features, columns))
    size = min(max(SAMPLED_NUMBERS // width, MIN_SAMPLED_STEPS), MAX_SAMPLED_STEPS, trajectories.num_steps)
    steps = np.sort(np.random.default_rng(seed).choice(trajectories.num_steps, size, replace=False))
    features = np.concatenate([_features(column[steps]) for column in columns], axis=1)
    left, sizes, right = np.linalg.svd(features, full_matrices=False)
    largest = np.abs(right).argmax(axis=1)
    signs = np.where(right[np.arange(len(right)), largest] < 0, -1.0, 1.0)  # otherwise they would be arbitrary
    scores = left * sizes * signs
    points = np.zeros((size, 2))
    points[:, : scores.shape[1]] = scores[:, :2]
    shares = np.append(sizes**2, [0.0, 0.0])[:2] / max(float((sizes**2).sum()), np.finfo(np.float64).tiny)
    episodes = np.searchsorted(trajectories.episode_starts, steps, side="right") - 1
    return Coverage(steps, points, trajectories.episode_returns[episodes], (float(shares[0]), float(shares[1])))


def running_mean(values: Array, reach: int) -> Floats:
    """(E,) mean of the values at most `reach` places away: of 2 `reach` + 1 values, and of fewer near the ends."""
    sums = np.append(0.0, np.cumsum(values, dtype=np.float64))
    places = np.arange(len(values))
    first, last = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    means: Floats = (sums[last] - sums[first]) / (last - first)
    return means


def _is_whole(column: Array) -> bool:
    return column.dtype.kind in "biu"


def _is_ids(column: Array) -> bool:
    return column.ndim == 1 and _is_whole(column)


def _num_features(column: Array) -> int:
    return len(np.unique(column)) if _is_ids(column) else int(np.prod(column.shape[1:]))


def _features(column: Array) -> Floats:
    """(M, dimensions) in standard deviations; constant dimensions are 0."""
    if _is_ids(column):
        found: Floats = (column[:, None] == np.unique(column)).astype(np.float64)
        found -= found.mean(axis=0)
        return found
    flat: Floats = column.reshape(len(column), -1).astype(np.float64)
    varies = np.ptp(flat, axis=0) > 0  # the deviation of equal numbers is not always 0: their mean is rounded
    flat -= flat.mean(axis=0)
    flat[:, ~varies] = 0.0
    flat[:, varies] /= flat[:, varies].std(axis=0)
    return flat
