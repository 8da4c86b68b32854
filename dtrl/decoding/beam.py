"""Beam search: of each row the sequences of the highest log-probability, several kept at a time.

B rows, W beams of each, V ids, n tokens. Ties are broken towards the lower index, so the same logits always give the same beams."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dtrl.config import DecodingConfig
from dtrl.decoding.processors import check_rows, process_history
from dtrl.decoding.progress import Generation, joined
from dtrl.decoding.stream import TokenStream
from dtrl.errors import InputError


@dataclass(frozen=True)
class Beams:
    """The best sequences of each row, best first."""

    ids: Tensor
    """(B, W, n), −1 after the end of a sequence."""
    scores: Tensor
    """(B, W): log-probability / length ** length_penalty; −∞ where a row has fewer sequences than beams."""
    lengths: Tensor
    """(B, W)"""


def beam_search(
    stream: TokenStream, config: DecodingConfig, steps: int, end: int | None = None, prompt: Tensor | None = None
) -> Beams:
    """The most probable continuations of at most `steps` tokens that a beam of `config.beam_width` finds; with a width of V ** (steps − 1) or more, those
    that there are [Graves 2012, arXiv:1211.3711, without its length prior].

    A sequence is finished by the token `end`, where it is given, or after `steps` tokens. Only among the best W candidates of a step may one finish; the
    search of a row is over when none in progress can overtake the W finished ones. `prompt` (B, T) is what `config`'s history options look back on; they
    change the scores, which are not normalised again. The stream is used up: afterwards it holds beams, not rows."""
    rows, width = stream.rows, config.beam_width
    if prompt is None:
        prompt = torch.zeros(rows, 0, dtype=torch.long, device=stream.logits().device)
    logits = stream.logits().repeat_interleave(width, dim=0)
    stream.reorder(torch.arange(rows, device=logits.device).repeat_interleave(width))
    prompt = prompt.repeat_interleave(width, dim=0)
    running = logits.new_zeros(rows, width, 0, dtype=torch.long)
    scores = logits.new_full((rows, width), -torch.inf, dtype=torch.float64)
    scores[:, 0] = 0  # all beams are the same yet
    finished: Beams | None = None
    for step in range(1, steps + 1):
        candidates = scores[..., None] + log_probabilities(logits, config, prompt, running, scores)
        vocabulary = candidates.shape[-1]
        # of 2W candidates at most W end, so that W go on
        best, index = top(candidates.flatten(1), 2 * width)
        parents, ids = index // vocabulary, index % vocabulary
        paths = torch.cat([running.gather(1, parents[..., None].expand(-1, -1, step - 1)), ids[..., None]], dim=-1)
        ended = torch.zeros_like(ids, dtype=torch.bool) if end is None else ids == end
        finishing = (ended | (step == steps)) & (torch.arange(ids.shape[1], device=ids.device) < width)
        finished = merge(finished, paths, best.masked_fill(~finishing, -torch.inf), config, width)
        if step == steps:
            break
        scores, places = top(best.masked_fill(ended, -torch.inf), width)
        if not could_improve(scores, finished, config, step, steps).any():
            break
        running = paths.gather(1, places[..., None].expand(-1, -1, step))
        offsets = torch.arange(rows, device=ids.device)[:, None] * width
        stream.reorder((parents.gather(1, places) + offsets).flatten())
        logits = stream.feed(running[..., -1].reshape(-1, 1))[:, -1]
    assert finished is not None
    if (empty := torch.nonzero(finished.scores[:, 0].isneginf())).numel():
        raise InputError(
            f"no_repeat_ngram left no sequence of up to {steps} tokens in row {int(empty[0])}; choose a larger n, or fewer tokens."
        )
    return finished


def log_probabilities(
    logits: Tensor, config: DecodingConfig, prompt: Tensor, running: Tensor, scores: Tensor
) -> Tensor:
    """(B, W, V) of logits (B·W, V), by the history options of `config` where they are on. These may leave a beam nothing, which ends it."""
    logits = logits.masked_fill(scores.isneginf().flatten()[:, None], 0)  # what is no beam need not have a next token
    check_rows(logits.view(*scores.shape, -1), "the model, or the action mask,")
    log_p = logits.double().log_softmax(dim=-1)
    history = joined(prompt, running.flatten(0, 1))
    log_p = process_history(log_p, config, history, checked=False)
    return log_p.view(*scores.shape, -1)


def top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` best of scores (B, C), or all, and their places, both (B, count); of equals the lower place first."""
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    return scores.gather(1, order), order


def merge(finished: Beams | None, paths: Tensor, scores: Tensor, config: DecodingConfig, width: int) -> Beams:
    """The best W of the finished beams and of new paths (B, C, t) with log-probabilities (B, C), −∞ where a path is none."""
    length = paths.shape[2]
    divisor: float = float(length) ** config.length_penalty
    new = Beams(paths, scores / divisor, torch.full_like(paths[..., 0], length))
    if finished is not None:
        old = torch.nn.functional.pad(finished.ids, (0, length - finished.ids.shape[2]), value=-1)
        new = Beams(
            torch.cat([old, new.ids], dim=1),
            torch.cat([finished.scores, new.scores], dim=1),
            torch.cat([finished.lengths, new.lengths], dim=1),
        )
    best, order = top(new.scores, width)
    return Beams(new.ids.gather(1, order[..., None].expand(-1, -1, length)), best, new.lengths.gather(1, order))


def could_improve(scores: Tensor, finished: Beams, config: DecodingConfig, step: int, steps: int) -> Tensor:
    """(B,) whether a beam in progress, of log-probability (B, W) after `step` tokens, may still end better than the worst finished one of its row.

    Log-probabilities only fall, so the best that a beam can come to is what it has, over the length that flatters it most."""
    longest = steps if config.length_penalty > 0 else step + 1
    divisor: float = float(longest) ** config.length_penalty
    return scores[:, 0] / divisor > finished.scores[:, -1]


def beam(generation: Generation) -> Iterator[None]:
    """The strategy `beam`: the best sequence of each row."""
    progress = generation.progress
    if progress.stop.until is not None:
        raise InputError(
            "strategy beam ends sequences by an end token or their length alone; leave `until` out, or sample."
        )
    found = beam_search(generation.stream, generation.config, progress.steps, progress.stop.end, generation.prompt)
    progress.add(found.ids[:, 0], found.lengths[:, 0])
    yield
