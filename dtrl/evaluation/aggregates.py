"""What the scores of several training runs say about methods: aggregates over datasets and seeds, with intervals [Agarwal et al. 2021, arXiv:2108.13264].

A score is one number a run: the mean return of its evaluation, normalised. The scores of a method are one array for each dataset, (…, S): its last axis is
the training seeds, of which datasets may have different numbers; the axes before it, which all arrays share, are those of resamples.

The intervals are the paper's: percentiles of the stratified bootstrap, which draws the runs of each dataset anew, with replacement. They are about other
seeds on the same datasets, and too narrow for few of these: of nominal 95 %, the paper finds some 90 % with 5 runs on each of 26 tasks, and one dataset
alone with 5 seeds has some 80 %."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dtrl.errors import InputError

Array = npt.NDArray[np.float64]
Scores = Sequence[npt.ArrayLike]
"""(…, S) for each dataset."""
Statistic = Callable[[Sequence[Array]], Array]
"""The scores of a method to a number, or (R, S) scores for each dataset to (R,) numbers."""

RESAMPLES = 9_999
"""Bootstrap resamples, as for the mean of one evaluation."""
TRIMMED = 0.25
"""Share of the scores that the interquartile mean leaves out at each end."""
EXPERT = 100.0
"""The normalised score below which `optimality_gap` counts what is missing."""


@dataclass(frozen=True)
class Interval:
    """A number, and the ends of its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def to_list(self) -> list[float]:
        return [self.value, self.low, self.high]


def mean(scores: Sequence[Array]) -> Array:
    """Mean over the datasets of the mean over the seeds: each dataset counts alike."""
    return np.asarray(np.mean([x.mean(axis=-1) for x in scores], axis=0))


def median(scores: Sequence[Array]) -> Array:
    """Median over the datasets of the mean over the seeds."""
    return np.asarray(np.median([x.mean(axis=-1) for x in scores], axis=0))


def iqm(scores: Sequence[Array]) -> Array:
    """Interquartile mean: of the runs of all datasets together, the lowest and the highest quarter (rounded down to whole runs) are left out."""
    ordered = np.sort(np.concatenate(scores, axis=-1), axis=-1)
    cut = int(TRIMMED * ordered.shape[-1])
    middle: Array = ordered[..., cut : ordered.shape[-1] - cut].mean(axis=-1)
    return middle


def optimality_gap(scores: Sequence[Array]) -> Array:
    """How far the runs stay below an expert's 100 on average, those above it counting as 100: less is better."""
    return EXPERT - mean([np.minimum(x, EXPERT) for x in scores])


AGGREGATES: dict[str, Statistic] = {"iqm": iqm, "mean": mean, "median": median, "optimality_gap": optimality_gap}
"""Name of an aggregate → what computes it."""


def aggregate(scores: Scores, statistic: Statistic = iqm, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """A statistic of the scores (S,) for each dataset, with the interval of the stratified bootstrap.

    Raises InputError where there is no dataset, one has no scores, or a score is not finite."""
    columns = checked(scores)
    random = np.random.default_rng(seed)
    drawn = statistic([resample(x, random, resamples) for x in columns])
    return interval(float(statistic(columns)), drawn)


def paired_difference(
    scores: Scores, others: Scores, statistic: Statistic = mean, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The difference of a statistic between two methods whose runs pair up: number i of a dataset has the same seed, and hence the same episodes.

    Both are resampled by the same choice of runs, so that what a seed does to both leaves no trace in the interval. Raises InputError where the two do not
    have as many scores for each dataset."""
    ours, theirs = checked(scores), checked(others)
    if [len(x) for x in ours] != [len(y) for y in theirs]:
        raise InputError(
            f"{[len(x) for x in ours]} scores a dataset and {[len(y) for y in theirs]} do not pair up; give those of the same seeds on the same datasets."
        )
    random = np.random.default_rng(seed)
    pairs = [resample(np.stack([x, y]), random, resamples) for x, y in zip(ours, theirs, strict=True)]
    drawn = statistic([x for x, _ in pairs]) - statistic([y for _, y in pairs])
    return interval(float(statistic(ours) - statistic(theirs)), drawn)


def probability_of_improvement(
    scores: Scores, others: Scores, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """How probable it is that a run of the one method scores higher than a run of the other on the same dataset, a tie counting half; mean over the datasets
    [Agarwal et al. 2021, §4.3]. For one dataset it is the Mann-Whitney U over the number of pairs.

    The runs need not pair up, and are resampled each for themselves. Raises InputError where the two are not of equally many datasets."""
    ours, theirs = checked(scores), checked(others)
    if len(ours) != len(theirs):
        raise InputError(
            f"scores on {len(ours)} datasets and on {len(theirs)} cannot be compared; give those of the same ones."
        )
    random = np.random.default_rng(seed)
    drawn = [
        (resample(x, random, resamples), resample(y, random, resamples)) for x, y in zip(ours, theirs, strict=True)
    ]
    return interval(
        float(np.mean([share_above(x, y) for x, y in zip(ours, theirs, strict=True)])),
        np.mean([share_above(x, y) for x, y in drawn], axis=0),
    )


def share_above(x: Array, y: Array) -> Array:
    """(…, S) and (…, T) to (…): the share of pairs in which x is greater, ties counting half."""
    a, b = x[..., :, None], y[..., None, :]
    return np.asarray(((a > b) + 0.5 * (a == b)).mean(axis=(-2, -1)))


@dataclass(frozen=True)
class Profile:
    """A performance profile: for each threshold the share of runs that score above it, with a pointwise 95 % band."""

    thresholds: Array
    share: Array
    low: Array
    high: Array


def performance_profile(scores: Scores, thresholds: npt.ArrayLike, *, resamples: int = 2_000, seed: int = 0) -> Profile:
    """The share of runs that score above each of the thresholds, mean over the datasets [Agarwal et al. 2021, §4.2: the run-score distribution]."""
    columns, at = checked(scores), np.asarray(thresholds, dtype=np.float64)
    if at.ndim != 1 or not len(at) or not np.isfinite(at).all():
        raise InputError(f"thresholds {thresholds!r} must be a list of finite scores.")
    random = np.random.default_rng(seed)
    drawn = [resample(x, random, resamples) for x in columns]
    shares = np.stack([np.mean([(x > t).mean(axis=-1) for x in drawn], axis=0) for t in at], axis=-1)
    low, high = np.percentile(shares, [2.5, 97.5], axis=0)
    share = np.array([np.mean([(x > t).mean() for x in columns]) for t in at])
    return Profile(at, share, low, high)


def resample(x: Array, random: np.random.Generator, resamples: int) -> Any:
    """(…, S) to (…, R, S): R times as many runs, drawn with replacement, the same ones along the axes before."""
    return x[..., random.integers(x.shape[-1], size=(resamples, x.shape[-1]))]


def interval(value: float, drawn: Array) -> Interval:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def checked(scores: Scores) -> list[Array]:
    columns = [np.asarray(x, dtype=np.float64) for x in scores]
    if not columns or any(x.ndim != 1 or not len(x) for x in columns):
        raise InputError(
            f"scores of shapes {[x.shape for x in columns]} cannot be summarised; give at least one dataset, and for each at least one score."
        )
    for number, x in enumerate(columns):
        if not all(map(math.isfinite, x)):
            raise InputError(f"the scores {x.tolist()} of dataset {number} are not all finite; leave those runs out.")
    return columns
