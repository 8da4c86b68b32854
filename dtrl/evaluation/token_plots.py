"""The figure of `dtrl tokenizers report --plot FILE.png`: what is lost in each dimension, and how evenly the ids are used. Made as in plots.py."""

from typing import TYPE_CHECKING, Any

import numpy as np

from dtrl.evaluation.plots import DARK, new_figure, plain_axes
from dtrl.evaluation.tokens import TokenizerResult, TokenReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vPX*"
SMALLEST = 1e-4
"""Errors below this share of the deviation are drawn on a linear scale down to 0, which a logarithmic one does not have."""


def tokens_figure(report: TokenReport) -> "Figure":
    """A row of two panels for every part of the field. Left: root mean squared error over deviation, by dimension. Right: the share of the tokens
    that each id has, from the most frequent id to the rarest; a level line is a vocabulary that is used evenly."""
    from matplotlib import colormaps

    parts = list(dict.fromkeys(result.field for result in report.results))
    names = list(dict.fromkeys(result.tokenizer for result in report.results))
    colours = dict(zip(names, colormaps["viridis"](np.linspace(0.0, 0.85, len(names))), strict=True))
    markers = {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(names)}
    figure = new_figure(height=1.0 + 3.0 * len(parts))
    panels = figure.subplots(len(parts), 2, squeeze=False)
    for (left, right), part in zip(panels, parts, strict=True):
        for result in report.results:
            if result.field == part:
                style = {"color": colours[result.tokenizer], "marker": markers[result.tokenizer], "markersize": 4}
                _draw(left, right, result, style)
        plain_axes(left)
        plain_axes(right)
        left.set_yscale("symlog", linthresh=SMALLEST)
        left.set(xlabel=f"dimension of {part}", ylabel="rmse / deviation", ylim=(0, None))
        right.set(xlabel="id, the most frequent first", ylabel="share of the tokens", xscale="log", yscale="log")
        left.xaxis.get_major_locator().set_params(integer=True)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    for left, _ in panels[1:]:
        more = zip(*left.get_legend_handles_labels(), strict=True)
        for handle, label in more:
            if label not in labels:
                handles.append(handle)
                labels.append(label)
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(
        f"{report.dataset} · {report.field} · measured on {report.held_out_steps:,} held-out steps",
        x=0.02, ha="left", fontsize=11, color=DARK,
    )  # fmt: skip
    return figure


def _draw(left: "Axes", right: "Axes", result: TokenizerResult, style: dict[str, Any]) -> None:
    left.plot(np.arange(len(result.nrmse)), result.nrmse, linewidth=1, label=result.tokenizer, **style)
    if result.counts is not None and result.counts.any():
        shares = np.sort(result.counts[result.counts > 0])[::-1] / result.counts.sum()
        right.plot(np.arange(1, len(shares) + 1), shares, linewidth=1.2, **style | {"markersize": 2})
