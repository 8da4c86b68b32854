"""Numbers cut into bins, one token an entry: bins of equal width, or of equal counts."""

from typing import Any, Self, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor

from dtrl.errors import InputError
from dtrl.spaces import Space, is_image
from dtrl.tokenizers.base import Fitted

Singles = npt.NDArray[np.float32]

NO_BOUND = 1e30
"""Bounds this far apart are none: older environments write the largest float where they mean infinity."""


def check_bins(bins: int) -> int:
    """`bins`, from 2 to 2²⁰. Raises InputError for others: float32 counts no further without gaps that matter."""
    if not 2 <= bins <= 2**20:
        raise InputError(f"bins {bins} is outside 2 … {2**20}; 256 is usual.")
    return bins


class Uniform(Fitted):
    """K values evenly spaced from low to high, both included: id = round((x − low) / (high − low) · (K − 1)).

    low and high are the bounds of a Box where a dimension has both, else the smallest and the largest value of the data. So a bounded action space's own
    bounds come back exactly, which the centres of bins could not give. A dimension that is constant in the data comes back exactly too, whatever its bounds.
    The error within the range is at most (high − low) / (2 (K − 1)), and float32's rounding."""

    vocab_size: int
    low: Tensor
    high: Tensor
    steps_per_unit: Tensor
    """(entries,) (K − 1) / (high − low); 0 where that is a constant."""

    def __init__(self, shape: tuple[int, ...], bins: int = 256, box: spaces.Box | None = None) -> None:
        super().__init__(shape)
        self.vocab_size, self.num_tokens = check_bins(bins), self.entries
        self.register_buffer("low", torch.zeros(self.entries))
        self.register_buffer("high", torch.zeros(self.entries))
        self.register_buffer("steps_per_unit", torch.zeros(self.entries))
        self.bounds: npt.NDArray[np.float64] | None = None
        if box is not None:
            if box.shape != self.shape:
                raise InputError(f"{box} has not the shape {self.shape} of the values; give the Box that they are of.")
            self.bounds = np.stack([box.low.reshape(-1), box.high.reshape(-1)]).astype(np.float64)

    @classmethod
    def for_space(cls, space: Space, size: int | None = None) -> Self | None:
        return cls(space.shape, 256 if size is None else size, space) if is_vector(space) else None

    def fit(self, x: npt.NDArray[Any]) -> None:
        """Bounds from the Box or the data (N, …). Raises InputError for NaN and infinity, naming the dimension."""
        values = self.column(x)
        low, high = values.min(axis=0), values.max(axis=0)
        if self.bounds is not None:
            bounded = np.isfinite(self.bounds).all(axis=0)
            bounded &= np.subtract(self.bounds[1], self.bounds[0], where=bounded, out=np.zeros(len(low))) < NO_BOUND
            low, high = np.where(bounded & (low < high), self.bounds, [low, high])
        if not (high - low < np.finfo(np.float32).max).all():
            wide = int(np.argmax(high - low))
            raise InputError(
                f"dimension {wide} spans {low[wide]} … {high[wide]}, more than float32 holds; rescale the data."
            )
        self.low.copy_(torch.from_numpy(low))
        self.high.copy_(torch.from_numpy(high))
        span = (self.high - self.low).double()  # of the rounded bounds, to which values are compared
        steps = torch.where(span > 0, (self.vocab_size - 1) / span, 0).clamp_max(torch.finfo(torch.float32).max)
        self.steps_per_unit.copy_(steps)
        self.mark_fitted()

    def encode(self, x: Tensor) -> Tensor:
        """(B, T, …) → (B, T, entries) ids; beyond the range, those of its ends."""
        steps = (self.values(x) - self.low) * self.steps_per_unit
        # the last bound is for NaN on a GPU, where it is not looked for
        return steps.clamp(0, self.vocab_size - 1).round().long().clamp_min(0)

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, T, entries) → (B, T, …)."""
        weight = self.ids(tokens).to(self.low.dtype) / (self.vocab_size - 1)
        return self.shaped(torch.lerp(self.low, self.high, weight))

    def outside(self, x: Tensor) -> Tensor:
        return self.shaped(beyond(self.values(x), self.low, self.high))


class Quantile(Fitted):
    """Bins that hold equally many values of the data each; a bin's value is the mean of those in it [Lloyd 1982, doi:10.1109/TIT.1982.1056489].

    Edges are quantiles, as in the Trajectory Transformer [Janner et al. 2021, §3, arXiv:2106.02039], which decodes to the middle of a bin. Data with at
    most K values get a bin for each and come back exactly. A value that fills more than one bin gets one of its own, so the zeros of a sparse reward
    stay zeros; ids that this leaves over are not used. The error is at most the width of the value's bin."""

    vocab_size: int
    dimensions: Tensor
    edges: Tensor
    """(entries, K − 1) smallest value of each bin but the first, ascending; infinite for bins that are not used."""
    means: Tensor
    """(entries, K), repeated from the last used bin on."""
    low: Tensor
    high: Tensor

    def __init__(self, shape: tuple[int, ...], bins: int = 100) -> None:
        super().__init__(shape)
        self.vocab_size, self.num_tokens = check_bins(bins), self.entries
        self.register_buffer("edges", torch.full((self.entries, bins - 1), torch.inf))
        self.register_buffer("means", torch.zeros(self.entries, bins))
        self.register_buffer("low", torch.zeros(self.entries))
        self.register_buffer("high", torch.zeros(self.entries))
        self.register_buffer("dimensions", torch.arange(self.entries), persistent=False)

    @classmethod
    def for_space(cls, space: Space, size: int | None = None) -> Self | None:
        return cls(space.shape, 100 if size is None else size) if is_vector(space) else None

    def fit(self, x: npt.NDArray[Any]) -> None:
        """Edges and means from the data (N, …). Raises InputError for NaN and infinity, naming the dimension."""
        values = self.column(x)
        self.edges.fill_(torch.inf)
        for i, column in enumerate(values.T):
            starts, means = equal_counts(column, self.means.shape[1])
            self.edges[i, : len(starts) - 1] = torch.from_numpy(starts[1:])
            self.means[i] = float(means[-1])
            self.means[i, : len(means)] = torch.from_numpy(means)
        self.low.copy_(torch.from_numpy(values.min(axis=0)))
        self.high.copy_(torch.from_numpy(values.max(axis=0)))
        self.mark_fitted()

    def encode(self, x: Tensor) -> Tensor:
        """(B, T, …) → (B, T, entries) ids; beyond the range, those of the first and the last bin."""
        x = self.values(x)
        by_dimension = x.flatten(0, 1).T.contiguous()
        ids = torch.searchsorted(self.edges.to(x.dtype), by_dimension, right=True)
        return ids.T.reshape(x.shape)

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, T, entries) → (B, T, …)."""
        return self.shaped(self.means[self.dimensions, self.ids(tokens)])

    def outside(self, x: Tensor) -> Tensor:
        return self.shaped(beyond(self.values(x), self.low, self.high))


def is_vector(space: Space) -> TypeGuard[spaces.Box]:
    """Whether a space holds numbers that are worth a token each: a Box, and not pixels."""
    return isinstance(space, spaces.Box) and not is_image(space)


def beyond(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Bool, where x (…, entries) is not between the bounds (entries,). Rounded as they are, so that the extremes of the data are not beyond themselves."""
    x = x.to(low.dtype)
    return (x < low) | (x > high)


