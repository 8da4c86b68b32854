"""Numbers in env units ↔ numbers of about unit size, by one rule a dimension; and chunks of several steps of them, for the tokenizers that see a
chunk as a whole."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor, nn

from dtrl.errors import InputError
from dtrl.tokenizers.base import Fitted
from dtrl.tokenizers.bins import NO_BOUND, beyond

Rule = Literal["bounds", "quantiles", "deviations"]
TAILS = (0.01, 0.99)
"""Quantiles that the rule "quantiles" maps to −1 and 1, as in FAST [Pertsch et al. 2025, arXiv:2501.09747, §IV]."""


class Normalization(nn.Module):
    """(…, D) clipped to [low, high] ↔ (x − shift) / scale.

    rule "bounds": [low, high] onto [−1, 1], of the Box's bounds where a dimension has both, else of the data. "quantiles": the same with the 1 % and
    the 99 % quantile of the data, so that a few outliers do not use up the range; a dimension in which the two are equal takes its bounds.
    "deviations": zero mean and unit deviation of the data, and the range of "bounds". A dimension that is constant
    in the data is 0, and comes back exactly, whatever its bounds."""

    shift: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, width: int, rule: Rule, box: spaces.Box | None = None) -> None:
        super().__init__()
        self.rule: Rule = rule
        self.bounds = np.array([np.full(width, -np.inf), np.full(width, np.inf)])
        if box is not None:
            self.bounds = np.stack([box.low.reshape(-1), box.high.reshape(-1)]).astype(np.float64)
        for name in ("shift", "scale", "low", "high"):
            self.register_buffer(name, torch.zeros(width))

    def fit(self, x: npt.NDArray[Any]) -> None:
        """Set the numbers from finite float64 data (N, D). Raises InputError where float32 does not hold them."""
        low, high = x.min(axis=0), x.max(axis=0)
        large = np.maximum(-low, high) > np.finfo(np.float32).max
        if large.any():
            raise InputError(
                f"dimension {large.argmax()} spans {low[large][0]:g} … {high[large][0]:g}, more than float32 holds; rescale the data."
            )
        varies = low < high
        if self.rule == "quantiles":
            tails = np.quantile(x, TAILS, axis=0)
            low, high = np.where(tails[0] < tails[1], tails, [low, high])
        else:
            # NO_BOUND at either end, so that their difference is a number too
            low, high = np.where(varies & (np.abs(self.bounds) < NO_BOUND).all(axis=0), self.bounds, [low, high])
        if self.rule == "deviations":
            shift, scale = np.where(varies, x.mean(axis=0), x[0]), np.where(varies, x.std(axis=0), 0.0)
        else:
            shift, scale = (low + high) / 2, (high - low) / 2
        for buffer, value in ((self.shift, shift), (self.scale, scale), (self.low, low), (self.high, high)):
            buffer.copy_(torch.from_numpy(value))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.minimum(torch.maximum(x.to(self.shift.dtype), self.low), self.high)
        return (x - self.shift) / torch.where(self.scale > 0, self.scale, 1.0)

    def inverse(self, x: Tensor) -> Tensor:
        """The values in env units, inside [low, high]."""
        return torch.minimum(torch.maximum(x * self.scale + self.shift, self.low), self.high)


class Chunked(Fitted):
    """A tokenizer of chunks of h steps of D numbers, which it normalises first. What is left to it are the tokens of a normalised chunk."""

    def __init__(self, shape: tuple[int, ...], block_length: int, rule: Rule, box: spaces.Box | None) -> None:
        super().__init__(shape, block_length)
        if box is not None and box.shape != self.shape:
            raise InputError(f"{box} has not the shape {self.shape} of the values; give the Box that they are of.")
        self.normalization = Normalization(self.entries, rule, box)

    def normalized(self, x: npt.NDArray[Any]) -> Tensor:
        """Fits the normalisation: chunks (N, h, …), or (N, …) where h = 1 → (N, h, D)."""
        rows = self.column(x).reshape(-1, self.entries)
        self.normalization.fit(rows)
        steps: Tensor = self.normalization(torch.from_numpy(rows).to(self.normalization.shift.device))
        return steps.reshape(-1, self.block_length, self.entries)

    def chunks(self, x: Tensor) -> Tensor:
        """(B, T, …) → (B, T/h, h, D), clipped and normalised."""
        steps: Tensor = self.normalization(self.values(x))
        return steps.reshape(x.shape[0], x.shape[1] // self.block_length, self.block_length, self.entries)

    def steps(self, chunks: Tensor) -> Tensor:
        """(B, T/h, h, D) normalised → (B, T, …), inside the range."""
        return self.shaped(self.normalization.inverse(chunks.flatten(1, 2)))

    def outside(self, x: Tensor) -> Tensor:
        return self.shaped(beyond(self.values(x), self.normalization.low, self.normalization.high))


def no_autocast(device_type: str) -> AbstractContextManager[None]:
    """What is computed in the precision of the weights: distributions, and ids, which in bfloat16 would differ between training and acting. The meta
    device, on which nothing is computed, has no autocast."""
    return nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False)
