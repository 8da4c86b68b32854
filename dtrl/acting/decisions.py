"""An action as the decisions that it takes: which tokens are picked at once, in which order, and which of them the model is told before the next.

B rows."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.distributions import Distribution

from dtrl.sequence_model import Field, SequenceModel


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
