"""One token from a next-token distribution: its mode, or a sample from what the processors leave.

Random numbers come from one generator a row, so a row's sample does not depend on its neighbours or on their number."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal

from dtrl.config import DecodingConfig
from dtrl.decoding.processors import check_rows, process, process_history
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
    if config.greedy:  # a Categorical's `mode` would make probabilities first
        return distribution.logits.argmax(dim=-1) if isinstance(distribution, Categorical) else distribution.mode
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


def select(
    logits: Tensor, config: DecodingConfig, generators: Sequence[np.random.Generator], history: Tensor, going: Tensor
) -> Tensor:
    """The next id (B,) of rows in progress, from logits (B, V): the mode when greedy, else a sample. Rows that are not `going` (B,) get 0, and draw nothing.

    `history` (B, T) are the ids so far, right-padded with −1; `generators` has one for each row. Raises InputError where a row that goes on has no id."""
    logits, history = idle(logits, history, going)
    if config.greedy:
        return likeliest(logits, config, history).masked_fill(~going, 0)
    return draw_ids(process(logits, config, history).softmax(dim=-1, dtype=torch.float64), config, generators, going)


def idle(logits: Tensor, history: Tensor, busy: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, V) and history (B, T) with something harmless in the rows that are not `busy` (B,)."""
    return logits.masked_fill(~busy[:, None], 0), history.masked_fill(~busy[:, None], -1)


def draw_ids(
    probabilities: Tensor, config: DecodingConfig, generators: Sequence[np.random.Generator], drawing: Tensor
) -> Tensor:
    """Ids (B,) from probabilities (B, V): the likeliest when greedy, else by one uniform number a row. Rows that are not `drawing` (B,) get 0, and their
    generators are left alone."""
    if config.greedy:
        return probabilities.argmax(dim=-1).masked_fill(~drawing, 0)
    uniforms = uniforms_of(drawing.long(), generators, probabilities, width=1)
    return pick(probabilities, uniforms[:, 0]).masked_fill(~drawing, 0)


def likeliest(logits: Tensor, config: DecodingConfig, history: Tensor) -> Tensor:
    """The mode (B,) of logits (B, V), as far as the history (B, T) allows; of equals the lowest id."""
    check_rows(logits, "the model, or the action mask,")
    return process_history(logits, config, history).argmax(dim=-1)


def sample_categorical(logits: Tensor, generators: Sequence[np.random.Generator]) -> Tensor:
    """Ids (…) of logits (…, V), by one uniform number a token."""
    probabilities = logits.softmax(dim=-1, dtype=torch.float64)
    return pick(probabilities, draw(generators, logits.shape[:-1], probabilities, "random"))


def pick(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Ids (…): the inverse of the cumulative distribution at uniform numbers (…), from weights (…, V) that need not sum to 1; float64, so that no rounding
    picks an id of weight 0."""
    cumulative = weights.cumsum(dim=-1)
    u = uniforms.unsqueeze(-1) * cumulative[..., -1:]
    return torch.searchsorted(cumulative, u, right=True).squeeze(-1).clamp_(max=weights.shape[-1] - 1)


def draw(generators: Sequence[np.random.Generator], shape: torch.Size, like: Tensor, kind: str) -> Tensor:
    """Numbers of the given shape, row i from generator i."""
    if len(generators) != shape[0]:
        raise ValueError(f"{len(generators)} generators for {shape[0]} rows")
    if shape.numel() == len(generators):  # one each: the same number without an array for it
        numbers = np.array([getattr(g, kind)() for g in generators]).reshape(shape)
    else:
        numbers = np.stack([getattr(g, kind)(tuple(shape[1:])) for g in generators])
    return torch.from_numpy(numbers).to(like.device, like.dtype)


def uniforms_of(
    counts: Tensor, generators: Sequence[np.random.Generator], like: Tensor, width: int | None = None
) -> Tensor:
    """(B, width) float64: of row i the first `counts` (B,) from its generator; the others are 0.5, and `width` is that of the largest count."""
    each = counts.tolist()
    uniforms = np.full((len(each), max(each) if width is None else width), 0.5)
    for row, count in enumerate(each):
        if count:
            uniforms[row, :count] = generators[row].random(count)
    return torch.from_numpy(uniforms).to(like.device)
