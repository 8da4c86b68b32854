"""Several choices at once (MultiDiscrete, MultiBinary, the characters of a text), an id token each."""

from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor

from dtrl.errors import InputError
from dtrl.spaces import Space, choices_of
from dtrl.tokenizers.base import Tokenizer


class Components(Tokenizer):
    """Choice i, of `start[i] … start[i] + sizes[i] − 1` ↔ token i, of `0 … sizes[i] − 1`.

    All choices share one vocabulary of max(sizes) ids; a head has to leave out the ids from `sizes[i]` on. As `OneHot` is one token for all choices, which
    then are independent of each other, here each can depend on those before it."""

    vocab_size: int
    start: Tensor
    last: Tensor
    block_length = 1
    token_width = 1

    def __init__(self, sizes: npt.NDArray[np.int64], start: npt.NDArray[np.int64] | None = None) -> None:
        super().__init__()
        self.shape, self.sizes = sizes.shape, [int(n) for n in sizes.flat]
        if not self.sizes or min(self.sizes) < 1:
            raise InputError(
                f"sizes {sizes.tolist()} are not numbers of values of at least one choice; give some from 1."
            )
        self.vocab_size, self.num_tokens = max(self.sizes), len(self.sizes)
        first = np.zeros_like(sizes) if start is None else start
        self.register_buffer("start", torch.from_numpy(first.astype(np.int64).reshape(-1)), persistent=False)
        self.register_buffer("last", torch.tensor(self.sizes) - 1, persistent=False)

    @classmethod
    def for_space(cls, space: Space, size: int | None = None) -> Self | None:
        several = isinstance(space, (spaces.MultiDiscrete, spaces.MultiBinary, spaces.Text))
        return cls(*choices_of(space)) if several else None

    def fit(self, x: npt.NDArray[Any]) -> None:
        """Nothing is fitted; raises InputError for a value outside the space, and for data (N, …) of another shape."""
        if x.shape[1:] != self.shape:
            raise InputError(f"the data have shape {x.shape}, and the space {('N', *self.shape)}; give a column of it.")
        wrong = np.argwhere(self.beyond(torch.from_numpy(x.astype(np.int64)[None])).numpy()[0])
        if len(wrong):
            row, choice = wrong[0]
            raise InputError(
                f"the data hold {x.reshape(len(x), -1)[row, choice]} in choice {choice}, and the space has {self.sizes[choice]} values from "
                f"{int(self.start[choice])} on; correct the space or the data."
            )

    def encode(self, x: Tensor) -> Tensor:
        """(B, T, …) → (B, T, choices). A value outside the space becomes the nearest id, as padding has to be something."""
        return torch.minimum((self.flat(x) - self.start).clamp_min(0), self.last)

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, T, choices) → (B, T, …). An id that its choice does not have becomes its last."""
        if tokens.dim() != 3 or tokens.shape[2] != self.num_tokens:
            raise InputError(
                f"the tokens to decode have shape {tuple(tokens.shape)}, and the space {self.num_tokens} choices; give (B, T, {self.num_tokens})."
            )
        x = torch.minimum(tokens.clamp_min(0), self.last) + self.start
        return x.reshape(*x.shape[:2], *self.shape)

    def outside(self, x: Tensor) -> Tensor:
        return self.beyond(x).reshape(x.shape)

    def beyond(self, x: Tensor) -> Tensor:
        ids = self.flat(x) - self.start
        return (ids < 0) | (ids > self.last)

    def flat(self, x: Tensor) -> Tensor:
        """(B, T, …) → (B, T, choices) int64."""
        if x.shape[2:] != self.shape:
            raise InputError(
                f"the values have shape {tuple(x.shape)}, and those of the space {self.shape} a step; give (B, T, …) of it."
            )
        return x.long().reshape(*x.shape[:2], self.num_tokens)
