"""One tokenizer after another, as one."""

from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dtrl.errors import InputError
from dtrl.spaces import Space
from dtrl.tokenizers.base import Tokenizer
from dtrl.tokenizers.byte_pairs import BytePairs
from dtrl.tokenizers.frequency import STEPS, Frequency

IDS = 1024
"""As published for FAST."""


class Sequential(Tokenizer):
    """`second` encodes the tokens of `first`: h is the product of their block lengths, and the tokens are those of `second`.

    A step of `second` is a block of `first`: n ids, or n real vectors of d entries, laid out in the shape that `second` was made for."""

    def __init__(self, first: Tokenizer, second: Tokenizer, between: tuple[int, ...] | None = None) -> None:
        """`between` is the shape of one step of `second`; by default (n,) for ids and (n, d) for real vectors."""
        super().__init__()
        if second.vocab_size is None:
            raise InputError(
                f"{type(second).__name__} cannot come second: its tokens are real vectors, not ids; put it first."
            )
        self.first, self.second = first, second
        block = (first.num_tokens,) if first.vocab_size is not None else (first.num_tokens, first.token_width)
        self.block_shape, self.between = block, block if between is None else between
        if np.prod(self.block_shape) != np.prod(self.between):
            raise InputError(
                f"a block of {type(first).__name__} has the shape {block}, which cannot be laid out as {between}."
            )
        self.vocab_size, self.num_tokens = second.vocab_size, second.num_tokens
        self.block_length, self.token_width = first.block_length * second.block_length, second.token_width
        self.padding_id = second.padding_id

    @classmethod
    def for_space(cls, space: Space, size: int | None = None) -> Self | None:
        """Frequencies and byte pairs, which is FAST, for vectors."""
        return cls.for_chunks(space, size, STEPS)

    @classmethod
    def for_chunks(cls, space: Space, size: int | None, block_length: int) -> Self | None:
        frequency = Frequency.for_chunks(space, None, block_length)
        if frequency is None:
            return None
        ids = max(size or IDS, frequency.vocab_size + 1)
        pairs = BytePairs(frequency.vocab_size, (frequency.num_tokens,), vocab_size=ids, fill=frequency.zero)
        return cls(frequency, pairs)

    def fit(self, x: npt.NDArray[Any]) -> None:
        """Fit `first`, and `second` to what `first` makes of the data: chunks (N, h, …), or a column (N, …) where h = 1."""
        h, inner, outer = self.block_length, self.first.block_length, self.second.block_length
        steps = x if h > 1 else x[:, None]
        if steps.ndim < 2 or steps.shape[1] != h:
            raise InputError(
                f"the data to fit have shape {x.shape}, and the tokenizer is for chunks of {h} steps, (N, {h}, …)."
            )
        rest = steps.shape[2:]
        self.first.fit(steps.reshape(-1, inner, *rest) if inner > 1 else steps.reshape(-1, *rest))
        tokens = self.first.encode(torch.from_numpy(np.array(steps)))  # a copy: a memory map cannot be a tensor
        middle = tokens.cpu().numpy().reshape(len(steps), outer, *self.between)
        self.second.fit(middle if outer > 1 else middle[:, 0])

    def encode(self, x: Tensor) -> Tensor:
        """(B, T, …) → (B, T/h, n)."""
        if x.dim() > 1 and x.shape[1] % self.block_length:
            raise InputError(
                f"{x.shape[1]} steps cannot be cut into blocks of {self.block_length}; leave out the rest."
            )
        tokens = self.first.encode(x)
        return self.second.encode(tokens.reshape(*tokens.shape[:2], *self.between))

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, T/h, n) → (B, T, …)."""
        middle = self.second.decode(tokens)
        return self.first.decode(middle.reshape(*middle.shape[:2], *self.block_shape))

    def complete(self, ids: Tensor) -> Tensor:
        return self.second.complete(ids)

    def outside(self, x: Tensor) -> Tensor:
        return self.first.outside(x)
