"""Numbers in env units ↔ numbers of about unit size, by one rule a dimension; and chunks of several steps of them, for the tokenizers that see a
chunk as a whole."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor, nn

from dtrl.spaces import Space
from dtrl.tokenizers.base import Fitted

Rule = Literal["bounds", "quantiles", "deviations"]
TAILS = (0.01, 0.99)
"""Quantiles that the rule "quantiles" maps to −1 and 1, as in FAST [Pertsch et al. 2025, arXiv:2501.09747, §IV]."""


class Normalization(nn.Module):
    """(…, D) clipped to [low, high] ↔ (x − shift) / scale.

    rule "bounds": [low, high] onto [−1, 1], of the Box's bounds where a dimension has both, else of the data. "quantiles": the same with the 1 % and
    the 99 % quantile of the data, so that a few outliers do not use up the range; a dimension in which the two are equal takes its bounds.
    "deviations": zero mean and unit deviation of the data, and the range of "bounds". A constant dimension is 0, and comes back exactly."""

    shift: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, width: int, rule: Rule, box: spaces.Box | None = None) -> None:
        super().__init__()
        self.rule: Rule = rule
        self.box_low, self.box_high = np.full(width, -np.inf), np.full(width, np.inf)
        if box is not None:
            self.box_low, self.box_high = (
                box.low.reshape(-1).astype(np.float64),
                box.high.reshape(-1).astype(np.float64),
            )
        for name in ("shift", "scale", "low", "high"):
            self.register_buffer(name, torch.zeros(width))

    def fit(self, x: npt.NDArray[Any]) -> None:
        """Set the numbers from finite float64 data (N, D)."""
        low, high = x.min(axis=0), x.max(axis=0)
        if self.rule == "quantiles":
            tails = np.quantile(x, TAILS, axis=0)
            wide = tails[1] > tails[0]
            low, high = np.where(wide, tails[0], low), np.where(wide, tails[1], high)
        else:
            bounded = np.isfinite(self.box_low) & np.isfinite(self.box_high)
            low, high = np.where(bounded, self.box_low, low), np.where(bounded, self.box_high, high)
        if self.rule == "deviations":
            varies = x.max(axis=0) > x.min(axis=0)
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

    def outside(self, x: Tensor) -> Tensor:
        """(…, D) → bool of the same shape: the values that are clipped. Compared in the precision of the buffers, in which the data's own ends are inside."""
        x = x.to(self.low.dtype)
        return (x < self.low) | (x > self.high)


class Chunked(Fitted):
    """A tokenizer of chunks of h steps of D numbers, which it normalises first. What is left to it are the tokens of a normalised chunk."""

    def __init__(self, shape: tuple[int, ...], block_length: int, rule: Rule, box: spaces.Box | None) -> None:
        super().__init__(shape, block_length)
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
        return self.normalization.outside(x.reshape(*x.shape[:2], self.entries)).reshape(x.shape)


def real_vectors(space: Space) -> spaces.Box | None:
    """The space, if its values are vectors (or arrays) of real numbers."""
    return space if isinstance(space, spaces.Box) and space.dtype.kind == "f" and space.shape else None


def no_autocast(device_type: str) -> AbstractContextManager[None]:
    """Ids are computed in the precision of the weights: in bfloat16 they would differ between training and acting."""
    return torch.autocast(device_type, enabled=False) if torch.amp.is_autocast_available(device_type) else nullcontext()