def equal_counts(x: npt.NDArray[np.float64], bins: int) -> tuple[Singles, Singles]:
    """Starts and means of at most `bins` bins [start, next start) of about equally many of the values (N,); no bin is empty, each mean is in its bin."""
    x = np.sort(x)
    different = np.unique(x)
    if len(different) <= bins:
        starts = different
    else:
        edges, repeats = np.unique(np.quantile(x, np.linspace(0, 1, bins + 1)), return_counts=True)
        # The largest value begins no bin, unless one is its own.
        starts = edges if repeats[-1] > 1 else edges[:-1]
        # A value that is several edges fills several bins. One is enough for it, and the next value begins another.
        after = np.searchsorted(different, edges[repeats > 1], side="right")
        starts = np.union1d(starts, different[after[after < len(different)]])
    # Rounded before they are used, so that values fall here into the bins into which `encode` puts them.
    starts = np.unique(starts.astype(np.float32)).astype(np.float32)
    bin_of = np.searchsorted(starts[1:], x, side="right")
    counts = np.bincount(bin_of, minlength=len(starts))
    sums = np.bincount(bin_of, x, minlength=len(starts))
    starts = starts[counts > 0]
    means = (sums[counts > 0] / counts[counts > 0]).astype(np.float32)
    below_next = np.append(np.nextafter(starts[1:], np.float32(-np.inf)), np.float32(np.inf))
    means = np.clip(means, starts, below_next)
    return starts.astype(np.float32), means.astype(np.float32)
