"""What a code leaves over of a value: with it, a model that has picked a code says the rest as real numbers."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dtrl.tokenizers.base import Fitted


class Offset(Fitted):
    """x − decode(encode(x)) of another tokenizer, divided by its largest absolute value in the data: in [−1, 1] a dimension, one token a step, or a
    chunk of h steps [Lee et al. 2024, VQ-BeT, arXiv:2403.03181, §3.3]. `decode` gives the offset, to be added to what the code stands for.

    The other tokenizer is fitted first; it is no part of this one, and is saved with its own field."""

    vocab_size = None
    num_tokens = 1
    scale: Tensor

    def __init__(self, codes: Fitted) -> None:
        super().__init__(codes.shape, codes.block_length)
        self.token_width = self.block_length * self.entries
        self._codes = [codes]  # in a list, where torch does not look for modules
        self.register_buffer("scale", torch.ones(self.token_width))

    def left_over(self, x: Tensor) -> Tensor:
        """(B, T, …) → (B, T/h, h · entries)."""
        (codes,) = self._codes
        rest = x - codes.decode(codes.encode(x)).to(x.dtype)
        return rest.reshape(x.shape[0], x.shape[1] // self.block_length, self.token_width)

    def fit(self, x: npt.NDArray[Any]) -> None:
        """The largest offsets of a column (N, …), or of chunks (N, h, …)."""
        self.column(x)
        steps = x if self.block_length == 1 else x.reshape(-1, *x.shape[2:])
        # a copy: a memory map cannot be a tensor
        largest = self.left_over(torch.from_numpy(np.array(steps))[None])[0].abs().amax(dim=0)
        self.scale.copy_(torch.where(largest > 0, largest, 1))
        self.mark_fitted()

    def encode(self, x: Tensor) -> Tensor:
        """(B, T, …) → (B, T/h, 1, h · entries)."""
        self.values(x)
        return (self.left_over(x) / self.scale).unsqueeze(2).to(self.scale.dtype)

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, T/h, 1, h · entries) → (B, T, …)."""
        self.require_fitted()
        chunks = tokens.squeeze(2) * self.scale
        return self.shaped(chunks.reshape(len(chunks), chunks.shape[1] * self.block_length, self.entries))
