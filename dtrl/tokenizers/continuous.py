"""Real vectors, one token a step: (x − shift) / scale, with shift and scale fitted by one of three rules."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor

from dtrl.tokenizers.base import Tokenizer

CONSTANT = 1e-6
"""A dimension whose standard deviation is below this is only shifted: dividing by it would blow up the first value that differs."""


class Continuous(Tokenizer):
    """A vector in, the same vector in model units out.

    rule "standardize": zero mean and unit deviation over the data, as published for observations. "bounds": the bounds of a Box onto [−1, 1],
    each dimension by its own, so that a tanh reaches exactly the action space; a dimension without finite bounds is standardised. "scale": divided
    by the largest absolute value (or by a given `scale`), as published for returns."""

    shift: Tensor
    scale: Tensor
    vocab_size = None
    num_tokens = 1
    block_length = 1

    def __init__(
        self,
        width: int,
        rule: Literal["standardize", "bounds", "scale"] = "standardize",
        *,
        box: spaces.Box | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.token_width, self.rule = width, rule
        self.register_buffer("shift", torch.zeros(width))
        self.register_buffer("scale", torch.full((width,), 1.0 if scale is None else scale))
        self.bounded = np.zeros(width, dtype=bool)
        self.given_scale = scale
        if box is not None:
            self.bounded = np.isfinite(box.low) & np.isfinite(box.high)
            low, high = (bound.astype(np.float64)[self.bounded] for bound in (box.low, box.high))
            half = (high - low) / 2
            self.shift[self.bounded] = torch.from_numpy((low + high) / 2).float()
            self.scale[self.bounded] = torch.from_numpy(np.where(half > 0, half, 1.0)).float()

    def fit(self, x: npt.NDArray[Any]) -> None:
        x = x.reshape(len(x), self.token_width)
        if self.rule == "scale":
            largest = float(np.abs(x).max()) if self.given_scale is None else self.given_scale
            self.scale.fill_(largest if largest > 0 else 1.0)
            return
        mean, deviation = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
        free = torch.from_numpy(~self.bounded)
        self.shift[free] = torch.from_numpy(mean).to(self.shift)[free]
        self.scale[free] = torch.from_numpy(np.where(deviation < CONSTANT, 1.0, deviation)).to(self.scale)[free]

    def encode(self, x: Tensor) -> Tensor:
        """(B, T, d), or (B, T) when d is 1 → (B, T, 1, d)."""
        shift = self.shift
        x = x.to(shift.dtype) - shift if x.dim() == 3 else x.to(shift.dtype).unsqueeze(-1) - shift
        return (x / self.scale).unsqueeze(-2)

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, T, 1, d) → (B, T, d)."""
        return tokens.squeeze(-2) * self.scale + self.shift
