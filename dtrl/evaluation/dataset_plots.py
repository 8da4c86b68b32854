"""Figures of a dataset, for `dtrl datasets show ID --plots DIR`: what can be learned from it, before anything is.

Numbers come from dtrl.trajectories.distributions; nothing is computed here. Figures are made as in plots.py."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dtrl.errors import InputError
from dtrl.evaluation.plots import BLUE, DARK, GREY, new_figure, plain_axes, readable, save_figure
from dtrl.trajectories import Trajectories
from dtrl.trajectories.distributions import (
    MAX_LISTED_VALUES,
    Histogram,
    action_histograms,
    coverage,
    histogram,
    num_action_dimensions,
    running_mean,
)

MAX_TICKS = 8

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def returns_and_lengths_figure(trajectories: Trajectories) -> "Figure":
    """Histograms of the episodes' returns and lengths: a target outside the first has never been seen."""
    figure = new_figure(height=3.6)
    left, right = figure.subplots(1, 2)
    _draw(left, histogram("return", trajectories.episode_returns))
    _draw(right, histogram("length in steps", trajectories.episode_lengths))
    left.set_ylabel("episodes")
    _title(figure, trajectories, f"{trajectories.num_episodes:,} episodes")
    return figure


def actions_figure(trajectories: Trajectories) -> "Figure":
    """A histogram for each of the first 16 dimensions of the actions; bars with gaps for whole numbers."""
    histograms = action_histograms(trajectories)
    across = min(4, math.ceil(math.sqrt(len(histograms))))
    down = math.ceil(len(histograms) / across)
    figure = new_figure(height=1.2 + (2.6 if across == 1 else 6.4 / across * 0.8) * down)
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes, counted in zip(panels, histograms, strict=False):
        _draw(axes, counted)
        axes.tick_params(labelsize=9 if across < 3 else 6)
    for axes in panels[len(histograms) :]:
        axes.set_visible(False)
    all_of_them = num_action_dimensions(trajectories)
    left_out = f", the first {len(histograms)} of {all_of_them:,} dimensions" if all_of_them > len(histograms) else ""
    _title(figure, trajectories, f"{trajectories.num_steps:,} actions{left_out}")
    return figure


def coverage_figure(trajectories: Trajectories) -> "Figure":
    """A sample of the observations in the plane of their first two principal components, coloured by the return of their episode."""
    found = coverage(trajectories)
    figure = new_figure(height=5.2)
    axes = figure.add_subplot()
    dots = axes.scatter(
        found.points[:, 0], found.points[:, 1], c=found.returns, cmap="viridis", s=8, linewidth=0, alpha=0.7
    )
    figure.colorbar(dots, ax=axes, label="return of the episode", format=lambda value, _: readable(value))
    for axis, number, share in zip((axes.xaxis, axes.yaxis), (1, 2), found.explained, strict=True):
        axis.set_label_text(f"principal component {number} ({share:.0%} of the variance)")
    plain_axes(axes)
    _title(figure, trajectories, f"observations of {len(found.steps):,} of {trajectories.num_steps:,} steps")
    return figure


def quality_figure(trajectories: Trajectories) -> "Figure":
    """Returns in the order of the episodes, with their running mean: where one behaviour ends and a better one begins, and whether a
    split by index would split by quality."""
    returns = trajectories.episode_returns
    reach = max(1, len(returns) // 40)
    figure = new_figure(height=4.0)
    axes = figure.add_subplot()
    axes.scatter(np.arange(len(returns)), returns, s=8, color=GREY, linewidth=0, label="one episode")
    axes.plot(running_mean(returns, reach), color=BLUE, linewidth=1.8, label=f"mean of {2 * reach + 1:,}")
    axes.set(xlabel="episode, in the order of the dataset", ylabel="return")
    plain_axes(axes)
    axes.legend(fontsize=9, framealpha=0.85, edgecolor="none")
    _title(figure, trajectories, "returns in order")
    return figure


FIGURES: dict[str, Callable[[Trajectories], "Figure"]] = {
    "returns": returns_and_lengths_figure,
    "actions": actions_figure,
    "coverage": coverage_figure,
    "quality": quality_figure,
}
"""Name of the file, without .png → what is in it."""


def save_dataset_plots(trajectories: Trajectories, folder: str | os.PathLike[str]) -> list[Path]:
    """Write every figure to `folder` as a PNG, each whole or not at all, and return the paths. The folder is made if it is not there.

    Raises InputError where it cannot be written, or there is no episode."""
    if not trajectories.num_episodes:
        raise InputError(f"{trajectories.origin.name} has no episode to plot; choose a dataset that has one.")
    figures = {Path(folder) / f"{name}.png": draw(trajectories) for name, draw in FIGURES.items()}
    for path, figure in figures.items():
        save_figure(figure, path)
    return list(figures)


def _draw(axes: "Axes", counted: Histogram) -> None:
    from matplotlib.ticker import MaxNLocator

    plain_axes(axes)
    if counted.edges is not None:
        axes.stairs(counted.counts, counted.edges, fill=True, color=BLUE)
    elif counted.values is not None and len(counted.values) <= MAX_LISTED_VALUES:
        axes.bar(counted.values, counted.counts, width=0.7, color=BLUE)
        if len(counted.values) <= MAX_TICKS:
            axes.set_xticks(counted.values)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    elif counted.values is not None:
        axes.vlines(counted.values, 0, counted.counts, color=BLUE, linewidth=1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(counted.name, fontsize=9)


def _title(figure: "Figure", trajectories: Trajectories, what: str) -> None:
    figure.suptitle(f"{trajectories.origin.name} · {what}", x=0.02, ha="left", fontsize=11, color=DARK)
