"""What an evaluation found: for every return asked for, the returns of the episodes played, and what they amount to."""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dtrl.acting.faults import FAULTS, EpisodeFault
from dtrl.acting.timing import Timing
from dtrl.documents import parse_json
from dtrl.errors import InputError, reason_of
from dtrl.evaluation.calibration import Calibration
from dtrl.evaluation.references import Reference
from dtrl.evaluation.statistics import Values, interquartile_mean, mean_ci95, normalized, rank_correlation
from dtrl.files import write_atomically


@dataclass(frozen=True)
class TargetResult:
    """The episodes that were played with one return asked for. Everything derived is computed from `returns`."""

    target_return: float
    """The return asked for at the start of every episode, in reward units."""
    returns: list[float]
    """The return of each episode: its undiscounted sum of rewards, in reward units."""
    lengths: list[int]
    """The length of each episode, in environment steps."""
    lost: list[int] = field(default_factory=list)
    """Numbers, from 0, of the episodes that faults of the environment took. They are not in the two lists; where nothing is left, the means are NaN."""

    def __post_init__(self) -> None:
        if not (self.returns or self.lost) or len(self.returns) != len(self.lengths):
            raise InputError(
                f"target {self.target_return} has {len(self.returns)} returns and {len(self.lengths)} lengths; "
                "give one of each for every episode, and at least one episode."
            )

    @property
    def mean(self) -> float:
        """Mean return over the episodes, in reward units."""
        return self._mean_and_ci95[0]

    @property
    def ci95(self) -> tuple[float, float]:
        """95 % confidence interval of the mean return, from `dtrl.evaluation.statistics.mean_ci95`."""
        return self._mean_and_ci95[1]

    @property
    def iqm(self) -> float:
        """Interquartile mean of the returns, in reward units."""
        return interquartile_mean(self.returns) if self.returns else math.nan

    @property
    def mean_length(self) -> float:
        """Mean length of the episodes, in environment steps."""
        return float(np.mean(self.lengths)) if self.lengths else math.nan

    def normalized_mean(self, reference: Reference | None) -> float | None:
        """The mean return on the reference's scale (0 random, 100 expert); None without a reference."""
        return None if reference is None else float(normalized(self.mean, reference))

    @cached_property
    def _mean_and_ci95(self) -> tuple[float, tuple[float, float]]:
        return mean_ci95(self.returns) if self.returns else (math.nan, (math.nan, math.nan))


