"""Images of bytes: one token a step, kept as bytes until the model embeds it."""

from typing import Any, Self

import numpy.typing as npt
from torch import Tensor

from dtrl.spaces import Space, is_image
from dtrl.tokenizers.base import Tokenizer

CHANNELS = 4
"""An axis of at most so many entries is of channels: grey, RGB, with alpha."""


def channels_last(frame: tuple[int, ...]) -> bool:
    """Whether the last axis of a frame is that of its channels, and not the first: the one of at most CHANNELS entries, else the shorter one. Where both
    are alike in that, as in (3, 3, 3), the last one is, by Gymnasium's convention."""
    first, _, last = frame
    return last <= CHANNELS or (first > CHANNELS and last <= first)


class Image(Tokenizer):
    """(H, W), (H, W, C) or (C, H, W), or a stack (F, …) of the last two → C · F channels first. Normalised where it is embedded.

    Which axis is that of the channels is told by `channels_last`; a grey stack (F, H, W) has its frames for channels."""

    vocab_size = None
    num_tokens = 1
    block_length = 1

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        stack, frame = (shape[:1], shape[1:]) if len(shape) == 4 else ((1,), shape)
        frame = frame if len(frame) == 3 else (1, *frame)
        self.channels_last = len(shape) > 2 and channels_last(frame)
        channels, height, width = (frame[2], frame[0], frame[1]) if self.channels_last else frame
        self.grid = (stack[0] * channels, height, width)
        self.token_width = stack[0] * channels * height * width

    @classmethod
    def for_space(cls, space: Space, size: int | None = None) -> Self | None:
        return cls(space.shape) if space.shape is not None and is_image(space) else None

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
