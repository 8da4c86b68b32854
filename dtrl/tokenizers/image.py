"""Images of bytes: one token a step, kept as bytes until the model embeds it."""

from typing import Any

import numpy.typing as npt
from torch import Tensor

from dtrl.tokenizers.base import Tokenizer

CHANNELS = 4
"""An axis of at most so many entries at the end is of channels (grey, RGB, with alpha); else channels come first."""


class Image(Tokenizer):
    """(H, W), (H, W, C) or (C, H, W), or a stack (F, …) of those → C · F channels first. Normalised where it is embedded."""

    vocab_size = None
    num_tokens = 1
    block_length = 1

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        stack, frame = (shape[:1], shape[1:]) if len(shape) == 4 else ((1,), shape)
        frame = frame if len(frame) == 3 else (1, *frame)
        self.channels_last = len(shape) > 2 and frame[-1] <= CHANNELS < frame[0]
        channels, height, width = (frame[2], frame[0], frame[1]) if self.channels_last else frame
        self.grid = (stack[0] * channels, height, width)
        self.token_width = stack[0] * channels * height * width

    def fit(self, x: npt.NDArray[Any]) -> None:
        """Nothing is fitted: bytes are bytes."""

    def encode(self, x: Tensor) -> Tensor:
        """(B, T, …) uint8 → (B, T, 1, C·H·W) uint8, channels first."""
        return (x.movedim(-1, -3) if self.channels_last else x).flatten(2).unsqueeze(2)

    def decode(self, tokens: Tensor) -> Tensor:
        """The inverse."""
        steps = tokens.shape[:2]
        if not self.channels_last:
            return tokens.reshape(*steps, *self.shape)
        first = (*self.shape[:-3], self.shape[-1], *self.shape[-3:-1])
        return tokens.reshape(*steps, *first).movedim(-3, -1)
