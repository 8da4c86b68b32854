"""Figures of evaluations: does the policy deliver what it is asked for, and how did that come about during training?

Figures are built from matplotlib's objects and drawn by Agg: no pyplot, hence no global state, no window and no display
needed. Colours are Okabe and Ito's blue and matplotlib's viridis, which colour-blind readers can tell apart; lines
differ in their marks as well."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dtrl.errors import InputError
from dtrl.evaluation.references import Reference
from dtrl.evaluation.report import Report
from dtrl.evaluation.statistics import Values, normalized
from dtrl.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, LIGHT, GREY, DARK = "#0072B2", "#EBEBEB", "#B4B4B4", "#444444"
DOTS_PER_INCH = 150


def calibration_figure(report: Report, data_returns: Values | None = None) -> "Figure":
    """The return achieved over the return asked for, one mark per target: on the dashed line, both are the same.

    Marks are mean returns with their 95 % confidence interval, faint dots are single episodes. `data_returns`, the
    returns of the dataset's episodes, are drawn below as a histogram: where it is empty, the policy is asked for what
    it has never seen. With a reference, the right axis is the normalised score."""
    if not report.targets:
        raise InputError("a report without targets cannot be drawn; evaluate at least one target return.")
    figure = new_figure(height=4.8 if data_returns is None else 5.6)
    if data_returns is None:
        axes = figure.add_subplot()
        lowest = axes
    else:
        axes, lowest = figure.subplots(2, 1, sharex=True, height_ratios=[6, 1])
        _histogram(lowest, data_returns)
    if report.support is not None:
        axes.axvspan(*report.support, color=LIGHT, zorder=0, label="range of the data's returns")
    _calibration(axes, report)
    low, high = _limits(report, data_returns)
    axes.set(xlim=(low, high), ylim=(low, high), ylabel="return achieved")
    axes.plot(
        [low, high], [low, high], color=DARK, linewidth=1, linestyle=(0, (5, 4)), zorder=1, label="achieved = asked"
    )
    lowest.set_xlabel("return asked for")
    _dress(axes, report)
    if report.reference is not None:
        _normalized_axis(axes, report.reference)
    axes.legend(loc="upper left", fontsize=9, framealpha=0.85, edgecolor="none")
    return figure


def sweep_figure(history: Sequence[tuple[int, Report]]) -> "Figure":
    """The mean return achieved over training, one line per target with its 95 % band; dotted is the return asked for.

    `history` holds (gradient update, report) in any order; a report may lack some of the targets."""
    from matplotlib import colormaps

    asked = sorted({t.target_return for _, report in history for t in report.targets})
    if not asked:
        raise InputError("an empty history cannot be drawn; give at least one (update, report) with a target.")
    figure = new_figure(height=4.8)
    axes = figure.add_subplot()
    colours = colormaps["viridis"](np.linspace(0.0, 0.85, len(asked)))  # the last yellow is too pale on white
    markers = "osD^vPX*"
    for i, target in enumerate(asked):
        rows = sorted(
            (update, t.mean, *t.ci95) for update, report in history for t in report.targets if t.target_return == target
        )
        update, mean, low, high = np.array(rows, dtype=np.float64).T
        axes.axhline(target, color=colours[i], linewidth=1, linestyle=":", zorder=1)
        axes.fill_between(update, low, high, color=colours[i], alpha=0.15, linewidth=0)
        axes.plot(
            update, mean, color=colours[i], linewidth=1.8, marker=markers[i % len(markers)], markersize=4.5,
            markeredgecolor="white", markeredgewidth=0.6, label=readable(target),
        )  # fmt: skip
    axes.set(xlabel="gradient updates", ylabel="return achieved")
    _dress(axes, history[-1][1])
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], title="asked for", loc="outside right center", frameon=False, fontsize=9)
    return figure


def save_figure(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Write the figure to `path` as a PNG, whole or not at all. Raises InputError where it cannot be written."""
    write_atomically(path, lambda stream: figure.savefig(stream, format="png", dpi=DOTS_PER_INCH))


