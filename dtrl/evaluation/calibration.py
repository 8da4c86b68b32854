"""Does the policy deliver what it is asked for, over the whole range of the data's returns and beyond? P targets, E episodes each.

Episode i begins alike for every target, so whatever the target has to say shows within the rows of one start."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from dtrl.errors import InputError
from dtrl.evaluation.statistics import mean_ci95, rank_correlation

LOW_QUANTILE = 10
"""Per cent of the data's episode returns at which a sweep begins: below it lie the failures nobody asks for."""
MIN_POINTS = 4
ALPHA = 0.05
PERMUTATIONS = 9_999
"""With these and the observed order, a p-value is a multiple of 1/10,000."""
WEAK_SLOPE = 0.1
"""A policy whose return rises by less than a tenth of what is asked is told so."""


def support(return_quantiles: Sequence[float]) -> tuple[float, float]:
    """The 10 % quantile and the maximum of the data's episode returns, of their quantiles at 0, 1, …, 100 %; from the minimum on where these two are one.

    Raises InputError for a policy that knows no returns, and where all episodes return the same."""
    if not return_quantiles:
        raise InputError("this policy knows nothing of its data's returns; give --target-returns instead of --sweep.")
    low, high = return_quantiles[LOW_QUANTILE], return_quantiles[-1]
    if low == high:
        low = return_quantiles[0]
    if low == high:
        raise InputError(
            f"every episode of the data returns {high:.6g}, so there is no range to sweep; give --target-returns instead of --sweep."
        )
    return low, high


def sweep_targets(return_quantiles: Sequence[float], points: int = 12) -> list[float]:
    """(P,) rising targets: two thirds of them evenly over the data's `support` [low, high], both ends included, the others evenly beyond it, up to
    high + (high − min(low, 0)) / 2.

    That end is 1.5 times the maximum where no return is negative. Where some are, a multiple of the maximum may lie below it; then it is beyond the
    maximum by half of the distance to the 10 % quantile. Raises InputError for fewer than 4 points, and as `support` does."""
    if points < MIN_POINTS:
        raise InputError(f"points {points} are too few for a sweep; ask for {MIN_POINTS} or more.")
    low, high = support(return_quantiles)
    inside = max(3, round(points * 2 / 3))
    end = high + (high - min(low, 0.0)) / 2
    beyond = np.linspace(high, end, points - inside + 1)[1:]
    return [float(target) for target in (*np.linspace(low, high, inside), *beyond)]


