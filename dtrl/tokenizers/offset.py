"""What a code leaves over of a value: with it, a model that has picked a code says the rest as real numbers."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dtrl.tokenizers.base import Fitted


class Offset(Fitted):
    """x − decode(encode(x)) of another tokenizer, divided by its largest absolute value in the data: in [−1, 1] a dimension, one token a step
    [Lee et al. 2024, VQ-BeT, arXiv:2403.03181, §3.3]. `decode` gives the offset, to be added to what the code stands for.

    The other tokenizer is fitted first; it is no part of this one, and is saved with its own field."""

    vocab_size = None
    num_tokens = 1
    scale: Tensor

    def __init__(self, codes: Fitted) -> None:
        super().__init__(codes.shape)
        self.token_width = self.entries
        self._codes = [codes]  # in a list, where torch does not look for modules
        self.register_buffer("scale", torch.ones(self.entries))

    def left_over(self, x: Tensor) -> Tensor:
        """(B, T, …) → (B, T, entries)."""
        (codes,) = self._codes
        return (x - codes.decode(codes.encode(x)).to(x.dtype)).reshape(*x.shape[:2], self.entries)

    def fit(self, x: npt.NDArray[Any]) -> None:
        """The largest offsets of a column (N, …)."""
        self.column(x)
        largest = self.left_over(torch.from_numpy(np.ascontiguousarray(x))[None])[0].abs().amax(dim=0)
        self.scale.copy_(torch.where(largest > 0, largest, 1))
        self.mark_fitted()

    def encode(self, x: Tensor) -> Tensor:
        """(B, T, …) → (B, T, 1, entries)."""
        self.values(x)
        return (self.left_over(x) / self.scale).unsqueeze(2).to(self.scale.dtype)

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, T, 1, entries) → (B, T, …)."""
        self.require_fitted()
        return self.shaped(tokens.squeeze(2) * self.scale)
