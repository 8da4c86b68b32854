"""The values of a Discrete space, one id a step."""

from typing import Any, Self

import numpy.typing as npt
from gymnasium import spaces
from torch import Tensor

from dtrl.errors import InputError
from dtrl.spaces import Space
from dtrl.tokenizers.base import Tokenizer


class Categories(Tokenizer):
    """`start … start + n − 1` ↔ `0 … n − 1`."""

    vocab_size: int
    num_tokens = 1
    block_length = 1
    token_width = 1

    def __init__(self, n: int, start: int = 0) -> None:
        super().__init__()
        self.vocab_size, self.start = n, start

    @classmethod
    def for_space(cls, space: Space, size: int | None = None) -> Self | None:
        return cls(int(space.n), int(space.start)) if isinstance(space, spaces.Discrete) else None

    def fit(self, x: npt.NDArray[Any]) -> None:
        """Nothing is fitted; raises InputError for a value outside the space, which an embedding would not survive."""
        wrong = x[(x < self.start) | (x >= self.start + self.vocab_size)]
        if len(wrong):
            raise InputError(
                f"the data hold {wrong[0]} where the space is Discrete({self.vocab_size}, start={self.start}); correct the space or the data."
            )

    def encode(self, x: Tensor) -> Tensor:
        """(B, T) → (B, T, 1). A value outside the space becomes the nearest id: `fit` has refused such data, and padding has to be something."""
        return (x.long() - self.start).clamp(0, self.vocab_size - 1).unsqueeze(-1)

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, T, 1) → (B, T)."""
        return tokens.squeeze(-1) + self.start

    def outside(self, x: Tensor) -> Tensor:
        return (x < self.start) | (x >= self.start + self.vocab_size)
