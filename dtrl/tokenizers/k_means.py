"""Vectors as the nearest of a few typical ones: one token a step."""

from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from scipy.cluster.vq import vq
from torch import Tensor

from dtrl.errors import InputError
from dtrl.spaces import Space
from dtrl.tokenizers.base import Fitted
from dtrl.tokenizers.bins import beyond, is_vector

Floats = npt.NDArray[np.float64]

MAX_ITERATIONS = 300
TOLERANCE = 1e-4
"""Lloyd's algorithm ends when the sum of squared distances falls by no more than this share."""


class KMeans(Fitted):
    """The code whose vector is nearest, of a codebook that minimises the sum of squared distances [Shafiullah et al. 2022, §3, arXiv:2206.11251].

    Distances are in env units, the same in every dimension. `fit` begins with k-means++ from `seed` `restarts` times, and keeps the best. Data with at
    most `codes` different values get a code for each and come back exactly; codes left over repeat the last and are not used."""

    codebook: Tensor
    """(codes, entries)."""
    low: Tensor
    high: Tensor
    num_tokens = 1

    def __init__(self, shape: tuple[int, ...], codes: int = 64, *, seed: int = 0, restarts: int = 3) -> None:
        super().__init__(shape)
        if codes < 1 or restarts < 1:
            raise InputError(f"codes {codes} and restarts {restarts} have to be at least 1; 64 and 3 are usual.")
        self.vocab_size, self.seed, self.restarts = codes, seed, restarts
        self.register_buffer("codebook", torch.zeros(codes, self.entries))
        self.register_buffer("low", torch.zeros(self.entries))
        self.register_buffer("high", torch.zeros(self.entries))

    @classmethod
    def for_space(cls, space: Space, size: int | None = None) -> Self | None:
        return cls(space.shape, 64 if size is None else size) if is_vector(space) else None

    def fit(self, x: npt.NDArray[Any]) -> None:
        """The codebook from the data (N, …); the same data and seed give the same. Raises InputError for NaN and infinity, naming the dimension."""
        values = self.column(x)
        found = k_means(values, len(self.codebook), np.random.default_rng(self.seed), self.restarts)
        self.codebook[: len(found)] = torch.from_numpy(found)
        self.codebook[len(found) :] = self.codebook[len(found) - 1].clone()
        self.low.copy_(torch.from_numpy(values.min(axis=0)))
        self.high.copy_(torch.from_numpy(values.max(axis=0)))
        self.mark_fitted()

    def encode(self, x: Tensor) -> Tensor:
        """(B, T, …) → (B, T, 1) ids; values beyond the data's range get the nearest code as well."""
        x = self.values(x)
        # Not by the expanded square, which loses the digits of values far from zero.
        distance = torch.cdist(x.flatten(0, 1), self.codebook.to(x.dtype), compute_mode="donot_use_mm_for_euclid_dist")
        return distance.argmin(dim=-1).reshape(x.shape[0], x.shape[1], 1)

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, T, 1) → (B, T, …)."""
        return self.shaped(self.codebook[self.ids(tokens).squeeze(2)])

    def outside(self, x: Tensor) -> Tensor:
        return self.shaped(beyond(self.values(x), self.low, self.high))


def k_means(x: Floats, codes: int, random: np.random.Generator, restarts: int) -> Floats:
    """(at most `codes`, d) centres of the rows (N, d): Lloyd's algorithm, the best of `restarts` beginnings; where rows repeat, the different rows themselves
    if they are few enough."""
    different = np.unique(x, axis=0)
    if len(different) <= codes:
        return np.asarray(different)
    tries = [lloyd(x, plus_plus(x, codes, random)) for _ in range(restarts)]
    return min(tries, key=lambda found: found[1])[0]


def plus_plus(x: Floats, codes: int, random: np.random.Generator) -> Floats:
    """(codes, d) rows to begin with: each is drawn in proportion to its squared distance from those before it, and is the best of 2 + ln(codes) drawn
    [Arthur and Vassilvitskii 2007, "k-means++: the advantages of careful seeding"]."""
    draws = 2 + int(np.log(codes))
    chosen = [x[random.integers(len(x))]]
    nearest = squared_distance(x, chosen[0])
    for _ in range(codes - 1):
        cumulative = np.cumsum(nearest)
        places = np.searchsorted(cumulative, random.random(draws) * cumulative[-1], side="right")
        drawn = [np.minimum(nearest, squared_distance(x, x[i])) for i in places.clip(max=len(x) - 1)]
        best = int(np.argmin([left.sum() for left in drawn]))
        nearest = drawn[best]
        chosen.append(x[places[best].clip(max=len(x) - 1)])
    return np.stack(chosen)


def lloyd(x: Floats, centres: Floats) -> tuple[Floats, float]:
    """Centres moved to the mean of the rows nearest to them, again and again, and their sum of squared distances; a centre without rows moves to the row
    that is farthest from its own."""
    before = np.inf
    for _ in range(MAX_ITERATIONS):
        code, distance = vq(x, centres, check_finite=False)
        total = float((distance**2).sum())
        if total >= before * (1 - TOLERANCE):
            break
        before, best = total, centres
        counts = np.bincount(code, minlength=len(centres))
        sums = np.stack([np.bincount(code, column, minlength=len(centres)) for column in x.T], axis=1)
        centres = sums / np.maximum(counts, 1)[:, None]
        empty = np.flatnonzero(counts == 0)
        centres[empty] = x[np.argsort(-distance)[: len(empty)]]
    return (centres, total) if total < before else (best, before)


def squared_distance(x: Floats, point: Floats) -> Floats:
    difference = x - point
    return np.asarray(np.einsum("nd,nd->n", difference, difference))
