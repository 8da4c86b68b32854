"""Several choices at once (MultiDiscrete, MultiBinary, the characters of a text): one token a step, the choices' one-hot vectors end to end."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dtrl.tokenizers.several import SeveralChoices


class OneHot(SeveralChoices):
    """(…) ids, choice i in `start[i] … start[i] + sizes[i] − 1` ↔ a vector of Σ sizes entries with one 1 a choice.

    A linear map of it is the sum of one embedding a choice."""

    begins: Tensor
    vocab_size = None
    num_tokens = 1

    def __init__(self, sizes: npt.NDArray[np.int64], start: npt.NDArray[np.int64] | None = None) -> None:
        super().__init__(sizes, start)
        self.token_width = sum(self.sizes)
        begins = np.cumsum(self.sizes) - self.sizes
        self.register_buffer("begins", torch.from_numpy(begins), persistent=False)

    def encode(self, x: Tensor) -> Tensor:
        """(B, T, …) → (B, T, 1, Σ sizes). A value outside the space becomes the nearest id."""
        places = self.begins + self.ids(x)
        out = torch.zeros(*places.shape[:2], self.token_width, device=x.device)
        return out.scatter_(-1, places, 1.0).unsqueeze(2)

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, T, 1, Σ sizes) → (B, T, …): the largest entry of each choice."""
        ids = [part.argmax(dim=-1) for part in tokens.squeeze(2).split(self.sizes, dim=-1)]
        whole = torch.stack(ids, dim=-1) + self.start
        return whole.view(*whole.shape[:-1], *self.shape)
