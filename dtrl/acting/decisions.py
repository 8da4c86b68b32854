"""An action as the decisions that it takes: which tokens are picked at once, in which order, and which of them the model is told before the next; and how
they are taken one after the other.

B rows, D width, n tokens of a field."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import Distribution

from dtrl.acting.state import PolicyState
from dtrl.sequence_model import Field, SequenceModel
from dtrl.tokenizers import Components

if TYPE_CHECKING:
    from dtrl.acting.policy import Policy


@dataclass(frozen=True)
class Decision:
    """What is picked at once of an action."""

    names: tuple[str, ...]
    """Fields: several where they share a token."""
    slot: int
    """Which of the field's tokens."""
    fed: bool
    """Whether the model is then told, since something of the same action is predicted from it, or since its ids are not to be read off the action."""
    asks: bool = False
    """Whether it is no part of the action, but a return that the model asks of itself before it acts."""

    def part(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of the tokens (B, n) or (B, n, d) of each field, those of this decision."""
        return {name: tokens[name][:, self.slot : self.slot + 1] for name in self.names}


Pick = Callable[[Mapping[str, Distribution], Decision], dict[str, Tensor]]
"""Tokens (B, 1) or (B, 1, d) from distributions of batch shape (B, 1), by field."""


def decisions_of(model: SequenceModel, acted: Collection[str], told_last: bool = False) -> list[Decision]:
    """An action's decisions, in the order of the block, with what else the model chooses before it. `acted` are the columns that hold actions.

    With `told_last` the model is told the last id too, at once."""
    groups: list[list[Field]] = []
    for f in model.fields:
        if (f.source in acted or f.chosen) and not f.at_once:
            groups[-1].append(f) if f.joined else groups.append([f])
    slots = [(group, slot) for group in groups for slot in range(group[0].tokenizer.num_tokens)]
    told_last = told_last and slots[-1][0][0].tokenizer.vocab_size is not None
    fed = [(told_last or i < len(slots) - 1) and group[0].in_context for i, (group, _) in enumerate(slots)]
    return [
        Decision(tuple(f.name for f in group), slot, fed=tells, asks=group[0].chosen)
        for (group, slot), tells in zip(slots, fed, strict=True)
    ]


def decide(
    policy: "Policy",
    state: PolicyState,
    hidden: Tensor,
    pick: Pick,
    skipped: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """The tokens (B, n) or (B, n, d) of each field of the action, by `pick` from one distribution after the other, each given what was picked before.

    `hidden` (B, D), or (2B, D), is what `Policy.look` gave. With `skipped`, a row whose ids are complete takes nothing but padding from there on, and where
    all are, the padding goes in at once; `skipped` is told how many ids were not picked for that."""
    model, picked, rows = policy.model, dict[str, list[Tensor]](), len(state.timesteps)
    full = ""
    for decision in policy.decisions:
        known = hidden[:rows]
        if decision.names[0] == full:
            continue
        over = None if skipped is None else complete(model, decision, picked)
        if skipped is not None and over is not None and bool(over.all()):
            full, padding = decision.names[0], padding_of(model, decision, hidden.device)
            tokens = {full: padding.expand(rows, -1)}
            skipped(padding.shape[1])
        else:
            tokens = pick({name: model.predict(name, known, decision.slot) for name in decision.names}, decision)
            if over is not None:
                padding = padding_of(model, decision, hidden.device)[:, :1]
                tokens = {name: ids.where(~over[:, None], padding) for name, ids in tokens.items()}
        for name, token in tokens.items():
            picked.setdefault(name, []).append(token)
        if decision.fed:
            ((name, ids),) = tokens.items()
            x = model.embed_ids(name, ids, decision.slot, policy.tensor(state.timesteps))
            hidden = state.context.extend(x.repeat(policy.conditions, 1, 1))
    return {name: parts[0] if len(parts) == 1 else torch.cat(parts, dim=1) for name, parts in picked.items()}


def complete(model: SequenceModel, decision: Decision, picked: Mapping[str, Sequence[Tensor]]) -> Tensor | None:
    """(B,) which rows' ids, as far as they are picked before this decision, are all that their action needs; None where none needs fewer than others."""
    tokenizer = model.by_name[decision.names[0]].tokenizer
    if tokenizer.padding_id is None or not decision.slot:
        return None
    return tokenizer.complete(torch.cat(list(picked[decision.names[0]]), dim=1))


def padding_of(model: SequenceModel, decision: Decision, device: torch.device) -> Tensor:
    """(1, n) the padding of a field from the decision's slot on."""
    tokenizer = model.by_name[decision.names[0]].tokenizer
    assert tokenizer.padding_id is not None
    return torch.full((1, tokenizer.num_tokens - decision.slot), tokenizer.padding_id, device=device)


def mask_part(model: SequenceModel, decision: Decision) -> slice | None:
    """Of an action mask: the entries that are about this decision, None for all."""
    ((name),) = decision.names
    tokenizer = model.by_name[name].tokenizer
    if not isinstance(tokenizer, Components):
        return None
    begin = sum(tokenizer.sizes[: decision.slot])
    return slice(begin, begin + tokenizer.sizes[decision.slot])
