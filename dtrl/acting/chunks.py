"""Acting in chunks: of H actions that the model decides at once, the environment is given one after the other, and the model is not asked in between
[Zhao et al. 2023, ACT, arXiv:2304.13705; Chi et al. 2023, Diffusion Policy, arXiv:2303.04137].

Every row counts for itself: it decides when its chunk is used up, or when its episode begins. B rows, B′ of them that decide now, H steps of a chunk."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dtrl.acting.state import Begins, PolicyState
from dtrl.config import DecodingConfig
from dtrl.errors import InputError

if TYPE_CHECKING:
    from dtrl.acting.policy import Policy

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]


def next_actions(
    policy: "Policy", state: PolicyState, observations: Mapping[str, Array], first: Begins, decoding: DecodingConfig
) -> dict[str, Array]:
    """Path → the next action (B, …) of each row's chunk. Rows that have none left, or that are in `first`, decide a chunk from their `observations`."""
    due = state.left == 0
    if first is not None:
        due |= first
    if state.idle is not None:
        due &= ~state.idle
    if due.all():
        decide(policy, state, observations, first, decoding)
    elif due.any():
        rows = np.flatnonzero(due)
        begins = None if first is None or not first[rows].any() else first[rows]
        part = taken(state, rows, policy.conditions)
        decide(policy, part, {path: seen[rows] for path, seen in observations.items()}, begins, decoding)
        put_back(state, rows, part, policy.conditions)
    state.left[due] = policy.execute
    at = (
        np.arange(len(due)),
        policy.execute - np.maximum(state.left, 1),
    )  # an idle row has none left, and shows its last
    state.left = np.maximum(state.left - 1, 0)
    return {path: chunks[at] for path, chunks in state.chunks.items()}


def decide(
    policy: "Policy", state: PolicyState, observations: Mapping[str, Array], first: Begins, decoding: DecodingConfig
) -> None:
    """Decide a chunk in every row of the state."""
    tokens = policy.choose_tokens(state, observations, first, None, decoding)
    state.chunks = {leaf.path: policy.to_actions(tokens, name) for name, leaf in policy.acted.items()}


def taken(state: PolicyState, rows: Rows, conditions: int) -> PolicyState:
    """A state of the given rows (B′,) alone, which has arrays and a context of its own; `conditions` are the rows of the context that each has."""
    return replace(
        state,
        context=state.context.select(in_context(rows, len(state.timesteps), conditions)),
        target_returns=state.target_returns[rows],
        returns_to_go=state.returns_to_go[rows],
        reward=state.reward[rows],
        timesteps=state.timesteps[rows],
        actions={path: actions[rows] for path, actions in state.actions.items()},
        generators=[state.generators[row] for row in rows],
        last_reward=state.last_reward[rows],
        recent=None if state.recent is None else state.recent[torch.from_numpy(rows)],
        chunks={path: chunks[rows] for path, chunks in state.chunks.items()},
    )


def put_back(state: PolicyState, rows: Rows, part: PolicyState, conditions: int) -> None:
    """Write what the rows (B′,) have decided, and what they now look back on, into the state that they were `taken` from."""
    state.context.put(in_context(rows, len(state.timesteps), conditions), part.context)
    for path, chunks in part.chunks.items():
        state.chunks[path][rows] = chunks
    if part.recent is not None:
        state.recent = merged(state.recent, torch.from_numpy(rows), part.recent, len(state.timesteps))


def in_context(rows: Rows, count: int, conditions: int) -> Rows:
    """The rows of a context in which `count` rows have as many conditions each, the first of all rows, then the second of all."""
    return np.concatenate([rows + i * count for i in range(conditions)])


def merged(recent: Tensor | None, rows: Tensor, part: Tensor, count: int) -> Tensor:
    """The ids (B, T) of earlier actions, right-padded with −1, with those of some rows (B′, T′) in their places."""
    known = part.new_full((count, 0), -1) if recent is None else recent
    width = max(known.shape[1], part.shape[1])
    whole, new = (torch.nn.functional.pad(ids, (0, width - ids.shape[1]), value=-1) for ids in (known, part))
    return whole.index_copy(0, rows.to(whole.device), new)


def check_chunks(policy: "Policy") -> None:
    """Raise InputError for a strategy that chunks do not go with, and for a number of actions to execute that would not be exact.

    Where fewer than H are executed, blocks lie nearer to each other than in training, and hold actions that were never taken. To train on such blocks is
    no way out: the recorded chunks of a window overlap then, and each tells the model the beginning of the next one, which it is to predict."""
    if policy.block_length == 1:
        policy.decoding.refuse_execute()
        return
    if policy.execute > policy.block_length:
        raise InputError(
            f"execute {policy.execute} is more than the {policy.block_length} actions that this policy decides at once; choose 1 … {policy.block_length}."
        )
    if policy.execute < policy.block_length and policy.model.backbone.memory:
        raise InputError(
            f"execute {policy.execute} is not exact for preset {policy.config.preset}: it looks back on whole blocks of {policy.block_length} steps, as it was "
            "trained to; leave it out, or use bc or rvs, which look at one step."
        )
    if policy.decoding.strategy == "speculative":
        raise InputError(
            "strategy speculative guesses the tokens of single steps, and this policy decides chunks; use sample, which has the same distribution."
        )


def refuse_masks(block_length: int) -> None:
    raise InputError(
        f"action masks are known for one step, and this policy decides {block_length} at a time; train with chunk_length 1 for this environment."
    )
