"""Finite scalar quantization: a few numbers, each rounded to a few levels, are a code. Nothing to learn in it, so no code can die
[Mentzer et al. 2023, arXiv:2309.15505]."""

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy.typing as npt
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from dtrl.errors import InputError
from dtrl.spaces import Space
from dtrl.tokenizers.autoencoder import FitOptions, draw_weights, perceptron, train
from dtrl.tokenizers.bins import is_vector
from dtrl.tokenizers.normalization import Chunked, no_autocast

LEVELS = {256: (8, 6, 5), 1024: (8, 5, 5, 5), 4096: (7, 5, 5, 5, 5), 16384: (8, 8, 8, 6, 5), 65536: (8, 8, 8, 5, 5, 5)}
"""About so many codes → levels [Mentzer et al. 2023, table 1]."""
SHRINK = 1e-3
"""The outermost levels are reached a little before tanh ends, as published: at its very end no gradient would come back."""
STEPS = 5
"""Steps of a chunk, where the caller does not choose; as in VQ-BeT."""

FIT = FitOptions()


class Levels(nn.Module):
    """(…, C) numbers ↔ (…) ids below Π levels, and the straight-through rounding between them.

    z is rounded to one of `levels[i]` numbers in [−1, 1]: tanh, shifted so that an even number of levels has 0 among them. The id is a number
    of mixed radix, the first level its lowest digit."""

    levels: Tensor
    radix: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or any(level < 3 for level in levels):
            raise InputError(f"levels = {tuple(levels)} cannot be; give one number or more, each of 3 or more.")
        self.count, self.size = len(levels), math.prod(levels)
        number = torch.tensor(list(levels))
        self.register_buffer("levels", number, persistent=False)
        self.register_buffer("radix", number.cumprod(0) // number, persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        """The rounded numbers (…, C), with the gradient of what was rounded."""
        half = (self.levels - 1) * (1 + SHRINK) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        bounded = torch.tanh(z + torch.atanh(offset / half)) * half - offset
        return (bounded + (bounded.round() - bounded).detach()) / (self.levels // 2)

    def ids(self, z: Tensor) -> Tensor:
        """(…, C) → (…) int64."""
        half = self.levels // 2
        digits = (self(z) * half).round().long() + half
        # the bounds are for NaN on a GPU, where it is not looked for
        return (torch.minimum(digits.clamp_min(0), self.levels - 1) * self.radix).sum(dim=-1)

    def codes(self, ids: Tensor) -> Tensor:
        """(…) → (…, C) the rounded numbers."""
        half = self.levels // 2
        return (ids.unsqueeze(-1) // self.radix % self.levels - half) / half


class FiniteScalar(Chunked):
    """Chunks of h steps of numbers ↔ `num_tokens` ids: a small network makes num_tokens · C numbers of a chunk, which are rounded to `levels`, and
    another one makes the chunk of these again. `fit` trains both to the least squared error of the standardised values."""

    vocab_size: int

    def __init__(
        self,
        shape: tuple[int, ...],
        levels: Sequence[int] = LEVELS[1024],
        *,
        num_tokens: int = 4,
        block_length: int = STEPS,
        hidden: Sequence[int] = (128, 128),
        box: spaces.Box | None = None,
        options: FitOptions = FIT,
    ) -> None:
        super().__init__(shape, block_length, "deviations", box)
        if num_tokens < 1:
            raise InputError(f"num_tokens = {num_tokens} of finite scalars cannot be; choose 1 or more.")
        self.quantizer, self.options = Levels(levels), options
        self.vocab_size, self.num_tokens = self.quantizer.size, num_tokens
        width, latent = self.entries * block_length, num_tokens * self.quantizer.count
        self.encoder = perceptron((width, *hidden, latent))
        self.decoder = perceptron((latent, *reversed(hidden), width))

    @classmethod
    def for_space(cls, space: Space, size: int | None = None) -> Self | None:
        """For vectors, with the largest published levels that make no more than `size` codes."""
        return cls.for_chunks(space, size, STEPS)

    @classmethod
    def for_chunks(cls, space: Space, size: int | None, block_length: int) -> Self | None:
        levels = published_levels(size or 1024)
        return cls(space.shape, levels, block_length=block_length, box=space) if is_vector(space) else None

    def fit(self, x: npt.NDArray[Any]) -> None:
        """Train on chunks (N, h, …), or (N, …) where h = 1."""
        chunks = self.normalized(x).flatten(1)
        generator = torch.Generator().manual_seed(self.options.seed)
        networks = self.encoder, self.decoder
        draw_weights(networks, generator)
        train(networks, self.loss, chunks, self.options, generator)
        self.mark_fitted()

    def loss(self, chunks: Tensor) -> Tensor:
        """() mean squared error of standardised chunks (N, h · D)."""
        z = self.encoder(chunks).unflatten(-1, (self.num_tokens, -1))
        return F.mse_loss(self.decoder(self.quantizer(z).flatten(-2)), chunks)

    def encode(self, x: Tensor) -> Tensor:
        """(B, T, …) → (B, T/h, n)."""
        with no_autocast(x.device.type):
            z = self.encoder(self.chunks(x).flatten(2))
            return self.quantizer.ids(z.unflatten(-1, (self.num_tokens, -1)))

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, T/h, n) → (B, T, …), inside the range of the data."""
        codes = self.quantizer.codes(self.ids(tokens))
        with no_autocast(tokens.device.type):
            chunks = self.decoder(codes.to(self.normalization.shift.dtype).flatten(-2))
            return self.steps(chunks.unflatten(-1, (self.block_length, self.entries)))


def published_levels(size: int) -> tuple[int, ...]:
    """Those of the table that make the most codes and no more than about `size`, or the fewest."""
    return LEVELS[max((about for about in LEVELS if about <= size), default=min(LEVELS))]
