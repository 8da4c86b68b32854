"""Strategies that look at several tokens of an action before they choose: beams, plans, contrasts and drafts, on top of a policy's context.

B environments, n tokens of an action, D width."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dtrl.acting.drafting import check_head, draft_of
from dtrl.acting.planning import OUTCOMES, plan
from dtrl.acting.state import Begins, PolicyState
from dtrl.acting.stream import ModelStream
from dtrl.config import DecodingConfig
from dtrl.decoding.contrastive import paired
from dtrl.decoding.drafts import StreamDraft
from dtrl.decoding.generate import generate
from dtrl.decoding.stream import TokenStream
from dtrl.errors import InputError

if TYPE_CHECKING:
    from dtrl.acting.policy import Policy

REMEMBERED = 64
"""Tokens of earlier actions that history options and n-gram drafts look back on."""


def search(
    policy: "Policy",
    state: PolicyState,
    hidden: Tensor,
    first: Begins,
    config: DecodingConfig,
    observations: Mapping[str, npt.NDArray[Any]],
) -> dict[str, Tensor]:
    """Tokens (B, n) of each field of the action, chosen as `config` says from the hidden vectors that `Policy.look` gave. The state's context is then told
    all but the last, or all, as by `decide`; rows in `first` begin an episode. The policy has passed `check_search`."""
    decisions, rows = policy.decisions, len(state.timesteps)
    stream = policy.stream(state, hidden)
    if config.strategy == "plan":
        ids = plan(stream, config, state.generators, policy.data.discount).actions[:, 0, : len(decisions)]
    else:
        prompt = None
        if config.looks_back or config.draft == "ngram":
            nothing = torch.full((rows, 0), -1, dtype=torch.long, device=hidden.device)
            prompt = state.recent = nothing if state.recent is None else forget(state.recent, first)
        draft = draft_of(policy, state, hidden[:rows], first, config, observations)
        in_place = policy.conditions == 1 and config.strategy != "beam"
        found = generate(
            stream if in_place else apart(stream, rows, config),
            config,
            state.generators,
            len(decisions),
            prompt=prompt,
            draft=draft,
        )
        ids = found.ids
        if isinstance(draft, StreamDraft):
            assert isinstance(draft.stream, ModelStream)
            state.draft_context = draft.stream.context
        if prompt is not None:
            state.recent = remember(prompt, ids)
        if found.speculation is not None:
            before = state.speculation
            state.speculation = found.speculation if before is None else before + found.speculation
        if in_place:
            if decisions[-1].fed:
                stream.tell(ids[:, -1:])
            state.context = stream.context
            return by_field(policy, ids)
    told = ids if decisions[-1].fed else ids[:, :-1]
    if told.shape[1]:
        stream.tell(told.repeat(policy.conditions, 1))
    return by_field(policy, ids)


def apart(stream: ModelStream, rows: int, config: DecodingConfig) -> TokenStream:
    """A copy of the stream to search in, of its rows or, where it has two conditions a row, of their pairs."""
    index = torch.arange(stream.rows, device=stream.states.device)
    if stream.rows == rows:
        return stream.select(index)
    return paired(stream.select(index[:rows]), stream.select(index[rows:]), config)


def by_field(policy: "Policy", ids: Tensor) -> dict[str, Tensor]:
    """The ids (B, n) of an action's decisions, by field."""
    names = [decision.names[0] for decision in policy.decisions]
    if names[0] == names[-1]:  # the fields come one after the other
        return {names[0]: ids}
    return {name: ids[:, [i for i, n in enumerate(names) if n == name]] for name in dict.fromkeys(names)}


def forget(recent: Tensor, first: Begins) -> Tensor:
    """The ids (B, T) of earlier actions without those of rows that begin."""
    if first is None:
        return recent
    return recent.index_fill(0, torch.from_numpy(np.flatnonzero(first)).to(recent.device), -1)


def remember(recent: Tensor, ids: Tensor) -> Tensor:
    """The ids (B, T), right-padded with −1, with new ones (B, n) behind them; at most `REMEMBERED`, the newest."""
    both = torch.cat([recent, ids], dim=1)
    order = (both < 0).long().argsort(dim=1, stable=True)
    both = both.gather(1, order)
    count = (both >= 0).sum(dim=1)
    begin = (count - REMEMBERED).clamp(min=0)[:, None]
    places = begin + torch.arange(min(REMEMBERED, both.shape[1]), device=both.device)
    kept = both.gather(1, places.clamp(max=both.shape[1] - 1))
    return kept.masked_fill(places >= count[:, None], -1)


def check_search(policy: "Policy", config: DecodingConfig) -> None:
    """Raise InputError where the policy's actions are no ids, its model does not predict what a plan is made of, its context cannot go on past its
    length, or it has nothing that guesses ahead."""
    if any(decision.asks for decision in policy.decisions):
        raise InputError(
            f"strategy {config.strategy} with guidance, history or a search looks at the tokens of an action alone, and preset {policy.config.preset} chooses "
            "a return first; use greedy or sample without them."
        )
    fields = [policy.model.by_name[d.names[0]] for d in policy.decisions]
    if any(len(d.names) > 1 for d in policy.decisions) or not all(
        f.in_context and f.tokenizer.vocab_size is not None for f in fields
    ):
        config.refuse_sequences()
    if config.strategy == "plan":
        if any(name not in policy.model.head_of for name in OUTCOMES):
            raise InputError(
                f"strategy plan imagines rewards, values and observations, and preset {policy.config.preset} predicts none; train with --preset tt."
            )
        if policy.context not in ("banded", "full"):
            raise InputError(
                f"strategy plan imagines steps past the window that context {policy.context} recomputes; train with --attention banded or full."
            )
    if config.strategy == "speculative" and config.draft == "factorised":
        check_head(policy)
