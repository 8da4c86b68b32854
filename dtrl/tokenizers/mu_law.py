"""Numbers of unknown scale, one token an entry: bins that are fine near zero and coarse far from it."""

import math
from typing import Any, Self

import numpy.typing as npt
import torch
from torch import Tensor

from dtrl.errors import InputError
from dtrl.spaces import Space
from dtrl.tokenizers.base import Fitted
from dtrl.tokenizers.bins import check_bins, is_vector


class MuLaw(Fitted):
    """F(x) = sgn(x) · log(1 + μ |x|) / log(1 + μ M), clipped to [−1, 1], then K values evenly spaced, ±1 included [Reed et al. 2022, §2.1 and appendix
    B, arXiv:2205.06175].

    The data decide nothing of this, so it is the same for every dataset; what `fit` keeps of them is the value of each constant dimension, which then
    comes back exactly. With c = (1 + μ M)^(1 / (K − 1)), the error of |x| ≤ M is at most (|x| + 1/μ) · (c − 1), and float32's rounding."""

    vocab_size: int
    constant: Tensor
    """(entries,) bool."""
    value: Tensor
    """(entries,) that of a dimension that is constant in the data; 0 for others."""

    def __init__(self, shape: tuple[int, ...], bins: int = 1024, mu: float = 100.0, largest: float = 256.0) -> None:
        super().__init__(shape)
        for name, number in (("mu", mu), ("largest", largest)):
            if not 0 < number < math.inf:
                raise InputError(f"{name} {number} is not a positive number; Gato has mu 100 and largest (M) 256.")
        self.vocab_size, self.num_tokens = check_bins(bins), self.entries
        self.mu, self.largest, self.log_of_largest = mu, largest, math.log1p(mu * largest)
        self.register_buffer("constant", torch.zeros(self.entries, dtype=torch.bool))
        self.register_buffer("value", torch.zeros(self.entries))

    @classmethod
    def for_space(cls, space: Space, size: int | None = None) -> Self | None:
        return cls(space.shape, 1024 if size is None else size) if is_vector(space) else None

    def fit(self, x: npt.NDArray[Any]) -> None:
        """Note the constant dimensions of the data (N, …). Raises InputError for NaN and infinity, naming the dimension."""
        values = self.column(x)
        low, high = torch.from_numpy(values.min(axis=0)), torch.from_numpy(values.max(axis=0))
        self.constant.copy_(low == high)
        self.value.copy_(torch.where(low == high, low, 0))
        self.mark_fitted()

    def encode(self, x: Tensor) -> Tensor:
        """(B, T, …) → (B, T, entries) ids; beyond ±M, those of the ends."""
        x = self.values(x)
        unit = x.sign() * torch.log1p(self.mu * x.abs()) / self.log_of_largest
        # the last bound is for NaN on a GPU, where it is not looked for
        return ((unit.clamp(-1, 1) + 1) / 2 * (self.vocab_size - 1)).round().long().clamp_min(0)

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, T, entries) → (B, T, …)."""
        unit = self.ids(tokens).to(torch.float32) / (self.vocab_size - 1) * 2 - 1
        size = (torch.expm1(unit.abs() * self.log_of_largest) / self.mu).clamp_max(self.largest)
        x = unit.sign() * size
        return self.shaped(torch.where(self.constant, self.value.to(x.dtype), x))

    def outside(self, x: Tensor) -> Tensor:
        x = self.values(x)
        return self.shaped(torch.where(self.constant, x.to(self.value.dtype) != self.value, x.abs() > self.largest))
