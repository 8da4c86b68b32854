"""What tokenizers of several choices at once (MultiDiscrete, MultiBinary, the characters of a text) share, whatever tokens they make of them."""

from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor

from dtrl.errors import InputError
from dtrl.spaces import Space, choices_of
from dtrl.tokenizers.base import Tokenizer


class SeveralChoices(Tokenizer):
    """Values (…) of which choice i is one of `start[i] … start[i] + sizes[i] − 1`. Nothing is fitted."""

    sizes: list[int]
    start: Tensor
    last: Tensor
    block_length = 1

    def __init__(self, sizes: npt.NDArray[np.int64], start: npt.NDArray[np.int64] | None = None) -> None:
        super().__init__()
        self.shape, self.sizes = sizes.shape, [int(n) for n in sizes.flat]
        first = np.zeros_like(sizes) if start is None else start
        self.register_buffer("start", torch.from_numpy(first.astype(np.int64).reshape(-1)), persistent=False)
        self.register_buffer("last", torch.tensor(self.sizes, dtype=torch.long) - 1, persistent=False)

    @classmethod
    def for_space(cls, space: Space, size: int | None = None) -> Self | None:
        several = isinstance(space, (spaces.MultiDiscrete, spaces.MultiBinary, spaces.Text))
        return cls(*choices_of(space)) if several else None

    def fit(self, x: npt.NDArray[Any]) -> None:
        """Raises InputError for a value outside the space."""
        ids = x.reshape(len(x), -1).astype(np.int64) - self.start.numpy()
        wrong = np.argwhere((ids < 0) | (ids >= np.array(self.sizes)))
        if len(wrong):
            row, choice = wrong[0]
            raise InputError(
                f"the data hold {x.reshape(len(x), -1)[row, choice]} in choice {choice}, and the space has {self.sizes[choice]} values from "
                f"{int(self.start[choice])} on; correct the space or the data."
            )

    def outside(self, x: Tensor) -> Tensor:
        counted = self.counted(x)
        return ((counted < 0) | (counted > self.last)).reshape(x.shape)

    def counted(self, x: Tensor) -> Tensor:
        """(B, T, …) → (B, T, choices) int64, each from 0 on; below 0 or above `last` for a value outside the space."""
        return (x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)).long() - self.start

    def ids(self, x: Tensor) -> Tensor:
        """`counted`, with the nearest id for a value outside the space, as padding has to be something."""
        return torch.minimum(self.counted(x).clamp_min(0), self.last)
