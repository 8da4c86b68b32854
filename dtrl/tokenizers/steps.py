"""Chunks of several steps of which each is tokenized by itself."""

from typing import Any

import numpy.typing as npt
from torch import Tensor

from dtrl.errors import InputError
from dtrl.tokenizers.base import Tokenizer


class Steps(Tokenizer):
    """Chunks of h steps ↔ the tokens of the steps, one after the other, by another tokenizer `one`: h · n ids, or, where that makes a vector of d entries
    of a step, one vector of h · d entries. All steps share its fitted numbers."""

    def __init__(self, one: Tokenizer, block_length: int) -> None:
        super().__init__()
        if one.block_length != 1 or (one.vocab_size is None and one.num_tokens != 1):
            raise InputError(
                f"{type(one).__name__} makes no tokens of single steps that could be joined; give a tokenizer of one step, of ids or of one vector."
            )
        if block_length < 1:
            raise InputError(f"block_length {block_length} of chunks cannot be; choose 1 or more.")
        self.one, self.block_length, self.vocab_size = one, block_length, one.vocab_size
        self.padding_id = one.padding_id
        self.sizes = None if one.sizes is None else [*one.sizes] * block_length
        vectors = one.vocab_size is None
        self.num_tokens = 1 if vectors else block_length * one.num_tokens
        self.token_width = block_length * one.token_width if vectors else 1

    def fit(self, x: npt.NDArray[Any]) -> None:
        """Fit `one` to the steps of chunks (N, h, …)."""
        if x.ndim < 2 or x.shape[1] != self.block_length:
            raise InputError(
                f"the data to fit have shape {x.shape}, and the tokenizer is for chunks of {self.block_length} steps, (N, {self.block_length}, …)."
            )
        self.one.fit(x.reshape(-1, *x.shape[2:]))

    def encode(self, x: Tensor) -> Tensor:
        """(B, T, …) → (B, T/h, h · n), or (B, T/h, 1, h · d)."""
        if x.shape[1] % self.block_length:
            raise InputError(
                f"{x.shape[1]} steps cannot be cut into blocks of {self.block_length}; leave the last {x.shape[1] % self.block_length} out."
            )
        tokens, blocks = self.one.encode(x), (x.shape[0], x.shape[1] // self.block_length)
        return tokens.reshape(*blocks, self.num_tokens) if self.vocab_size else tokens.reshape(*blocks, 1, -1)

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, T/h, h · n) or (B, T/h, 1, h · d) → (B, T, …)."""
        steps = (tokens.shape[0], tokens.shape[1] * self.block_length)
        if self.vocab_size is None:
            return self.one.decode(tokens.reshape(*steps, 1, self.one.token_width))
        return self.one.decode(tokens.reshape(*steps, self.one.num_tokens))

    def outside(self, x: Tensor) -> Tensor:
        return self.one.outside(x)
