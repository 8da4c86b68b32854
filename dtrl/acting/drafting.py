"""What guesses the tokens of a policy's action ahead, for the strategy `speculative`: a head of its own model, its last actions, or a smaller policy.

B environments, A tokens of an action, V ids, D width."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.distributions import Categorical

from dtrl.acting.state import Begins, PolicyState
from dtrl.config import DRAFTS, DecodingConfig
from dtrl.decoding.drafts import Draft, FactorisedDraft, NgramDraft, StreamDraft
from dtrl.errors import InputError
from dtrl.presets import DRAFT

if TYPE_CHECKING:
    from dtrl.acting.policy import Policy


def draft_of(
    policy: "Policy",
    state: PolicyState,
    hidden: Tensor,
    first: Begins,
    config: DecodingConfig,
    observations: Mapping[str, npt.NDArray[Any]],
) -> Draft | None:
    """What guesses an action's tokens; None for strategies that have no use for it. From the hidden vectors (B, D) before them, or from the
    `observations` (B, …) by path, where another model guesses; rows in `first` begin an episode."""
    if config.strategy != "speculative":
        return None
    if config.draft == "ngram":
        return NgramDraft()
    if config.draft == "factorised":
        return FactorisedDraft(guesses_of(policy, hidden))
    assert policy.guesser is not None
    stream = policy.guesser.stream(*looked(policy.guesser, state, first, observations))
    stream.reach = config.draft_tokens
    return StreamDraft(stream)


def guesses_of(policy: "Policy", hidden: Tensor) -> Tensor:
    """(B, A, V) log-probabilities that the heads of the model guess for all tokens of an action at once; −∞ for ids that a token does not have."""
    logits = []
    for name in dict.fromkeys(decision.names[0] for decision in policy.decisions):
        distribution = policy.model.predict(f"{DRAFT}{name}", hidden)
        assert isinstance(distribution, Categorical)
        logits.append(distribution.logits)
    if len(logits) == 1:
        return logits[0]
    widest = max(part.shape[-1] for part in logits)
    padded = [torch.nn.functional.pad(part, (0, widest - part.shape[-1]), value=-torch.inf) for part in logits]
    return torch.cat(padded, dim=1)


def looked(
    guesser: "Policy", state: PolicyState, first: Begins, observations: Mapping[str, npt.NDArray[Any]]
) -> tuple[PolicyState, Tensor]:
    """The state of the policy that guesses, which is that of the policy it guesses for but for the context, and what its own `look` gave.

    A context that has missed a step, as none is told of actions chosen otherwise, is begun anew."""
    rows = len(state.timesteps)
    context = state.draft_context
    if context is None:
        context, first = guesser.new_context(rows), np.ones(rows, dtype=bool)
    own = replace(state, context=context)
    return own, guesser.look(own, observations, first)


def check_head(policy: "Policy") -> None:
    """Raise InputError unless the model has a head that guesses ahead."""
    drafts = {f"{DRAFT}{decision.names[0]}" for decision in policy.decisions}
    if not drafts <= policy.model.head_of.keys():
        raise InputError(
            "strategy speculative needs a head that guesses ahead, and this policy has none; train with --preset dt_discrete --draft-head, or take "
            "--draft ngram."
        )


def load_draft(policy: "Policy") -> "Policy":
    """The policy that the decoding names as its draft. Raises InputError where there is none, or where its actions are other tokens."""
    from pathlib import Path

    from dtrl.acting.policy import Policy
    from dtrl.acting.runs import load_policy

    path = str(policy.decoding.draft_path)
    if not Path(path).exists():
        raise InputError(
            f"draft {path!r} is none of {', '.join(DRAFTS)}, and there is no such path; give one of them, or the run directory or file of a policy."
        )
    guesser = load_policy(path)
    if not isinstance(guesser, Policy):
        raise InputError(
            f"draft {path} was exported for an engine, which guesses no single tokens; give its run directory."
        )
    for what in ("observation_space", "action_space"):
        if getattr(guesser, what) != getattr(policy, what):
            raise InputError(
                f"draft {path} has the {what} {getattr(guesser, what)}, and the policy has {getattr(policy, what)}; train it on the same environment."
            )
    if tokens_told(guesser) != tokens_told(policy):
        raise InputError(
            f"draft {path} says an action by other tokens than the policy; train it on the same dataset with the same --bins and --binning."
        )
    for ours, theirs in zip(tokenizers_of(policy), tokenizers_of(guesser), strict=True):
        known, other = ours.state_dict(), theirs.state_dict()
        if type(ours) is not type(theirs) or any(not torch.equal(known[k].cpu(), other[k].cpu()) for k in known):
            raise InputError(
                f"draft {path} has other bins than the policy, so that its ids mean other actions; train it on the same dataset with the same --bins "
                "and --binning."
            )
    return guesser.to(policy.device)


def tokens_told(policy: "Policy") -> list[tuple[tuple[str, ...], int, bool, int | None]]:
    """Of each token of an action: its fields, its number, whether the model is told of it, and the size of its vocabulary."""
    fields = policy.model.by_name
    return [
        (d.names, d.slot, fields[d.names[0]].in_context, fields[d.names[0]].tokenizer.vocab_size)
        for d in policy.decisions
    ]


def tokenizers_of(policy: "Policy") -> list[Any]:
    return [policy.model.by_name[name].tokenizer for name in dict.fromkeys(d.names[0] for d in policy.decisions)]
