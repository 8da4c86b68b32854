"""Several choices at once (MultiDiscrete, MultiBinary, the characters of a text), an id token each."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dtrl.errors import InputError
from dtrl.tokenizers.several import SeveralChoices


class Components(SeveralChoices):
    """Choice i, of `start[i] … start[i] + sizes[i] − 1` ↔ token i, of `0 … sizes[i] − 1`.

    All choices share one vocabulary of max(sizes) ids; a head has to leave out the ids from `sizes[i]` on. As `OneHot` is one token for all choices, which
    then are independent of each other, here each can depend on those before it."""

    vocab_size: int
    token_width = 1

    def __init__(self, sizes: npt.NDArray[np.int64], start: npt.NDArray[np.int64] | None = None) -> None:
        super().__init__(sizes, start)
        if not self.sizes or min(self.sizes) < 1:
            raise InputError(
                f"sizes {sizes.tolist()} are not numbers of values of at least one choice; give some from 1."
            )
        self.vocab_size, self.num_tokens = max(self.sizes), len(self.sizes)

    def fit(self, x: npt.NDArray[Any]) -> None:
        """Raises InputError for a value outside the space, and for data (N, …) of another shape."""
        if x.shape[1:] != self.shape:
            raise InputError(f"the data have shape {x.shape}, and the space {('N', *self.shape)}; give a column of it.")
        super().fit(x)

    def encode(self, x: Tensor) -> Tensor:
        """(B, T, …) → (B, T, choices). A value outside the space becomes the nearest id."""
        return self.ids(x)

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, T, choices) → (B, T, …). An id that its choice does not have becomes its last."""
        if tokens.dim() != 3 or tokens.shape[2] != self.num_tokens:
            raise InputError(
                f"the tokens to decode have shape {tuple(tokens.shape)}, and the space {self.num_tokens} choices; give (B, T, {self.num_tokens})."
            )
        x = torch.minimum(tokens.clamp_min(0), self.last) + self.start
        return x.reshape(*x.shape[:2], *self.shape)

    def counted(self, x: Tensor) -> Tensor:
        if x.shape[2:] != self.shape:
            raise InputError(
                f"the values have shape {tuple(x.shape)}, and those of the space {self.shape} a step; give (B, T, …) of it."
            )
        return super().counted(x)