@dataclass(frozen=True)
class Report:
    """One evaluation of one policy: its targets, and what is needed to read them and to repeat them."""

    dataset: str | None
    """Id of the dataset that the policy was trained on."""
    env: str | None
    """Id of the environment that it was evaluated in."""
    seed: int
    """Seed of the evaluation: of the episodes' resets and of sampled actions."""
    episodes: int
    """Episodes asked for with each target."""
    targets: list[TargetResult]
    reference: Reference | None = None
    """The scale of normalised scores; None when neither the dataset nor dtrl knows one."""
    settings: dict[str, Any] = field(default_factory=dict)
    """How actions were chosen (context, decoding, …), as plain JSON values."""
    timing: Timing | None = field(default=None, compare=False)
    """Where the time went. It differs from run to run, so reports are equal without it."""
    support: tuple[float, float] | None = None
    """Of a sweep: the range of the data's returns, against which the targets are read."""
    faults: list[EpisodeFault] = field(default_factory=list)
    """What environments did wrong, one after the other: whereby episodes were lost, or had to begin again."""

    @property
    def lost(self) -> int:
        """Number of episodes that were lost, of all targets."""
        return sum(len(target.lost) for target in self.targets)

    @cached_property
    def calibration(self) -> Calibration | None:
        """Of a sweep: how well the policy delivers what it is asked for, in the episodes that no target has lost, as they begin alike for all; None where
        there is none, and for other evaluations."""
        if self.support is None:
            return None
        lost = {episode for target in self.targets for episode in target.lost}
        returns = []
        for target in self.targets:
            played = (e for e in range(len(target.returns) + len(target.lost)) if e not in target.lost)
            returns.append([r for e, r in zip(played, target.returns, strict=True) if e not in lost])
        if not returns[0]:
            return None
        return Calibration(*self.support, np.array([t.target_return for t in self.targets]), np.array(returns))

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's correlation of the returns asked for and the means achieved; None when it has no meaning."""
        return rank_correlation([t.target_return for t in self.targets], [t.mean for t in self.targets])

    @property
    def told_return(self) -> bool:
        """Whether the policy was told what is asked for."""
        return bool(self.settings.get("told_return", True))

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values, without its timing: the same for the same evaluation. A number that is not finite becomes None: JSON has no
        NaN."""
        value = {
            "dataset": self.dataset,
            "env": self.env,
            "seed": self.seed,
            "episodes": self.episodes,
            "targets": [self._target_dict(target) for target in self.targets],
            "rank_correlation": self.rank_correlation,
            "reference": None if self.reference is None else asdict(self.reference),
            "settings": self.settings,
            "faults": [fault.to_dict() for fault in self.faults],
        }
        if self.calibration is not None:
            value["sweep"] = self.calibration.to_dict()
        result = plain(value)
        assert isinstance(result, dict)
        return result

    def _target_dict(self, target: TargetResult) -> dict[str, Any]:
        return {
            "target_return": target.target_return,
            "mean": target.mean,
            "ci95": target.ci95,
            "iqm": target.iqm,
            "normalized_mean": target.normalized_mean(self.reference),
            "mean_length": target.mean_length,
            "returns": target.returns,
            "lengths": target.lengths,
            "lost": target.lost,
        }

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` and the timing to `path`, whole or not at all; makes missing folders. Raises InputError where it can't."""
        timing = {} if self.timing is None else {"timing": asdict(self.timing)}
        text = json.dumps({**self.to_dict(), **timing}, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        write_atomically(path, lambda stream: stream.write(text.encode()))

    @staticmethod
    def from_json(path: str | os.PathLike[str]) -> "Report":
        """The report that `to_json` wrote. Derived numbers are computed again. Raises InputError for any other file."""
        try:
            value = parse_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(
                f"{path} cannot be read ({error.strerror}); give a file written by Report.to_json."
            ) from error
        except ValueError as error:
            raise InputError(f"{path} is not JSON ({error}); give a file written by Report.to_json.") from error
        try:
            report = _report(value)
            report.table()  # reads all of it
            return report
        except Exception as error:  # what is wrong in another document may break any line of it
            raise InputError(
                f"{path} is not an evaluation report ({reason_of(error)}); give a file written by Report.to_json."
            ) from error

    def table(self) -> str:
        """A plain-text table with a line for each target, in fixed width; the last line tells the rank correlation."""
        return "\n".join([self._title(), "", *aligned(self._columns()), "", *self._notes()])

    def plot(self, path: str | os.PathLike[str], data_returns: Values | None = None) -> None:
        """Write the calibration figure as a PNG: the return achieved over the return asked for."""
        from dtrl.evaluation.plots import calibration_figure, save_figure

        save_figure(calibration_figure(self, data_returns), path)

    def _title(self) -> str:
        plural = "" if self.episodes == 1 else "s"
        where = ", ".join(name for name in (self.env, self.dataset and f"trained on {self.dataset}") if name)
        return f"{where or 'evaluation'}: {self.episodes} episode{plural} per target, seed {self.seed}"

    def _columns(self) -> list[tuple[str, list[str]]]:
        means, ends = [t.mean for t in self.targets], [t.ci95 for t in self.targets]
        show = _format([*means, *(end for pair in ends for end in pair)])
        width = max((len(show(end)) for pair in ends for end in pair), default=0)
        columns = [
            ("asked", [f"{t.target_return:,.6g}" if self.told_return else "–" for t in self.targets]),
            ("achieved", [show(mean) for mean in means]),
            ("95 % interval", [f"[{show(low):>{width}}, {show(high):>{width}}]" for low, high in ends]),
        ]
        if self.reference is not None:
            columns.append(("normalised", [f"{t.normalized_mean(self.reference):.1f}" for t in self.targets]))
        if self.lost:
            columns.append(("played", [f"{len(t.returns)} of {self.episodes}" for t in self.targets]))
        return columns

    def _notes(self) -> list[str]:
        notes = self._fault_notes()
        if any(len(t.returns) == 1 for t in self.targets):
            notes.append("95 % interval: one episode has no spread; evaluate more episodes for an interval")
        if self.reference is not None:
            notes.append(f"normalised: {self.reference.text()}; {self.reference.source}")
        if self.calibration is not None:
            return [*notes, *self.calibration.lines()]
        if not self.told_return:
            return [*notes, "this policy is told no return: it acts the same whatever is asked for"]
        correlation = self.rank_correlation
        if correlation is None:
            shown = "undefined (needs two targets, and means, that differ)"
        else:
            shown = f"{correlation:.2f} (1: asking for more always brings more)"
        return [*notes, f"rank correlation of asked and achieved: {shown}"]

    def _fault_notes(self) -> list[str]:
        """What was lost, and why."""
        notes = []
        if self.lost:
            why = counted(fault.kind for fault in self.faults if fault.lost)
            asked = self.episodes * len(self.targets)
            notes.append(
                f"lost: {self.lost} of {asked} episodes (environments: {why}); every number is over the others"
            )
            if self.support is not None:
                common = 0 if self.calibration is None else self.calibration.returns.shape[1]
                notes.append(f"the sweep is read over the {common} of {self.episodes} starts that no target has lost")
        if again := [fault.kind for fault in self.faults if not fault.lost]:
            notes.append(
                f"begun again: {len(again)} time{'' if len(again) == 1 else 's'} (environments: {counted(again)})"
            )
        if self.faults:
            notes.append(f"the first fault: {self.faults[0].message}")
        return notes


def _format(values: list[float]) -> Callable[[float], str]:
    """One number of decimals for a whole column, so that its points stand below each other: about four digits."""
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    decimals = 3 if largest < 1 else 2 if largest < 10 else 1 if largest < 1_000 else 0
    return lambda value: "–" if math.isnan(value) else f"{value:,.{decimals}f}"


def counted(kinds: Iterable[str]) -> str:
    """How often there was which kind of fault, in words, the most frequent first."""
    return ", ".join(f"{count} {FAULTS[kind]}" for kind, count in Counter(kinds).most_common())


def aligned(columns: list[tuple[str, list[str]]]) -> list[str]:
    """The lines of a table from its columns' heads and cells, in fixed width."""
    widths = [max(len(head), *map(len, cells)) if cells else len(head) for head, cells in columns]
    rows = [
        [head for head, _ in columns],
        ["-" * width for width in widths],
        *zip(*(cells for _, cells in columns), strict=True),
    ]
    return ["   ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def plain(value: Any) -> Any:
    """`value` in JSON's own types: numpy's scalars and arrays, tuples and paths turned, NaN and infinities None."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, os.PathLike) else value


def _report(value: dict[str, Any]) -> Report:
    def number(x: float | None) -> float:
        return math.nan if x is None else float(x)  # JSON's null stands for a return that was not finite

    def name(x: Any) -> str | None:
        if not isinstance(x, str | None):
            raise ValueError(f"{str(x)[:80]} is no name")
        return x

    def counts(values: list[Any]) -> list[int]:
        if not isinstance(values, list) or not all(type(x) is int and 0 <= x < 2**53 for x in values):
            raise ValueError(f"{str(values)[:80]} are no counts")
        return values

    return Report(
        dataset=name(value["dataset"]),
        env=name(value["env"]),
        seed=counts([value["seed"]])[0],
        episodes=counts([value["episodes"]])[0],
        targets=[
            TargetResult(
                number(t["target_return"]),
                [number(x) for x in t["returns"]],
                counts(t["lengths"]),
                counts(t.get("lost", [])),
            )
            for t in value["targets"]
        ],
        reference=None if value["reference"] is None else Reference(**value["reference"]),
        settings=value["settings"],
        timing=Timing(**value["timing"]) if "timing" in value else None,
        support=tuple(value["sweep"]["support"]) if "sweep" in value else None,
        faults=[EpisodeFault(**fault) for fault in value.get("faults", [])],
    )
