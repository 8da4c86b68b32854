"""Several choices at once (MultiDiscrete, MultiBinary, the characters of a text): one token a step, the choices' one-hot vectors end to end."""

from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor

from dtrl.errors import InputError
from dtrl.spaces import Space, choices_of
from dtrl.tokenizers.base import Tokenizer


class OneHot(Tokenizer):
    """(…) ids, choice i in `start[i] … start[i] + sizes[i] − 1` ↔ a vector of Σ sizes entries with one 1 a choice.

    A linear map of it is the sum of one embedding a choice."""

    start: Tensor
    begins: Tensor
    last: Tensor
    vocab_size = None
    num_tokens = 1
    block_length = 1

    def __init__(self, sizes: npt.NDArray[np.int64], start: npt.NDArray[np.int64] | None = None) -> None:
        super().__init__()
        self.shape, self.sizes = sizes.shape, [int(n) for n in sizes.flat]
        self.token_width = sum(self.sizes)
        first = np.zeros_like(sizes) if start is None else start
        self.register_buffer("start", torch.from_numpy(first.astype(np.int64).reshape(-1)), persistent=False)
        begins = np.cumsum(self.sizes) - self.sizes
        self.register_buffer("begins", torch.from_numpy(begins), persistent=False)
        self.register_buffer("last", torch.tensor(self.sizes) - 1, persistent=False)

    @classmethod
    def for_space(cls, space: Space, size: int | None = None) -> Self | None:
        several = isinstance(space, (spaces.MultiDiscrete, spaces.MultiBinary, spaces.Text))
        return cls(*choices_of(space)) if several else None

    def fit(self, x: npt.NDArray[Any]) -> None:
        """Nothing is fitted; raises InputError for a value outside the space."""
        ids = x.reshape(len(x), -1).astype(np.int64) - self.start.numpy()
        wrong = np.argwhere((ids < 0) | (ids >= np.array(self.sizes)))
        if len(wrong):
            row, choice = wrong[0]
            raise InputError(
                f"the data hold {x.reshape(len(x), -1)[row, choice]} in choice {choice}, and the space has {self.sizes[choice]} values from "
                f"{int(self.start[choice])} on; correct the space or the data."
            )

    def encode(self, x: Tensor) -> Tensor:
        """(B, T, …) → (B, T, 1, Σ sizes). A value outside the space becomes the nearest id, as padding has to be something."""
        ids = x.flatten(2).long() - self.start
        places = self.begins + torch.minimum(ids.clamp_min(0), self.last)
        out = torch.zeros(*ids.shape[:2], self.token_width, device=x.device)
        return out.scatter_(-1, places, 1.0).unsqueeze(2)

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, T, 1, Σ sizes) → (B, T, …): the largest entry of each choice."""
        ids = [part.argmax(dim=-1) for part in tokens.squeeze(2).split(self.sizes, dim=-1)]
        whole = torch.stack(ids, dim=-1) + self.start
        return whole.view(*whole.shape[:-1], *self.shape)

    def outside(self, x: Tensor) -> Tensor:
        ids = x.flatten(2).long() - self.start
        return ((ids < 0) | (ids > self.last)).reshape(x.shape)
