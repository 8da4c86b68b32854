"""Plots of a suite's results: aggregates with their intervals, and performance profiles. Made as those of `dtrl.evaluation.plots`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dtrl.evaluation.plots import DARK, new_figure, plain_axes
from dtrl.suites.table import NAMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which colour-blind readers can tell apart; lines differ in their dashes as well."""
DASHES = ("-", "--", "-.", ":")


def aggregate_figure(results: Mapping[str, Any]) -> "Figure":
    """The suite's first metric of every entry, last and best checkpoint, as marks with 95 % intervals."""
    metric = results["metrics"][0]
    sides = {name: results["checkpoints"][name]["overall"] for name in ("last", "best")}
    labels = list(sides["last"])[::-1]
    figure = new_figure(height=1.4 + 0.45 * len(labels))
    axes = figure.add_subplot()
    for shift, (name, marker, colour, words) in zip(
        (0.12, -0.12), [("last", "o", COLOURS[0], "last"), ("best", "D", COLOURS[1], "best of its evaluations (optimistic)")], strict=True
    ):  # fmt: skip
        triples = [sides[name][label][metric] for label in labels]
        values = [value for value, _, _ in triples]
        ends = [[v - low for v, low, _ in triples], [high - v for v, _, high in triples]]
        at = [i + shift for i in range(len(labels))]
        axes.errorbar(
            values, at, xerr=ends, fmt=marker, color=colour, capsize=3, markersize=5, linestyle="", label=words
        )
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel(f"{NAMES[metric]} of normalised scores, 95 % interval")
    plain_axes(axes)
    axes.set_yticks(range(len(labels)), labels)  # the numbers' format is not for names
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def profile_figure(results: Mapping[str, Any]) -> "Figure":
    """For every score, the share of runs above it: last checkpoints, with pointwise 95 % bands."""
    profiles = results["checkpoints"]["last"]["profiles"]
    figure = new_figure(height=4.2)
    axes = figure.add_subplot()
    at = profiles["thresholds"]
    for i, (label, profile) in enumerate(profiles["entries"].items()):
        colour = COLOURS[i % len(COLOURS)]
        axes.fill_between(at, profile["low"], profile["high"], color=colour, alpha=0.12, linewidth=0)
        axes.plot(at, profile["share"], color=colour, linestyle=DASHES[i % len(DASHES)], linewidth=1.6, label=label)
    plain_axes(axes)
    axes.set(xlabel="normalised score", ylabel="share of runs above it", ylim=(-0.02, 1.02))
    axes.set_title("last checkpoints", fontsize=9, color=DARK, loc="left")
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    return figure
