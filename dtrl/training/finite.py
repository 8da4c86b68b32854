"""Losses and gradients that are not finite: whose they are, and what the batch says of the cause."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from dtrl.acting.runs import checkpoints
from dtrl.errors import InputError
from dtrl.windows import Windows


def check_finite(update: int, measures: Sequence[float], windows: Windows, logdir: Path | None) -> None:
    """Raise InputError where the loss or the gradient's norm, the first two measures of an update, is not finite."""
    for what, value in zip(("loss", "gradient"), measures, strict=False):
        if not math.isfinite(value):
            raise InputError(
                f"the {what} of update {update} is {value} ({windows.describe(update)}): {cause_of(update, windows)}{kept_in(logdir)}."
            )


def cause_of(update: int, windows: Windows) -> str:
    values = windows.batch(update).values
    guilty = [name for name, x in values.items() if x.is_floating_point() and not torch.isfinite(x).all()]
    if guilty:
        return f"the batch holds NaN or infinity in {', '.join(guilty)}"
    return "the data of the batch are finite, so the weights diverged: lower learning_rate"


def kept_in(logdir: Path | None) -> str:
    kept = [] if logdir is None else checkpoints(logdir)
    return f"; the last good checkpoint is {kept[-1]}" if kept else ""
