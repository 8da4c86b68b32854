"""What guesses tokens ahead for speculative decoding.

B rows, V ids, γ tokens guessed at most, A tokens of an action. A guess need not be good: a bad one costs time, and never changes what is sampled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dtrl.config import DecodingConfig
from dtrl.decoding.choice import draw_ids, idle, pick, uniforms_of
from dtrl.decoding.processors import cut, lost, process_history
from dtrl.decoding.progress import Progress
from dtrl.decoding.stream import TokenStream

Generators = Sequence[np.random.Generator]
LogitsAt = Callable[[int, Tensor], Tensor]
"""i and the guesses (B,) of i − 1 → the logits (B, V) of guess i."""


@dataclass(frozen=True)
class Proposal:
    """Tokens guessed for each row, and how likely it was that they would be."""

    ids: Tensor
    """(B, γ), γ that of the row with most; what stands behind a row's count means nothing."""
    counts: Tensor
    """(B,) guesses of each row, 0 … γ."""
    probabilities: Tensor | None
    """(B, γ, V) float64, the distributions that the guesses were drawn from; None where they were certain."""


class Draft(Protocol):
    """Guesses of what comes next."""

    def propose(self, progress: Progress, counts: Tensor, config: DecodingConfig, generators: Generators) -> Proposal:
        """At most `counts` (B,) tokens after those of `progress`, drawn with each row's own generator from what the processors leave."""

    def commit(self, fed: int, kept: Tensor) -> None:
        """Of the last round's `fed` tokens (the pending one, where there was one, and the guesses) the first `kept` (B,) have come true."""


class FactorisedDraft:
    """Guesses from logits of all tokens at once, each without knowing the others: a second head on the hidden vector that the first token is read from
    [Stern et al. 2018, blockwise parallel decoding, arXiv:1811.03115]. Costs no pass of its own."""

    def __init__(self, logits: Tensor) -> None:
        """`logits` (B, A, V) of the tokens that will be generated, the first one first."""
        self.logits = logits
        self.processed: tuple[DecodingConfig, Tensor] | None = None
        """What the processors of a configuration make of the logits, (B, A, V): the same in every round."""

    def propose(self, progress: Progress, counts: Tensor, config: DecodingConfig, generators: Generators) -> Proposal:
        available = self.logits.shape[1]
        counts = torch.minimum(counts, (available - progress.lengths).clamp(min=0))
        rows = torch.arange(len(counts), device=counts.device)[:, None]
        ahead = progress.lengths[:, None] + torch.arange(int(counts.max()), device=counts.device)
        ahead = ahead.clamp(max=available - 1)
        if config.looks_back:
            logits = self.logits[rows, ahead]
            return guess(lambda i, newest: logits[:, i], progress, counts, config, generators)
        return guess_at_once(self.distributions(config)[rows, ahead], counts, config, generators)

    def distributions(self, config: DecodingConfig) -> Tensor:
        """(B, A, V) float64: `distribution_of` all logits."""
        if self.processed is None or self.processed[0] is not config:
            self.processed = config, distribution_of(self.logits, None, config)
        return self.processed[1]

    def commit(self, fed: int, kept: Tensor) -> None:
        pass


class StreamDraft:
    """Guesses of a smaller model, a stream with the same contents as the one that it guesses for. Costs γ + 1 of its passes a round: the last guess is fed
    too, so that it is there when all are accepted."""

    def __init__(self, stream: TokenStream) -> None:
        self.stream = stream

    def propose(self, progress: Progress, counts: Tensor, config: DecodingConfig, generators: Generators) -> Proposal:
        begun = bool(progress.lengths.any())
        logits = self.stream.feed(progress.last()[:, None])[:, -1] if begun else self.stream.logits()

        def logits_at(i: int, newest: Tensor) -> Tensor:
            return self.stream.feed(newest[:, None])[:, -1] if i else logits

        proposal = guess(logits_at, progress, counts, config, generators)
        if proposal.ids.shape[1]:
            self.stream.feed(proposal.ids[:, -1:])
        return proposal

    def commit(self, fed: int, kept: Tensor) -> None:
        self.stream.rollback(fed - kept)