@dataclass(frozen=True)
class Calibration:
    """Targets (P,) and what the episodes of each returned (P, E), read against the range [low, high] of the data's returns; all in reward units."""

    low: float
    high: float
    targets: npt.NDArray[np.float64]
    returns: npt.NDArray[np.float64]

    @property
    def inside(self) -> npt.NDArray[np.bool_]:
        """(P,) which targets lie in the data's range."""
        return (self.targets >= self.low) & (self.targets <= self.high)

    @property
    def means(self) -> npt.NDArray[np.float64]:
        """(P,) mean return of each target."""
        return np.asarray(self.returns.mean(axis=1))

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's correlation of asked and mean achieved, of the targets inside; None where it has no meaning."""
        return rank_correlation(self.targets[self.inside], self.means[self.inside])

    @property
    def mean_absolute_error(self) -> float | None:
        """Mean |asked − mean achieved| over the targets inside, in reward units; None where none is."""
        error = np.abs(self.targets - self.means)[self.inside]
        return float(error.mean()) if len(error) else None

    @property
    def drop_beyond(self) -> float | None:
        """The best mean inside less the mean over all targets above the data's maximum: what asking for too much costs. None without either."""
        above = self.targets > self.high
        return (
            float(self.means[self.inside].max() - self.means[above].mean())
            if above.any() and self.inside.any()
            else None
        )

    @cached_property
    def slope(self) -> tuple[float, tuple[float, float]] | None:
        """How much more is achieved for each unit more that is asked, inside: the mean over starts of the least-squares slope, and its 95 % interval, from
        `mean_ci95` over the starts. 1 is obedience, 0 is deafness. None for fewer than two targets."""
        asked = self.targets[self.inside]
        if len(asked) < 2 or np.ptp(asked) == 0:
            return None
        centred = asked - asked.mean()
        gained = self.returns[self.inside] - self.returns[self.inside][0]  # exactly 0 where the target changes nothing
        return mean_ci95((centred @ gained) / (centred @ centred))

    @cached_property
    def p_value(self) -> float | None:
        """Two-sided p of "the target does not matter", inside; None for fewer than two targets. See `trend_p_value`."""
        asked = self.targets[self.inside]
        return trend_p_value(asked, self.returns[self.inside]) if len(asked) > 1 else None

    @property
    def warning(self) -> str | None:
        """What is wrong with the conditioning, in one sentence.

        "conditioning has no effect" is said where `p_value` is above 0.05. Of policies to which the target does not matter, at most 5 % are not told so;
        a policy that obeys may be told so by mistake where the episodes are few and their returns noisy."""
        if self.p_value is None or self.slope is None:
            return None
        slope, (low, high) = self.slope
        found = f"slope {slope:.3g} [{low:.3g}, {high:.3g}], p = {self.p_value:.2g}"
        if self.p_value > ALPHA:
            return (
                f"conditioning has no effect: inside the data's range, asking for more does not bring more ({found})."
            )
        if slope < 0:
            return f"conditioning works the wrong way: inside the data's range, asking for more brings less ({found})."
        if high < WEAK_SLOPE:
            return f"conditioning has little effect: asking for one unit more brings less than {WEAK_SLOPE} more ({found})."
        return None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, but for the targets and returns."""
        slope = self.slope
        return {
            "support": [self.low, self.high],
            "rank_correlation": self.rank_correlation,
            "mean_absolute_error": self.mean_absolute_error,
            "drop_beyond": self.drop_beyond,
            "slope": None if slope is None else slope[0],
            "slope_ci95": None if slope is None else list(slope[1]),
            "p_value": self.p_value,
            "warning": self.warning,
        }

    def lines(self) -> list[str]:
        """The same in words, a line each."""
        out = [f"data's range: {self.low:,.6g} (10 % quantile) … {self.high:,.6g} (maximum)"]
        values = {name: value for name, value in self.to_dict().items() if value is not None}
        if "rank_correlation" in values:
            out.append(
                f"inside: rank correlation {values['rank_correlation']:.2f} (1: asking for more always brings more)"
            )
        if "mean_absolute_error" in values:
            out.append(f"inside: mean absolute error {values['mean_absolute_error']:,.4g}")
        if "slope" in values:
            low, high = values["slope_ci95"]
            out.append(f"inside: slope {values['slope']:.3g} [{low:.3g}, {high:.3g}] (1: as asked, 0: no effect)")
        if "drop_beyond" in values:
            out.append(f"beyond: {values['drop_beyond']:,.4g} less than the best mean inside")
        return [*out, f"warning: {self.warning}"] if self.warning else out

    def scalars(self) -> dict[str, float]:
        """The numbers as TensorBoard's, by tag."""
        numbers = {name: value for name, value in self.to_dict().items() if isinstance(value, float)}
        return {f"sweep/{name}": value for name, value in numbers.items()}


def trend_p_value(asked: npt.NDArray[np.float64], returns: npt.NDArray[np.float64], seed: int = 0) -> float:
    """Two-sided p-value of "within a start, the returns of the targets are exchangeable", by permutation of Page's statistic for a trend over blocks
    [Page 1963, doi:10.1080/01621459.1963.10500843]: Σ over starts of Σⱼ (asked rank)·(return rank), with mean ranks for ties.

    `asked` (P,), `returns` (P, E); a column is a start. Exact at any number of episodes but for the 9,999 random permutations, which the seed fixes:
    P(p ≤ 0.05) ≤ 0.05 where the target does not matter [Phipson & Smyth 2010, doi:10.2202/1544-6115.1585]. Returns that do not differ give 1."""
    from scipy.stats import rankdata

    x = rankdata(asked) - (len(asked) + 1) / 2
    ranks = np.asarray(rankdata(returns, axis=0)) - (len(asked) + 1) / 2
    observed = abs(float((x @ ranks).sum()))
    random, extreme = np.random.default_rng(seed), 0
    for begin in range(0, PERMUTATIONS, 500):
        count = min(500, PERMUTATIONS - begin)
        shuffled = random.permuted(np.broadcast_to(x, (count, ranks.shape[1], len(x))), axis=2)
        statistics = np.abs(np.einsum("nej,je->n", shuffled, ranks))
        extreme += int((statistics >= observed - 1e-9 * max(1.0, observed)).sum())
    return (1 + extreme) / (1 + PERMUTATIONS)