def new_figure(height: float) -> "Figure":
    """An empty figure, 6.4 inches wide and `height` inches high, that Agg draws and that leaves room for its labels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _dress(axes: "Axes", report: Report) -> None:
    """What both figures share: a heading over plain axes."""
    plural = "" if report.episodes == 1 else "s"
    axes.set_title(report.env or "evaluation", loc="left", fontsize=13, fontweight="bold", pad=22)
    facts = [
        report.dataset and f"trained on {report.dataset}",
        f"{report.episodes} episode{plural} per target" + (f", {report.lost} lost" if report.lost else ""),
        f"seed {report.seed}",
    ]
    axes.annotate(
        " · ".join(fact for fact in facts if fact), xy=(0, 1), xycoords="axes fraction", xytext=(0, 7),
        textcoords="offset points", fontsize=9, color=DARK,
    )  # fmt: skip
    plain_axes(axes)


def plain_axes(axes: "Axes") -> None:
    """A light grid, no box, readable numbers."""
    axes.grid(color=LIGHT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: readable(value))


def readable(value: float) -> str:
    return f"{value:,.6g}".replace("-", "−")


def _calibration(axes: "Axes", report: Report) -> None:
    asked = np.array([t.target_return for t in report.targets])
    mean = np.array([t.mean for t in report.targets])
    ends = np.array([t.ci95 for t in report.targets]).T
    beyond = np.nan_to_num(np.abs(ends - mean))  # below and above the mean; no bar where there is no interval
    axes.errorbar(
        asked, mean, yerr=beyond, fmt="o", color=BLUE, markersize=7, markeredgecolor="white", markeredgewidth=1,
        elinewidth=1.8, capsize=4, capthick=1.8, zorder=3, label="mean, 95 % interval",
    )  # fmt: skip
    spread = 0.012 * np.ptp(_limits(report, None))  # so that episodes of equal return do not hide each other
    for i, target in enumerate(report.targets):
        beside = target.target_return + spread * np.linspace(-1, 1, len(target.returns) + 2)[1:-1]
        label = "one episode" if i == 0 else None
        axes.scatter(beside, target.returns, s=14, color=BLUE, alpha=0.28, linewidth=0, zorder=2, label=label)


def _histogram(axes: "Axes", data_returns: Values) -> None:
    from matplotlib.ticker import MaxNLocator

    values = _finite(data_returns)
    axes.hist(values, bins=min(40, max(1, len(np.unique(values)))), color=GREY, linewidth=0)
    axes.set_ylabel("episodes\nin the data", fontsize=8, color=DARK)
    axes.tick_params(axis="y", labelsize=8, colors=DARK)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=2, integer=True))
    axes.spines[["top", "right"]].set_visible(False)


def _normalized_axis(axes: "Axes", reference: Reference) -> None:
    scale = (reference.expert - reference.random) / 100

    def score(value: npt.ArrayLike) -> npt.ArrayLike:
        return normalized(np.asarray(value), reference)

    def value(score: npt.ArrayLike) -> npt.ArrayLike:
        return np.asarray(score) * scale + reference.random

    right = axes.secondary_yaxis("right", functions=(score, value))
    right.set_ylabel("normalised score (0 random, 100 expert)", color=DARK, fontsize=9)
    right.tick_params(colors=DARK, labelsize=9)
    right.spines["right"].set_visible(False)


def _limits(report: Report, data_returns: Values | None) -> tuple[float, float]:
    """One range for both axes, so that the diagonal is a diagonal; 5 % wider than what is drawn."""
    drawn = [t.target_return for t in report.targets] + [r for t in report.targets for r in t.returns]
    values = _finite(
        np.concatenate([drawn, [] if data_returns is None else np.asarray(data_returns, dtype=np.float64)])
    )
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _finite(values: Values) -> npt.NDArray[np.float64]:
    x = np.asarray(values, dtype=np.float64)
    return x[np.isfinite(x)]
