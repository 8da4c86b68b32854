"""Methods as configurations: each preset is a function that returns a SequenceModel. A new one is a function here and a row in `PRESETS`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from gymnasium import spaces
from torch import nn

from dtrl.backbones import Pointwise, Transformer
from dtrl.config import ModelConfig
from dtrl.errors import InputError, did_you_mean
from dtrl.heads import HEADS, Slots
from dtrl.presets.tokens import (
    action_fields,
    action_heads,
    binned,
    binned_fields,
    conditions,
    entropy_bounded,
    fields_of,
    joined,
    observed_fields,
    slot_heads,
    whole_actions,
)
from dtrl.sequence_model import Field, SequenceModel
from dtrl.spaces import Space, leaves
from dtrl.tokenizers import Offset, Uniform, VectorQuantization

CODE_STEPS = 100
"""Averaging steps of an action's codes after k-means: what more would bring, the offset says."""
OFFSET = "offset:"
"""Begins the name of a field that says what the codes of another leave over."""
DRAFT = "draft:"
"""Begins the name of a field that guesses another."""
TT_ACTION_WEIGHT = 5.0
"""Weight of action tokens in the loss of a Trajectory Transformer, whose others have 1, in the published code."""


def dt(config: ModelConfig, observation_space: Space, action_space: Space) -> SequenceModel:
    """Decision Transformer [Chen et al. 2021, arXiv:2106.01345]: (return-to-go, observation, action) tokens, loss on the action.

    A goal, which environments show as a part of the observation, comes before the return: it is another thing that is asked for."""
    fields = [*conditions(config, observation_space), *action_fields(config, action_space)]
    return causal(config, fields, action_heads(config, action_space))


def odt(config: ModelConfig, observation_space: Space, action_space: Space) -> SequenceModel:
    """Online Decision Transformer, its offline part [Zheng et al. 2022, arXiv:2202.05607]: a Decision Transformer whose action is drawn from a squashed
    Gaussian, the entropy of which is kept from falling below −dim(A). Choices, whose entropy is never below 0, need no such bound."""
    fields = [*conditions(config, observation_space), *entropy_bounded(config, action_fields(config, action_space))]
    return causal(config, fields, action_heads(config, action_space))


def mgdt(config: ModelConfig, observation_space: Space, action_space: Space) -> SequenceModel:
    """Multi-game Decision Transformer [Lee et al. 2022, arXiv:2205.15241]: (observation, return-to-go, action), where the return is an id whose distribution
    is learned; acting draws it from that distribution, tilted towards high returns (`DecodingConfig.return_tilt`). The paper's reward tokens are left out."""
    assert config.return_bins is not None
    bins = Uniform((), config.return_bins)
    asked = Field("return", bins, loss_weight=1.0, chosen=True)
    heads = {"return": Slots(config.width, 1, bins.vocab_size)}
    fields = [*observed_fields(config, observation_space), asked, *action_fields(config, action_space)]
    return causal(config, fields, heads | action_heads(config, action_space))


def dt_discrete(config: ModelConfig, observation_space: Space, action_space: Space) -> SequenceModel:
    """A Decision Transformer whose action dimensions are binned and predicted one after the other, each given those before it: it can express that two
    dimensions belong together, and that there are two good actions with a bad one between them."""
    action = binned_fields(config, "action", action_space, loss_weight=1.0)
    drafts = [
        replace(f, name=f"{DRAFT}{f.name}", in_context=False, at_once=True, source=f.name)
        for f in action
        if config.draft_head
    ]
    fields = [*conditions(config, observation_space), *drafts, *action]
    return causal(config, fields, slot_heads(config, fields))


def vq_dt(config: ModelConfig, observation_space: Space, action_space: Space) -> SequenceModel:
    """A Decision Transformer that picks an action's codes, of a residual vector quantization, and then says the rest [Lee et al. 2024, VQ-BeT,
    arXiv:2403.03181]: as many kinds of action as there are codes, and no rounding."""
    fields, heads = conditions(config, observation_space), dict[str, nn.Module]()
    for leaf in leaves(action_space):
        name = leaf.name("action")
        codes = VectorQuantization.for_chunks(leaf.space, config.bins, config.chunk_length)
        if codes is None:
            fields.append(Field(name, binned(config, leaf.space, name), loss_weight=1.0))
            continue
        codes.options = replace(codes.options, steps=CODE_STEPS)
        offset = Field(f"{OFFSET}{name}", Offset(codes), loss_weight=1.0, in_context=False, source=name)
        fields += [Field(name, codes, loss_weight=1.0), offset]
        heads[offset.name] = HEADS["deterministic"](config.width, offset.tokenizer.token_width)
    return causal(config, fields, slot_heads(config, fields) | heads)


