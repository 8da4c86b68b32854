"""Speculative decoding: tokens are guessed by a draft and judged by the model in one pass, and what comes out is distributed exactly as without a draft
[Leviathan et al. 2023, algorithm 1, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318].

B rows, V ids, γ guesses, p the model's distribution and q the draft's, both after the processors."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dtrl.config import DecodingConfig
from dtrl.decoding.choice import pick, uniforms_of
from dtrl.decoding.drafts import Proposal, distribution_of
from dtrl.decoding.processors import check_rows
from dtrl.decoding.progress import Generation, Progress
from dtrl.decoding.stream import TokenStream
from dtrl.errors import InputError


def speculate(generation: Generation) -> Iterator[None]:
    """The strategy `speculative`. A round feeds the model one pending token and the guesses after it, keeps those that are accepted, and draws one more,
    which is the next round's pending token. Each row accepts as many as it does, and draws from its own generator as often as it has guesses."""
    stream, config, progress = generation.stream, generation.config, generation.progress
    draft, noted = generation.draft, generation.speculation
    assert draft is not None
    assert noted is not None
    pending = False
    while progress.going.any():
        going = progress.going
        room = (progress.steps - progress.lengths - 1).clamp(max=config.draft_tokens)  # one more is drawn in any case
        proposal = draft.propose(progress, room * going, config, generation.generators)
        logits, fed = judge(stream, progress, proposal, pending)
        target = target_distributions(logits, config, progress, proposal)
        # of each row as many numbers as it has guesses, and one; none when greedy, where none would change the outcome
        numbers = (proposal.counts + 1) * (going & (not config.greedy))
        uniforms = uniforms_of(numbers, generation.generators, logits, width=target.shape[1])
        accepted, extra = verify(target, proposal, uniforms)
        refuse_dead_ends(logits, target, accepted, going)
        ids = torch.cat([proposal.ids, extra[:, None]], dim=1).scatter_(1, accepted[:, None], extra[:, None])
        taken = progress.add(ids, accepted + 1)
        kept = (taken - 1 + pending) * going
        stream.rollback(fed - kept)
        draft.commit(fed, kept)
        # a row that had finished has taken nothing
        tested = accepted + (accepted < proposal.counts)
        noted.note(going, torch.minimum(accepted, taken), torch.minimum(tested, taken))
        pending = True
        yield


def judge(stream: TokenStream, progress: Progress, proposal: Proposal, pending: bool) -> tuple[Tensor, int]:
    """Logits (B, γ + 1, V) of each guess and of the token after the last, in one pass, and how many tokens were fed."""
    if pending:
        ids = torch.cat([progress.last()[:, None], proposal.ids], dim=1)
        return stream.feed(ids), ids.shape[1]
    first = stream.logits()[:, None]
    if not proposal.ids.shape[1]:
        return first, 0
    return torch.cat([first, stream.feed(proposal.ids)], dim=1), proposal.ids.shape[1]


def target_distributions(logits: Tensor, config: DecodingConfig, progress: Progress, proposal: Proposal) -> Tensor:
    """(B, γ + 1, V) float64 of the model's logits, through the processors. What stands behind a row's guesses means nothing."""
    if not config.looks_back:
        return distribution_of(logits, None, config)
    places = torch.arange(logits.shape[1], device=logits.device)
    used = progress.going[:, None] & (places <= proposal.counts[:, None])
    logits = logits.masked_fill(~used[..., None], 0)
    histories = [progress.history_with(proposal.ids[:, :i]).masked_fill(~used[:, i, None], -1) for i in places.tolist()]
    return torch.stack([distribution_of(logits[:, i], h, config) for i, h in enumerate(histories)], dim=1)


def refuse_dead_ends(logits: Tensor, target: Tensor, accepted: Tensor, going: Tensor) -> None:
    """Raise InputError where the model has come to a token, the one after those `accepted` (B,), of which it has none to choose."""
    nothing = target.amax(dim=-1) == 0
    if not nothing.any():
        return
    rows = torch.arange(len(accepted), device=accepted.device)
    empty = going & nothing[rows, accepted]
    if empty.any():
        row = int(empty.nonzero()[0])
        check_rows(logits[rows, accepted].masked_fill(~empty[:, None], 0), "the model, or the action mask,")
        raise InputError(f"no_repeat_ngram left no token to choose from in row ({row},): every one would repeat.")


def verify(target: Tensor, proposal: Proposal, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """How many guesses of each row are accepted (B,), and the id (B,) drawn after them, from p (B, γ + 1, V) and uniform numbers (B, γ + 1).

    A guess x is accepted with probability min(1, p(x) / q(x)), if those before it were; the id after the first rejection is drawn from (p − q)₊,
    normalised, and the one after a row's last guess from p. So the joint distribution of what comes out is p's."""
    ids, counts = proposal.ids, proposal.counts
    guesses, last = ids.shape[1], uniforms.gather(1, counts[:, None]).squeeze(1)
    rows = torch.arange(len(ids), device=ids.device)
    if not guesses:
        return counts, pick(target[:, 0], last)
    draft = certain(proposal, target) if proposal.probabilities is None else proposal.probabilities
    p = target[:, :guesses].gather(-1, ids[..., None]).squeeze(-1)
    q = draft.gather(-1, ids[..., None]).squeeze(-1)
    # strict: a uniform number of 0 must not let through what p forbids
    passed = uniforms[:, :guesses] * q < p
    accepted = torch.minimum(passed.long().cumprod(dim=1).sum(dim=1), counts)
    weights = target[rows, accepted]
    residual = (weights - draft[rows, accepted.clamp(max=guesses - 1)]).clamp_(min=0)
    # p and q may be equal but for rounding, and a rejection between the two leaves nothing
    usable = (accepted < counts) & (residual.sum(dim=-1) > 0)
    return accepted, pick(torch.where(usable[:, None], residual, weights), last)


def certain(proposal: Proposal, like: Tensor) -> Tensor:
    """(B, γ, V): all on the guesses."""
    return torch.zeros_like(like[:, :-1]).scatter_(-1, proposal.ids[..., None], 1.0)


def speed_up(acceptance: float, guesses: int, cost: float) -> float:
    """How many times as fast speculative decoding is: (1 − α^(γ+1)) / ((1 − α)(γ c + 1)) [Leviathan et al. 2023, theorem 3.8].

    From the probability α that a guess is accepted, the number γ of guesses, and the cost c of a guess, in passes of the model; judging γ + 1 tokens is
    taken to cost one pass. Raises InputError outside 0 ≤ α ≤ 1, γ ≥ 1, c ≥ 0."""
    if not (0 <= acceptance <= 1 and guesses >= 1 and cost >= 0):
        raise InputError(
            f"acceptance {acceptance}, guesses {guesses} and cost {cost}: acceptance must be in [0, 1], guesses at least 1, and cost not negative."
        )
    tokens = sum(acceptance**i for i in range(guesses + 1))  # the geometric series, which has a value at α = 1 too
    return tokens / (guesses * cost + 1)
