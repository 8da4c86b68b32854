"""Acting against teacher forcing, on recorded episodes: the proof that the policy in the environment is the model that was trained."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution

from dtrl.acting.context import CONTEXTS
from dtrl.acting.decisions import Decision, decide
from dtrl.heads import OneHots
from dtrl.spaces import leaves
from dtrl.trajectories import Trajectories
from dtrl.windows import Batch, Windows, chunk_rows

if TYPE_CHECKING:
    from dtrl.acting.policy import Policy
    from dtrl.acting.state import PolicyState


def largest_difference(policy: "Policy", trajectories: Trajectories, rows: int) -> float:
    """Largest difference of acting and teacher forcing over all steps of all episodes, `rows` episodes side by side."""
    worst = 0.0
    for begin in range(0, trajectories.num_episodes, rows):
        episodes = trajectories.select(range(begin, min(begin + rows, trajectories.num_episodes)))
        with torch.inference_mode():
            acted = act_along(policy, episodes)
            forced = teacher_forced(policy, episodes)
        worst = max(worst, float((acted - forced).abs().max()))
    return worst


def act_along(policy: "Policy", episodes: Trajectories) -> Tensor:
    """(N, …) what acting computes at each step, when the recorded actions are taken and the recorded rewards come in. Where the policy decides H actions
    at once, N are the steps at which it does."""
    starts, lengths, h = episodes.episode_starts, episodes.episode_lengths, policy.block_length
    state = policy.initial_state(len(starts), episodes.returns_to_go[starts])
    out: list[Tensor | None] = [None] * episodes.num_steps
    for step in range(int(lengths.max())):
        at = np.minimum(starts + step, starts + lengths - 1)  # a finished row repeats its last step, unread
        first = np.ones(len(starts), dtype=bool) if step == 0 else None
        policy.advance(state, first)
        state.reward = np.asarray(episodes.rewards[at], dtype=np.float64)
        if step % h:
            continue
        if policy.data.discount != 1:  # (R − r) / γ multiplies rounding at every step, so the recorded value is used
            state.returns_to_go = episodes.returns_to_go[at].astype(np.float64)
        seen = {
            leaf.path: episodes.columns[leaf.name("observations")][at] for leaf in leaves(episodes.observation_space)
        }
        rows = at if h == 1 else chunk_rows(at, starts + lengths, h)
        taken = {leaf.path: episodes.columns[leaf.name("actions")][rows] for leaf in leaves(episodes.action_space)}
        tokens = policy.tokens_of(taken, episodes.returns_to_go[at])
        values = decided_along(policy, state, policy.look(state, seen, first), tokens)
        for row in np.flatnonzero(step < lengths):
            out[starts[row] + step] = values[row]
        state.actions = state.chunks = taken
    return torch.stack([v for v in out if v is not None])


def decided_along(policy: "Policy", state: "PolicyState", hidden: Tensor, tokens: Mapping[str, Tensor]) -> Tensor:
    """(B, d) what is compared of all decisions of an action, in their order, when each is told the recorded tokens before it."""
    values = []

    def pick(distributions: Mapping[str, Distribution], decision: Decision) -> dict[str, Tensor]:
        values.append(joined_values(distributions))
        return decision.part(tokens)

    decide(policy, state, hidden, pick)
    return torch.cat(values, dim=-1)


def joined_values(distributions: Mapping[str, Distribution]) -> Tensor:
    """(B, T, d) what is compared of distributions of batch shape (B, T, n), or (B, d) of such of (B, n), end to end: log-probabilities of ids, 0 for those
    that a choice does not have, or the mode of a vector."""
    parts = [d.logits if isinstance(d, Categorical | OneHots) else d.mode for d in distributions.values()]
    return torch.cat([part.masked_fill(part.isneginf(), 0).flatten(-2) for part in parts], dim=-1)


def teacher_forced(policy: "Policy", episodes: Trajectories, batch: int = 64) -> Tensor:
    """(N, …) what the training forward computes for each step, from the tokens its action may depend on; N as of `act_along`."""
    model, length, h = policy.model, policy.context_length, policy.block_length
    whole = policy.context in ("banded", "full")
    blocks = -(-episodes.episode_lengths // h)
    windows = Windows(episodes, int(blocks.max()) if whole else length, 1, names=model.sources, block_length=h)
    first = np.repeat(episodes.episode_starts, blocks)
    within = np.arange(len(first)) - np.repeat(np.cumsum(blocks) - blocks, blocks)
    begin = np.array([CONTEXTS[policy.context].start(int(t), length) for t in range(int(within.max()) + 1)])
    starts = first + h * begin[within]
    decided = dict.fromkeys(name for decision in policy.decisions for name in decision.names)
    out = []

    def forced(batch: Batch) -> Tensor:
        distributions = model(batch.to(policy.device))
        return joined_values({name: distributions[name] for name in decided})

    if whole:
        for start, count in zip(episodes.episode_starts, blocks, strict=True):
            out.append(forced(windows.gather(np.array([start])))[0, :count])
        return torch.cat(out)
    for piece in np.array_split(np.arange(len(starts)), max(1, len(starts) // batch)):
        step = torch.from_numpy((within - begin[within])[piece])
        out.append(forced(windows.gather(starts[piece]))[torch.arange(len(piece)), step])
    return torch.cat(out)
