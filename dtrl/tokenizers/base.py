"""What every tokenizer offers."""

from abc import ABC, abstractmethod
from typing import Any

import numpy.typing as npt
from torch import Tensor, nn


class Tokenizer(nn.Module, ABC):
    """Turns values into tokens and back. Fitted numbers are buffers, so they are saved with the model and move with it.

    h is `block_length`, the steps one block of tokens covers; n is `num_tokens`, the tokens of a block."""

    vocab_size: int | None
    """Number of ids, or None where a token is a real vector."""
    num_tokens: int
    block_length: int
    token_width: int
    """Entries of a real-vector token, d; 1 for ids."""
    grid: tuple[int, int, int] | None = None
    """(C, H, W) where a token is an image, of d = C · H · W entries, which convolutions may embed; else None."""

    @abstractmethod
    def fit(self, x: npt.NDArray[Any]) -> None:
        """Set the buffers from a column of data (N, …), in env units."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """(B, T, …) env units → (B, T/h, n) int64 ids, or (B, T/h, n, d) real vectors when `vocab_size` is None."""

    @abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """The inverse of `encode`: (B, T/h, n) or (B, T/h, n, d) → (B, T, …) env units."""
