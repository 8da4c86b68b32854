"""Logits → logits: what may still be chosen. Applied in the order of the table; a removed token gets −∞.

Conventions: ties at a cut are broken towards the lower id, so top-k keeps exactly k; the most probable token is never removed; a row that a
processor would leave empty is an error that names the processor and the row."""

from collections.abc import Callable

import torch
from torch import Tensor

from dtrl.config import DecodingConfig
from dtrl.errors import InputError


def temperature(logits: Tensor, config: DecodingConfig) -> Tensor:
    """logits / T. The largest logit is subtracted first, so that a tiny T cannot overflow; a T beyond the numbers of the logits' type is its last."""
    limits = torch.finfo(logits.dtype)
    return (logits - logits.amax(dim=-1, keepdim=True)) / min(max(config.temperature, limits.tiny), limits.max)


def top_k(logits: Tensor, config: DecodingConfig) -> Tensor:
    """The k most probable tokens."""
    order = logits.argsort(dim=-1, descending=True, stable=True)
    return keep(logits, order, torch.arange(logits.shape[-1], device=logits.device) < config.top_k)


def top_p(logits: Tensor, config: DecodingConfig) -> Tensor:
    """The fewest tokens, from the most probable down, whose probability reaches p [Holtzman et al. 2020, arXiv:1904.09751]."""
    order = logits.argsort(dim=-1, descending=True, stable=True)
    probabilities = logits.softmax(dim=-1).gather(-1, order)
    return keep(logits, order, probabilities.cumsum(dim=-1) - probabilities < config.top_p)


def min_p(logits: Tensor, config: DecodingConfig) -> Tensor:
    """Tokens at least min_p times as probable as the best [Nguyen et al. 2024, arXiv:2407.01082]."""
    probabilities = logits.softmax(dim=-1)
    return logits.masked_fill(probabilities < config.min_p * probabilities.amax(dim=-1, keepdim=True), -torch.inf)


Processor = Callable[[Tensor, DecodingConfig], Tensor]
PROCESSORS: dict[str, tuple[Processor, float]] = {
    "temperature": (temperature, 1.0),
    "top_k": (top_k, 0),
    "top_p": (top_p, 1.0),
    "min_p": (min_p, 0.0),
}
"""Name of the option → the processor, and the value that turns it off."""


def process(logits: Tensor, config: DecodingConfig) -> Tensor:
    """(…, V) → (…, V), through every processor whose option is on."""
    check_rows(logits, "the model, or the action mask,")
    for name, (processor, off) in PROCESSORS.items():
        if getattr(config, name) != off:
            logits = processor(logits, config)
            check_rows(logits, name)
    return logits


def check_rows(logits: Tensor, stage: str) -> None:
    empty = ~torch.isfinite(logits.amax(dim=-1))
    if empty.any():
        row = tuple(int(i) for i in empty.nonzero()[0])
        raise InputError(
            f"{stage} left no token to choose from in row {row}: every logit is −∞, or one is not a number."
        )


def keep(logits: Tensor, order: Tensor, kept: Tensor) -> Tensor:
    """Logits with −∞ where `kept`, given in the sorted `order`, is false."""
    mask = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, kept.expand_as(order))
    return logits.masked_fill(~mask, -torch.inf)
