"""Logits → logits: what may still be chosen. Applied in the order of the two tables; a removed token gets −∞.

Conventions: ties at a cut are broken towards the lower id, so top-k keeps exactly k; the most probable token is never removed, but by typical_p and
no_repeat_ngram; a row that a processor would leave empty is an error that names the processor and the row.

B rows, V ids, T tokens so far."""

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
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    ordered[..., config.top_k :] = -torch.inf
    return unsorted(ordered, order)


def top_p(logits: Tensor, config: DecodingConfig) -> Tensor:
    """The fewest tokens, from the most probable down, whose probability reaches p [Holtzman et al. 2020, arXiv:1904.09751]."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    return unsorted(ordered.masked_fill(before >= config.top_p, -torch.inf), order)


def min_p(logits: Tensor, config: DecodingConfig) -> Tensor:
    """Tokens at least min_p times as probable as the best [Nguyen et al. 2024, arXiv:2407.01082]."""
    probabilities = logits.softmax(dim=-1)
    return logits.masked_fill(probabilities < config.min_p * probabilities.amax(dim=-1, keepdim=True), -torch.inf)


def typical_p(logits: Tensor, config: DecodingConfig) -> Tensor:
    """The fewest tokens whose probability reaches p, from those on whose surprise −log p is nearest to the expected one, the entropy
    [Meister et al. 2023, arXiv:2202.00666]. May remove the most probable token."""
    log_p = logits.log_softmax(dim=-1)
    surprise = -log_p
    entropy = torch.where(log_p.isneginf(), 0, log_p.exp() * surprise).sum(dim=-1, keepdim=True)
    order = (surprise - entropy).abs().argsort(dim=-1, stable=True)
    probabilities = log_p.exp().gather(-1, order)
    before = probabilities.cumsum(dim=-1) - probabilities
    return unsorted(logits.gather(-1, order).masked_fill(before >= config.typical_p, -torch.inf), order)


def repetition_penalty(logits: Tensor, config: DecodingConfig, history: Tensor) -> Tensor:
    """Log-probabilities, those of tokens that are in the history multiplied by the penalty, once however often they are there
    [Keskar et al. 2019, arXiv:1909.05858]. Of log-probabilities, as the paper's rule depends on where the logits have their zero."""
    log_p = logits.log_softmax(dim=-1)
    padding = logits.shape[-1]
    seen = logits.new_zeros(len(logits), padding + 1, dtype=torch.bool)
    seen.scatter_(-1, history.masked_fill(history < 0, padding), True)
    return torch.where(seen[:, :padding], log_p * config.repetition_penalty, log_p)


def no_repeat_ngram(logits: Tensor, config: DecodingConfig, history: Tensor) -> Tensor:
    """Without the tokens that would make the last n tokens a sequence that is in the history already [Paulus et al. 2017, arXiv:1705.04304].
    A row with fewer than n tokens is left alone."""
    n = config.no_repeat_ngram
    banned = torch.zeros_like(logits, dtype=torch.bool)
    if history.shape[1] >= n:
        lengths = (history >= 0).sum(dim=-1)
        begin = (lengths - (n - 1)).clamp(min=0)
        suffix = history.gather(1, begin[:, None] + torch.arange(n - 1, device=history.device))
        grams = history.unfold(1, n, 1)  # (B, T − n + 1, n)
        same = (grams[..., :-1] == suffix[:, None]).all(dim=-1) & (grams[..., -1] >= 0)
        row, place = same.nonzero(as_tuple=True)
        banned[row, grams[row, place, -1]] = True
    return logits.masked_fill(banned, -torch.inf)


Processor = Callable[[Tensor, DecodingConfig], Tensor]
HistoryProcessor = Callable[[Tensor, DecodingConfig, Tensor], Tensor]
PROCESSORS: dict[str, tuple[Processor, float]] = {
    "temperature": (temperature, 1.0),
    "top_k": (top_k, 0),
    "top_p": (top_p, 1.0),
    "min_p": (min_p, 0.0),
    "typical_p": (typical_p, 1.0),
}
"""Name of the option → the processor, and the value that turns it off."""
HISTORY_PROCESSORS: dict[str, tuple[HistoryProcessor, float]] = {
    "repetition_penalty": (repetition_penalty, 1.0),
    "no_repeat_ngram": (no_repeat_ngram, 0),
}
"""The same of those that look at the tokens so far; they come last."""


def process(logits: Tensor, config: DecodingConfig, history: Tensor | None = None) -> Tensor:
    """(…, V) → (…, V), through every processor whose option is on.

    `history` (B, T), for logits (B, V), are the ids so far, right-padded with −1; without it those that need it are left out. Raises InputError where a
    row has no token to choose from, naming the stage that took the last one."""
    processed = cut(logits, config)
    if lost(
        processed
    ):  # a row that is lost stays lost, so that one look at the end sees it; which stage it was is asked only then
        name_stage(logits, config)
    return processed if history is None else process_history(processed, config, history)


def cut(logits: Tensor, config: DecodingConfig) -> Tensor:
    """(…, V) → (…, V), through every processor of `PROCESSORS` whose option is on, whatever is left of a row."""
    for name, (processor, off) in PROCESSORS.items():
        if getattr(config, name) != off:
            logits = processor(logits, config)
    return logits


def name_stage(logits: Tensor, config: DecodingConfig) -> None:
    """Raise InputError with the first stage after which a row of logits (…, V) has no token."""
    check_rows(logits, "the model, or the action mask,")
    for name, (processor, off) in PROCESSORS.items():
        if getattr(config, name) != off:
            logits = processor(logits, config)
            check_rows(logits, name)


def process_history(logits: Tensor, config: DecodingConfig, history: Tensor, checked: bool = True) -> Tensor:
    """Through the processors that need the history alone: for strategies that draw nothing, where the others have no meaning. Shapes as in `process`.
    Not `checked`, a row may lose all its tokens, for a strategy that can do without it."""
    for name, (processor, off) in HISTORY_PROCESSORS.items():
        if getattr(config, name) != off:
            logits = processor(logits, config, history)
            if checked:
                check_rows(logits, name)
    return logits


def check_rows(logits: Tensor, stage: str) -> None:
    """Raise InputError, naming the stage and the first such row, where a row of logits (…, V) has no token to choose from."""
    if lost(logits):
        row = tuple(int(i) for i in (~torch.isfinite(logits.amax(dim=-1))).nonzero()[0])
        raise InputError(
            f"{stage} left no token to choose from in row {row}: every logit is −∞, or one is not a number."
        )


def lost(logits: Tensor) -> bool:
    """Whether the largest logit of some row of (…, V) is no finite number."""
    largest = logits.amax(dim=-1)
    return bool(
        (largest - largest).any()
    )  # 0 of finite numbers, NaN of all others; `isfinite` would be four operations


def unsorted(ordered: Tensor, order: Tensor) -> Tensor:
    """Values (…, V) given in the sorted `order`, back in their places."""
    return torch.empty_like(ordered).scatter_(-1, order, ordered)
