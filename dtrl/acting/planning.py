"""Planning with a model that predicts everything: beams of imagined steps, ranked by the return they promise [Janner et al. 2021, arXiv:2106.02039, §3.2].

B environments, N beams of each, W of which are kept, V ids of a token, n tokens of an action."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dtrl.acting.stream import ModelStream
from dtrl.config import DecodingConfig
from dtrl.decoding.choice import sample_categorical
from dtrl.decoding.processors import process
from dtrl.decoding.ranking import rank
from dtrl.tokenizers import numbers_of

Generators = Sequence[np.random.Generator]
OUTCOMES = ("reward", "value", "terminal")
"""Fields that follow an action, in the order of the block."""


@dataclass(frozen=True)
class Beams:
    """What is known of N imagined futures of B environments, each (B, N); best first where they are ranked."""

    actions: Tensor
    """(B, N, steps · n) the action tokens so far."""
    gained: Tensor
    """Σ γⁱ·Sᵢ·rᵢ, where Sᵢ is the probability that the episode has not terminated before step i."""
    alive: Tensor
    """S after the last imagined step."""
    log_p: Tensor
    """Log-probability of the action tokens."""
    value: Tensor
    """`gained` and γʰ·Sₕ·Vₕ, the return after the h imagined steps."""

    def take(self, index: Tensor) -> "Beams":
        """Those of index (B, N′)."""
        rows = torch.arange(len(index), device=index.device)[:, None]
        return Beams(*(getattr(self, name)[rows, index] for name in ("actions", "gained", "alive", "log_p", "value")))


def plan(stream: ModelStream, config: DecodingConfig, generators: Generators, discount: float) -> Beams:
    """The `beam_width` best futures of `horizon` steps from a stream whose next token is an action's first; it stays as it is.

    Each kept future is continued `expansions` times by action tokens that are drawn as `config` says. Rewards, values and the probability of a
    termination are expectations over all ids, observations the most probable ones. Of futures with the same actions one counts."""
    rows, width = stream.rows, config.beam_width
    count = width * config.expansions
    imagined = stream.fork(count)
    zeros = torch.zeros(rows, count, dtype=torch.float64, device=stream.logits().device)
    beams = Beams(zeros[..., None][..., :0].long(), zeros, torch.ones_like(zeros), zeros, zeros)
    first_row = torch.arange(rows, device=zeros.device)[:, None] * count
    for step in range(config.horizon):
        ids, log_p = draw_actions(imagined, (rows, count), config, generators)
        reward, after, ends = (expectation(imagined, name).view(rows, count) for name in OUTCOMES)
        gained = beams.gained + discount**step * beams.alive * reward
        alive = beams.alive * (1 - ends)
        value = gained + discount ** (step + 1) * alive * after
        beams = Beams(torch.cat([beams.actions, ids], -1), gained, alive, beams.log_p + log_p, value)
        best = rank(beams.value, beams.log_p, beams.actions, width)
        if step == config.horizon - 1:
            break
        index = best.repeat_interleave(config.expansions, dim=1)
        beams = beams.take(index)
        imagined.reorder((first_row + index).flatten())
        while imagined.next_field().startswith("observation"):
            imagined.feed(imagined.logits().argmax(dim=-1, keepdim=True))
    return beams.take(best)


def draw_actions(
    stream: ModelStream, shape: tuple[int, int], config: DecodingConfig, generators: Generators
) -> tuple[Tensor, Tensor]:
    """The tokens (B, N, n) of one action a beam, and their log-probability (B, N)."""
    ids, log_p = [], torch.zeros(shape, dtype=torch.float64, device=stream.logits().device)
    while stream.next_field().startswith("action"):
        logits = stream.logits().unflatten(0, shape)
        drawn = sample_categorical(process(logits, config), generators)
        log_p = log_p + logits.gather(-1, drawn[..., None])[..., 0]
        ids.append(drawn)
        stream.feed(drawn.reshape(-1, 1))
    return torch.stack(ids, dim=-1), log_p


def expectation(stream: ModelStream, name: str) -> Tensor:
    """(rows,) of the number that comes next, in env units; the stream goes on with the most probable id, and without a termination."""
    assert stream.next_field() == name
    logits, tokenizer = stream.logits(), stream.model.by_name[name].tokenizer
    ids = torch.zeros_like(logits[:, 0], dtype=torch.long) if name == "terminal" else logits.argmax(dim=-1)
    stream.feed(ids[:, None])
    return logits.double().exp() @ numbers_of(tokenizer, logits).double()
