"""What returns say about a policy: their mean with an interval, a mean without the tails, and whether asking for more
brings more.

Every number here is about ONE trained policy and its episodes. How much another training seed would change it, only
more training runs can tell [Agarwal et al. 2021, arXiv:2108.13264]."""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dtrl.errors import InputError
from dtrl.evaluation.references import Reference

Values = Sequence[float] | npt.NDArray[np.floating]

RESAMPLES = 9_999
"""Bootstrap resamples: scipy's default. From seed to seed the ends then move by about 1 % of the interval's width."""
CELLS_AT_ONCE = 2_000_000
"""Numbers drawn at once while resampling, so that 10,000 episodes take 16 MB and not 800."""


def mean_ci95(values: Values, seed: int = 0) -> tuple[float, tuple[float, float]]:
    """The mean of `values`, and the ends of its 95 % confidence interval, in the unit of the values.

    The interval is about the policy's true mean return, and not about single episodes: were the same policy evaluated
    again and again on other episodes, about 95 % of such intervals would hold the true mean. It is the bootstrap's
    BCa interval [Efron 1987, doi:10.1080/01621459.1987.10478410], which follows the skew that returns have under a
    ceiling; like every bootstrap it is too narrow for few values: of nominal 95 %, 80 to 88 % are left with 5 episodes
    and 90 to 96 % with 20 (normal, exponential and clipped returns).

    One value, or equal values, show no spread: the interval is that value alone, which is no claim of certainty. A
    value that is not finite makes the interval (nan, nan). The same seed gives the same interval. Raises InputError for
    no values."""
    x = _column(values)
    mean = float(x.mean())
    if not np.isfinite(x).all():
        return mean, (math.nan, math.nan)
    if (x == x[0]).all():
        return float(x[0]), (float(x[0]), float(x[0]))  # the mean of equal values may differ from them in the last bit
    low, high = _bootstrap(x, "BCa", seed)
    if not (math.isfinite(low) and math.isfinite(high)):  # no resample on one side of the mean: BCa has no correction
        low, high = _bootstrap(x, "percentile", seed)
    low, high = np.clip([low, high], x.min(), x.max())  # rounding may lead a hair beyond
    return mean, (float(low), float(high))


def _bootstrap(x: npt.NDArray[np.float64], method: str, seed: int) -> tuple[float, float]:
    from scipy.stats import DegenerateDataWarning, bootstrap

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", DegenerateDataWarning)  # a nan says the same, and the caller handles it
        interval = bootstrap(
            (x,),
            np.mean,
            n_resamples=RESAMPLES,
            batch=max(1, CELLS_AT_ONCE // len(x)),
            method=method,
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return float(interval.low), float(interval.high)


def interquartile_mean(values: Values) -> float:
    """The mean of the middle half: the lowest and the highest quarter (rounded down to whole values) are left out.

    Less swayed by a few odd episodes than the mean, and by more values than the median
    [Agarwal et al. 2021, §4.3, arXiv:2108.13264]. Raises InputError for no values."""
    from scipy.stats import trim_mean

    return float(trim_mean(_column(values), 0.25))


def rank_correlation(asked: Values, achieved: Values) -> float | None:
    """Spearman's rank correlation of the returns asked for and the mean returns achieved, in −1 … 1.

    1: whoever asks for more gets more, whatever the amounts; 0: the return asked for has no say. None where it has no
    meaning: fewer than two targets, one of the two constant, or a number that is not finite. With two targets it can
    only be −1 or 1. Raises InputError when the two differ in length."""
    from scipy.stats import spearmanr

    x, y = np.asarray(asked, dtype=np.float64), np.asarray(achieved, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise InputError(
            f"{x.size} returns asked for and {y.size} achieved do not pair up; give one of each for every target."
        )
    if len(x) < 2 or not (np.isfinite(x).all() and np.isfinite(y).all()) or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return round(
        float(spearmanr(x, y).statistic), 12
    )  # scipy's 1 can be 0.9999999999999999, and a perfect order should say 1


def normalized(returns: float | Values, reference: Reference) -> npt.NDArray[np.float64]:
    """Returns on the reference's scale, elementwise and not clipped: 0 is the random policy's mean, 100 the expert's."""
    scale = reference.expert - reference.random
    return np.asarray(100.0 * (np.asarray(returns, dtype=np.float64) - reference.random) / scale)


def _column(values: Values) -> npt.NDArray[np.float64]:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0:
        raise InputError(f"returns of shape {x.shape} cannot be summarised; give a list of at least one return.")
    return x