class NgramDraft:
    """Guesses that what followed the last tokens before follows them again: of the longest suffix of at most n − 1 tokens that the history has had, its
    newest occurrence [Saxena 2023, prompt lookup decoding]. Certain, and free; good where actions repeat."""

    def __init__(self, n: int = 3) -> None:
        if n < 2:
            raise ValueError(f"n-grams of {n} tokens have no suffix to look up")
        self.n = n

    def propose(self, progress: Progress, counts: Tensor, config: DecodingConfig, generators: Generators) -> Proposal:
        guesses = [
            look_up([i for i in row if i >= 0], self.n, count)
            for row, count in zip(progress.history.tolist(), counts.tolist(), strict=True)
        ]
        longest = max(len(g) for g in guesses)
        ids = [g + [0] * (longest - len(g)) for g in guesses]
        lengths = counts.new_tensor([len(g) for g in guesses])
        return Proposal(counts.new_tensor(ids).view(len(guesses), longest), lengths, None)

    def commit(self, fed: int, kept: Tensor) -> None:
        pass


def look_up(history: list[int], n: int, count: int) -> list[int]:
    """At most `count` ids that followed the newest earlier occurrence of the longest suffix of at most n − 1 ids."""
    for size in range(min(n - 1, len(history) - 1), 0, -1):
        suffix = history[-size:]
        for end in range(len(history) - 1, size - 1, -1):
            if history[end - size : end] == suffix:
                return history[end : end + count]
    return []


def guess(
    logits_at: LogitsAt, progress: Progress, counts: Tensor, config: DecodingConfig, generators: Generators
) -> Proposal:
    """Draw `counts` (B,) tokens of each row, one after the other; fewer where nothing can follow a guess."""
    ids = counts.new_zeros(len(counts), 0)
    newest, probabilities = counts.new_zeros(len(counts)), []
    for i in range(int(counts.max())):
        logits, history = logits_at(i, newest), progress.history_with(ids)
        drawing = i < counts
        distribution = distribution_of(*idle(logits, history, drawing), config)
        drawing = drawing & (distribution > 0).any(dim=-1)
        counts = torch.where(drawing, counts, counts.clamp(max=i))
        newest = draw_ids(distribution, config, generators, drawing)
        ids = torch.cat([ids, newest[:, None]], dim=1)
        probabilities.append(distribution)
    return Proposal(ids, counts, torch.stack(probabilities, dim=1) if probabilities else None)


def guess_at_once(distribution: Tensor, counts: Tensor, config: DecodingConfig, generators: Generators) -> Proposal:
    """`guess` from distributions (B, γ, V) that do not depend on each other; with the same random numbers."""
    nothing = distribution.amax(dim=-1) == 0
    if nothing.any():  # a row guesses up to the first that cannot be drawn
        drawing = torch.arange(distribution.shape[1], device=counts.device) < counts[:, None]
        counts = (drawing & ~nothing).long().cumprod(dim=1).sum(dim=1)
    if config.greedy:
        return Proposal(distribution.argmax(dim=-1), counts, distribution)
    uniforms = uniforms_of(counts, generators, distribution, width=distribution.shape[1])
    return Proposal(pick(distribution, uniforms), counts, distribution)


def distribution_of(logits: Tensor, history: Tensor | None, config: DecodingConfig) -> Tensor:
    """(…, V) float64: what a token is drawn from; all on one id when greedy, and 0 everywhere where nothing can be drawn.

    That is no error here: a guess that will be rejected may well lead nowhere. From logits (…, V), or (B, V) with a history (B, T)."""
    possible = None
    if lost(logits):
        possible = logits.amax(dim=-1).isfinite()
        logits = logits.masked_fill(~possible[..., None], 0)
    if not config.greedy:
        logits = cut(logits, config)
    if history is not None:
        logits = process_history(logits, config, history, checked=False)
        left = ~logits.isneginf().all(dim=-1)
        possible = left if possible is None else possible & left
    if config.greedy:
        distribution = F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).double()
    else:
        distribution = logits.softmax(dim=-1, dtype=torch.float64)
    return distribution if possible is None else distribution.masked_fill(~possible[..., None], 0)
