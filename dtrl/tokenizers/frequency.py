"""Chunks of numbers as rounded frequencies: the cosine transform of FAST [Pertsch et al. 2025, arXiv:2501.09747, §IV], without its loss of data."""

import math
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor

from dtrl.errors import InputError
from dtrl.spaces import Space
from dtrl.tokenizers.bins import is_vector
from dtrl.tokenizers.normalization import Chunked, Rule, no_autocast

STEPS = 20
"""Steps of a chunk, where the caller does not choose."""
SCALE = 10.0
"""As published."""


class Frequency(Chunked):
    """Chunks of h steps of D numbers ↔ n = h · D rounded coefficients: each dimension, normalised to [−1, 1], is transformed by the orthonormal DCT-II
    over the steps, times `scale`, rounded. Low frequencies come first, and of one frequency the dimensions in their order.

    The transform keeps lengths, and the rounding errors are spread evenly over one unit, so that the root mean squared error of the normalised values is
    1 / (scale · √12) where coefficients are many units large, and less where they are small. No step is off by more than √h / (2 · scale).

    |coefficient| ≤ scale · √h for values in [−1, 1], so that id `zero` + coefficient is always one of 2 · `zero` + 1. Values beyond the range (rule
    "quantiles": one in fifty of the data) are clipped to it."""

    matrix: Tensor
    vocab_size: int

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        block_length: int = STEPS,
        scale: float = SCALE,
        rule: Rule = "bounds",
        box: spaces.Box | None = None,
    ) -> None:
        super().__init__(shape, block_length, rule, box)
        if not (scale > 0 and math.isfinite(scale)):
            raise InputError(f"scale = {scale} cannot round coefficients; choose a number above 0, such as {SCALE:g}.")
        self.coefficient_scale = scale
        self.zero = math.floor(scale * math.sqrt(block_length) + 0.5)
        self.vocab_size, self.num_tokens = 2 * self.zero + 1, block_length * self.entries
        self.register_buffer("matrix", torch.from_numpy(cosines(block_length)).float(), persistent=False)

    @classmethod
    def for_space(cls, space: Space, size: int | None = None) -> Self | None:
        """For vectors. The number of ids follows from the scale."""
        return cls.for_chunks(space, size, STEPS)

    @classmethod
    def for_chunks(cls, space: Space, size: int | None, block_length: int) -> Self | None:
        return cls(space.shape, block_length=block_length, box=space) if is_vector(space) else None

    def fit(self, x: npt.NDArray[Any]) -> None:
        """Set the normalisation from chunks (N, h, …), or (N, …) where h = 1."""
        self.normalization.fit(self.column(x).reshape(-1, self.entries))
        self.mark_fitted()

    def encode(self, x: Tensor) -> Tensor:
        """(B, T, …) → (B, T/h, h · D)."""
        with no_autocast(x.device.type):
            units = (self.matrix @ self.chunks(x) * self.coefficient_scale).round().long()
        # the bounds are for what rounding adds, and for NaN on a GPU, where it is not looked for
        return (units.clamp(-self.zero, self.zero) + self.zero).flatten(2)

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, T/h, h · D) → (B, T, …), inside the range."""
        units = (self.ids(tokens) - self.zero).to(self.matrix.dtype).unflatten(2, (self.block_length, self.entries))
        with no_autocast(tokens.device.type):
            return self.steps(self.matrix.T @ (units / self.coefficient_scale))


def cosines(steps: int) -> npt.NDArray[np.float64]:
    """(h, h) the orthonormal DCT-II: row k holds √(2/h) · cos(π (2 t + 1) k / 2h) of the steps t, and row 0 √(1/h)."""
    frequency, step = np.arange(steps)[:, None], np.arange(steps)[None]
    rows: npt.NDArray[np.float64] = np.cos(np.pi * (2 * step + 1) * frequency / (2 * steps)) * math.sqrt(2 / steps)
    rows[0] = math.sqrt(1 / steps)
    return rows