def tt(config: ModelConfig, observation_space: Space, action_space: Space) -> SequenceModel:
    """Trajectory Transformer [Janner et al. 2021, arXiv:2106.02039]: every dimension of observation and action, the reward and the return after it (the
    value) are tokens, and all are predicted; so is whether the episode then terminates, for which the paper has a token in place of the next observation.

    It is not conditioned on a return: it imitates, or plans for the highest one."""
    scalar = spaces.Box(-np.inf, np.inf, (), np.float32)
    fields = [
        *binned_fields(config, "observation", observation_space, loss_weight=1.0),
        *binned_fields(config, "action", action_space, loss_weight=TT_ACTION_WEIGHT),
        *binned_fields(config, "reward", scalar, loss_weight=1.0),
        *(replace(f, hidden=True) for f in binned_fields(config, "value", scalar, loss_weight=1.0)),
        *binned_fields(config, "terminal", spaces.Discrete(2), loss_weight=1.0),
    ]
    return causal(config, fields, slot_heads(config, fields))


def bc(config: ModelConfig, observation_space: Space, action_space: Space) -> SequenceModel:
    """Behaviour cloning: the action from the observation alone, by an MLP. `filtered_bc` is the same network on the best episodes of the data."""
    return pointwise(config, fields_of("observation", observation_space, "standardize"), action_space)


def rvs(config: ModelConfig, observation_space: Space, action_space: Space) -> SequenceModel:
    """Return-conditioned behaviour cloning by an MLP [Emmons et al. 2022, RvS-R, arXiv:2112.10751]: the action from the observation and the return that is
    still wanted, without a past.

    The paper gives the return as an average over the steps that are left until the horizon; here it is the same return-to-go that a Decision Transformer
    is given, in one token with the observation, so that the two differ by the sequence alone."""
    return pointwise(config, joined(conditions(config, observation_space)), action_space)


def pointwise(config: ModelConfig, seen: Sequence[Field], action_space: Space) -> SequenceModel:
    """An MLP on the one token that the fields make at every step."""
    fields = [*seen, *joined(whole_actions(config, action_space, in_context=False))]
    backbone = Pointwise(config.width, config.layers, config.dropout, config.activation)
    return SequenceModel(
        fields,
        backbone,
        action_heads(config, action_space),
        width=config.width,
        normalize=False,
        image_encoder=config.image_encoder,
    )


def causal(config: ModelConfig, fields: Sequence[Field], heads: Mapping[str, nn.Module]) -> SequenceModel:
    """The fields behind a transformer."""
    tokens_per_step = sum(f.tokenizer.num_tokens for f in fields if f.in_context and not f.joined)
    backbone = Transformer(
        config.width,
        config.layers,
        config.heads,
        config.kv_heads,
        trunk=config.trunk,
        activation=config.activation,
        dropout=config.dropout,
        band=(config.context_length, tokens_per_step) if config.attention == "banded" else None,
    )
    return SequenceModel(
        fields,
        backbone,
        heads,
        width=config.width,
        max_timestep=config.max_timestep if config.timestep_embedding else None,
        dropout=config.dropout,
        image_encoder=config.image_encoder,
    )


def build(config: ModelConfig, observation_space: Space, action_space: Space) -> SequenceModel:
    """The network that a resolved configuration describes, with weights drawn from torch's generator and tokenizers not yet fitted.

    Raises InputError for a preset that is unknown, such as that of an older version's policy."""
    check_preset(config.preset)
    return PRESETS[config.preset](config, observation_space, action_space)


def check_preset(preset: str) -> None:
    """Raise InputError for a preset that is not in the table."""
    if preset not in PRESETS:
        raise InputError(f"preset {preset!r} is unknown; {did_you_mean(preset, list(PRESETS))}")


PRESETS: dict[str, Callable[[ModelConfig, Space, Space], SequenceModel]] = {
    "dt": dt,
    "odt": odt,
    "mgdt": mgdt,
    "dt_discrete": dt_discrete,
    "vq_dt": vq_dt,
    "tt": tt,
    "bc": bc,
    "filtered_bc": bc,
    "rvs": rvs,
}
WHOLE_ACTIONS = ("dt", "odt", "mgdt")
"""Presets with one token for the whole action, which may be kept out of the context."""
