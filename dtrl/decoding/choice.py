"""One token from a next-token distribution: its mode, or a sample from what the processors leave.

Random numbers come from one generator a row, so a row's sample does not depend on its neighbours or on their number."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal

from dtrl.config import DecodingConfig
from dtrl.decoding.processors import process
from dtrl.heads import OneHots, PointMass, TanhNormal


def choose(
    distributions: Mapping[str, Distribution], config: DecodingConfig, generators: Sequence[np.random.Generator] = ()
) -> dict[str, Tensor]:
    """A token (B, …) of every part of an action, from its distribution of batch shape (B, …); `generators` has one for each row, and none is used
    when greedy.

    Top-k, top-p, min-p and typical_p cut the lists of the categorical parts; a continuous part has none, and is sampled whole. Raises InputError where
    they are asked for and no part is categorical, and for strategies and options that need tokens one after the other."""
    config.refuse_sequences()
    if config.strategy == "sample" and not any(isinstance(d, Categorical | OneHots) for d in distributions.values()):
        config.refuse_cuts()
    return {name: token_of(distribution, config, generators) for name, distribution in distributions.items()}


def token_of(distribution: Distribution, config: DecodingConfig, generators: Sequence[np.random.Generator]) -> Tensor:
    """The mode when greedy, else a sample."""
    if config.greedy:
        return distribution.mode
    if isinstance(distribution, Categorical):
        return sample_categorical(process(distribution.logits, config), generators)
    if isinstance(distribution, OneHots):
        return distribution.one_hot(
            [sample_categorical(process(part, config), generators) for part in distribution.parts]
        )
    if isinstance(distribution, PointMass):
        return distribution.mode
    normal = distribution.normal if isinstance(distribution, TanhNormal) else distribution
    assert isinstance(normal, Independent)
    assert isinstance(normal.base_dist, Normal)
    noise = draw(generators, normal.mean.shape, normal.mean, "standard_normal")
    sample = normal.mean + config.temperature * normal.base_dist.stddev * noise
    return torch.tanh(sample) if isinstance(distribution, TanhNormal) else sample


def sample_categorical(logits: Tensor, generators: Sequence[np.random.Generator]) -> Tensor:
    """Inverse of the cumulative distribution at one uniform number a token, in float64 so that no rounding picks a token of probability 0."""
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)
    u = draw(generators, logits.shape[:-1], cumulative, "random") * cumulative[..., -1]
    return torch.searchsorted(cumulative, u.unsqueeze(-1), right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


def draw(generators: Sequence[np.random.Generator], shape: torch.Size, like: Tensor, kind: str) -> Tensor:
    """Numbers of the given shape, row i from generator i."""
    if len(generators) != shape[0]:
        raise ValueError(f"{len(generators)} generators for {shape[0]} rows")
    numbers = np.stack([getattr(g, kind)(tuple(shape[1:])) for g in generators])
    return torch.from_numpy(numbers).to(like.device, like.dtype)
