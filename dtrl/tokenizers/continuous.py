"""Real vectors, one token a step: (x − shift) / scale, with shift and scale fitted by one of three rules."""

from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor

from dtrl.spaces import Space, is_image
from dtrl.tokenizers.base import Tokenizer

CONSTANT = 1e-6
"""A dimension whose standard deviation is below this is only shifted: dividing by it would blow up the first value that differs."""


class Continuous(Tokenizer):
    """A vector in, the same vector in model units out.

    rule "standardize": zero mean and unit deviation over the data, as published for observations. "bounds": the bounds of a Box onto [−1, 1],
    each dimension by its own, so that a tanh reaches exactly the action space; a dimension without finite bounds takes those of the data. "scale":
    divided by the largest absolute value (or by a given `scale`), as published for returns. Values of more axes than one are laid out flat."""

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
        self.shape = (width,) if box is None else box.shape
        self.register_buffer("shift", torch.zeros(width))
        self.register_buffer("scale", torch.full((width,), 1.0 if scale is None else scale))
        self.bounded = np.zeros(width, dtype=bool)
        self.given_scale = scale
        if box is not None and rule == "bounds":
            self.bounded = (np.isfinite(box.low) & np.isfinite(box.high)).reshape(-1)
            low, high = (bound.reshape(-1).astype(np.float64)[self.bounded] for bound in (box.low, box.high))
            half = (high - low) / 2
            self.shift[self.bounded] = torch.from_numpy((low + high) / 2).float()
            self.scale[self.bounded] = torch.from_numpy(np.where(half > 0, half, 1.0)).float()

    @classmethod
    def for_space(cls, space: Space, size: int | None = None) -> Self | None:
        if not isinstance(space, spaces.Box) or is_image(space):
            return None
        return cls(int(np.prod(space.shape)), "bounds", box=space)

    def fit(self, x: npt.NDArray[Any]) -> None:
        x = x.reshape(len(x), self.token_width)
        if self.rule == "scale":
            largest = float(np.abs(x).max()) if self.given_scale is None else self.given_scale
            self.scale.fill_(largest if largest > 0 else 1.0)
            return
        if self.rule == "bounds":
            low, high = x.min(axis=0).astype(np.float64), x.max(axis=0).astype(np.float64)
            shift, scale = (low + high) / 2, (high - low) / 2
        else:
            shift, scale = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
        free = torch.from_numpy(~self.bounded)
        self.shift[free] = torch.from_numpy(shift).to(self.shift)[free]
        self.scale[free] = torch.from_numpy(np.where(scale < CONSTANT, 1.0, scale)).to(self.scale)[free]

    def encode(self, x: Tensor) -> Tensor:
        """(B, T, …) of d entries a step, or (B, T) when d is 1 → (B, T, 1, d)."""
        shift = self.shift
        if x.dim() != 3:
            x = x.unsqueeze(-1) if x.dim() == 2 else x.flatten(2)
        x = x if x.dtype == shift.dtype else x.to(shift.dtype)  # asking costs less than a move to where it is
        return ((x - shift) / self.scale).unsqueeze(-2)

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, T, 1, d) → (B, T, …)."""
        x = tokens.squeeze(-2) * self.scale + self.shift
        return x if len(self.shape) == 1 else x.unflatten(-1, self.shape) if self.shape else x.squeeze(-1)
