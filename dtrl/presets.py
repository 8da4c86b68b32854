"""Methods as configurations: each preset is a function that returns a SequenceModel. A new one is a function here and a row in `PRESETS`."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from gymnasium import spaces
from torch import nn

from dtrl.backbones import Pointwise, Transformer
from dtrl.config import ModelConfig
from dtrl.errors import InputError, did_you_mean
from dtrl.heads import HEADS, AtOnce, Choices, Slots
from dtrl.sequence_model import Field, SequenceModel
from dtrl.spaces import Space, choices_of, is_image, leaves
from dtrl.tokenizers import (
    Categories,
    Continuous,
    Image,
    Offset,
    OneHot,
    Steps,
    Tokenizer,
    Uniform,
    VectorQuantization,
    tokenizer_of_chunks,
)
from dtrl.trajectories import Trajectories
from dtrl.trajectories.describe import env_step_limit
from dtrl.windows import field_columns, fitted_chunks, is_chunked

GOAL = "desired_goal"
"""The part of a goal environment's observation that says what is wanted, by Gymnasium-Robotics' convention."""
CODE_STEPS = 100
"""Averaging steps of an action's codes after k-means: what more would bring, the offset says."""
OFFSET = "offset:"
"""Begins the name of a field that says what the codes of another leave over."""
DRAFT = "draft:"
"""Begins the name of a field that guesses another."""
TT_ACTION_WEIGHT = 5.0
"""Weight of action tokens in the loss of a Trajectory Transformer, whose others have 1, in the published code."""
RETURN_DEVIATION = 2.0
"""Standard deviation of the return tokens by default: wide enough that neighbouring returns look different to the model from the first update."""


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
RETURN_BINS = 120
"""Return tokens of `mgdt` by default, as published for returns from −20 to 100."""
BINS = {"dt_discrete": (256, "uniform"), "vq_dt": (16, "codes"), "tt": (100, "quantile")}
"""Presets of ids → how many bins or codes, and which, by default: RT-1's 256 [Brohan et al. 2022, arXiv:2212.06817, §5], VQ-BeT's 16 in each of two
layers, and those that served the Trajectory Transformer best."""


def build(config: ModelConfig, observation_space: Space, action_space: Space) -> SequenceModel:
    """The network that a resolved configuration describes, with weights drawn from torch's generator and tokenizers not yet fitted.

    Raises InputError for a preset that is unknown, such as that of an older version's policy."""
    check_preset(config.preset)
    return PRESETS[config.preset](config, observation_space, action_space)


def resolve(config: ModelConfig, trajectories: Trajectories) -> ModelConfig:
    """The configuration with every default that depends on the data filled in, so that it describes one network and can be saved."""
    check_preset(config.preset)
    bins, binning = BINS.get(config.preset, (None, None))
    if config.draft_head and config.preset != "dt_discrete":
        raise InputError(
            f"draft_head guesses the tokens of preset dt_discrete, and {config.preset} has no use for it; leave it out."
        )
    if bins is None and (config.bins, config.binning) != (None, None):
        raise InputError(
            f"bins and binning are of presets that bin ({', '.join(BINS)}), and {config.preset} does not; leave them out."
        )
    check_preset_options(config)
    check_chunks(config, trajectories)
    discrete = bins is not None or not any(
        isinstance(leaf.space, spaces.Box) for leaf in leaves(trajectories.action_space)
    )
    if (config.binning == "codes") != (binning == "codes") and config.binning is not None:
        raise InputError(f"binning {config.binning} does not go with preset {config.preset}; leave it out.")
    continuous = "tanh_gaussian" if config.preset == "odt" else "deterministic"
    head = config.head if config.head != "auto" else ("categorical" if discrete else continuous)
    if discrete != (head == "categorical"):
        of = f"preset {config.preset}" if bins else f"the action space {trajectories.action_space}"
        raise InputError(
            f"head {head!r} does not fit {of} of {trajectories.origin.name}; "
            f"use {'categorical' if discrete else 'deterministic, gaussian or tanh_gaussian'}, or leave it to auto."
        )
    if config.preset == "odt" and head == "deterministic":
        raise InputError(
            "head deterministic has no entropy for preset odt to keep; leave head at auto, or take preset dt."
        )
    longest_seen = int(trajectories.episode_lengths.max())
    longest = max(longest_seen, env_step_limit(trajectories.origin.env_spec) or 0)
    scale = float(trajectories.returns_to_go.std(dtype=np.float64)) / RETURN_DEVIATION
    return replace(
        config,
        head=head,
        bins=config.bins or (None if config.action_tokenizer else bins),
        return_bins=config.return_bins or (RETURN_BINS if config.preset == "mgdt" else None),
        binning=config.binning or (None if config.action_tokenizer else binning),
        attention=config.attention or ("banded" if config.preset == "tt" else "window"),
        goal=goal_of(config, trajectories),
        context_length=-(-longest_seen // config.chunk_length) if config.attention == "full" else config.context_length,
        timestep_embedding=config.trunk == "gpt2" if config.timestep_embedding is None else config.timestep_embedding,
        max_timestep=config.max_timestep or longest,
        return_scale=config.return_scale or scale or 1.0,
    )


def check_preset(preset: str) -> None:
    """Raise InputError for a preset that is not in the table."""
    if preset not in PRESETS:
        raise InputError(f"preset {preset!r} is unknown; {did_you_mean(preset, list(PRESETS))}")


def check_preset_options(config: ModelConfig) -> None:
    """Raise InputError for an option that is of another preset than the configured one."""
    if config.return_bins is not None and config.preset != "mgdt":
        raise InputError(
            f"return_bins is of preset mgdt, and {config.preset} does not predict returns so; leave it out."
        )
    if not config.action_context and config.preset not in WHOLE_ACTIONS:
        raise InputError(
            f"action_context is of presets with one token an action ({', '.join(WHOLE_ACTIONS)}), and {config.preset} is none; leave it out."
        )


def check_chunks(config: ModelConfig, trajectories: Trajectories) -> None:
    """Raise InputError for chunks, or a tokenizer of actions, that do not go with the configured preset or with the data's actions."""
    if config.chunk_length > 1 and config.preset == "tt":
        raise InputError(
            "chunk_length is of presets that predict actions alone, and tt predicts what follows every step; leave it out, or use dt_discrete."
        )
    if config.chunk_length > 1 and config.draft_head:
        raise InputError(
            "draft_head is for strategy speculative, which does not go with chunk_length; leave one of the two out."
        )
    asked = config.action_tokenizer
    if asked is None:
        return
    if config.preset != "dt_discrete":
        raise InputError(
            f"action_tokenizer is of preset dt_discrete, and {config.preset} has tokens of its own; leave it out."
        )
    if config.binning is not None:
        raise InputError(
            f"action_tokenizer {asked} takes the place of binning {config.binning}; leave one of the two out."
        )
    parts = [leaf.space for leaf in leaves(trajectories.action_space)]
    if not any(tokenizer_of_chunks(asked, part, config.bins, config.chunk_length) for part in parts):
        raise InputError(
            f"action_tokenizer {asked} is not for the action space {trajectories.action_space} of {trajectories.origin.name}; leave it out."
        )


def training_data(config: ModelConfig, trajectories: Trajectories) -> Trajectories:
    """The episodes that the preset learns from."""
    return trajectories.best(config.top_fraction) if config.preset == "filtered_bc" else trajectories


def window_length(config: ModelConfig) -> int:
    """Steps, or blocks of several, of a training window: K, which under full attention is the longest episode; 2K under banded attention, so that full bands
    are trained."""
    return 2 * config.context_length if config.attention == "banded" else config.context_length


def columns_for(model: SequenceModel, trajectories: Trajectories) -> dict[str, object]:
    """What the model's fields read → column, or chunks of it, for `SequenceModel.fit`."""
    return {
        name: fitted_chunks(trajectories, column, model.block_length)
        if is_chunked(name, model.block_length)
        else column
        for name, column in field_columns(trajectories, model.sources).items()
    }


def conditions(config: ModelConfig, observation_space: Space) -> list[Field]:
    """What comes before the action: a goal, the return-to-go and the observation."""
    observed = fields_of("observation", observation_space, "standardize")
    return [
        *joined(f for f in observed if within(f.name, f"observation/{config.goal}")),
        Field("return", Continuous(1, "scale", scale=config.return_scale), quiet=True),
        *joined(f for f in observed if not within(f.name, f"observation/{config.goal}")),
    ]


def observed_fields(config: ModelConfig, observation_space: Space) -> list[Field]:
    """A goal and the observation, where the return comes after them: what `conditions` gives, without it."""
    return [f for f in conditions(config, observation_space) if f.source != "return"]


def action_fields(config: ModelConfig, action_space: Space) -> list[Field]:
    """The action as one token, all parts together; out of the context where earlier actions are not to be seen. A model that sees them may learn to repeat
    them instead of looking at the observation [Wen et al. 2020, arXiv:2010.14876]."""
    return joined(whole_actions(config, action_space, in_context=config.action_context))


def whole_actions(config: ModelConfig, action_space: Space, *, in_context: bool) -> list[Field]:
    """One field a leaf of the space, with one token for an action, or for a chunk of them."""
    return [
        Field(leaf.name("action"), action_tokenizer(config, leaf.space), 1.0, in_context)
        for leaf in leaves(action_space)
    ]


def action_tokenizer(config: ModelConfig, space: Space) -> Tokenizer:
    """One token of an action, or of a chunk of actions, of a simple space. A chunk of choices is several choices at once, so even of Discrete ones a vector."""
    if config.chunk_length == 1:
        return tokenizer_of(space, "bounds")
    if isinstance(space, spaces.Discrete):
        return Steps(OneHot(np.array(space.n), np.array(space.start)), config.chunk_length)
    return Steps(tokenizer_of(space, "bounds"), config.chunk_length)


def entropy_bounded(config: ModelConfig, fields: Iterable[Field]) -> list[Field]:
    """The same fields of an action, those of Boxes with an entropy of at least −1 nat a dimension where their head has a density."""
    return [
        replace(f, least_entropy=-float(f.tokenizer.token_width))
        if f.tokenizer.vocab_size is None and f.tokenizer.sizes is None and config.head in ("gaussian", "tanh_gaussian")
        else f
        for f in fields
    ]


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


def binned_fields(config: ModelConfig, role: str, space: Space, *, loss_weight: float) -> list[Field]:
    """One field a leaf of the space, with a token for each of its dimensions."""
    return [Field(leaf.name(role), binned(config, leaf.space, leaf.name(role)), loss_weight) for leaf in leaves(space)]


def binned(config: ModelConfig, space: Space, name: str) -> Tokenizer:
    """Ids of a simple space: a bin for each number of a Box, a value for each choice. Those of an action may be of another tokenizer, and of a chunk of
    steps."""
    acted = name.split("/")[0] == "action"
    chunk = config.chunk_length if acted else 1
    if acted and config.action_tokenizer:
        asked = tokenizer_of_chunks(config.action_tokenizer, space, config.bins, chunk)
        if asked is not None:
            return asked
    by_default = "categories" if isinstance(space, spaces.Discrete) else "components"
    kind = str(config.binning or "uniform") if isinstance(space, spaces.Box) and not is_image(space) else by_default
    tokenizer = tokenizer_of_chunks(kind, space, config.bins if kind == config.binning else None, chunk)
    if tokenizer is None:
        raise InputError(
            f"preset {config.preset} makes a token of every number, and {name} is {space}; use a preset such as dt, which embeds it whole."
        )
    return tokenizer


def slot_heads(config: ModelConfig, fields: Sequence[Field]) -> dict[str, nn.Module]:
    """For each field of ids that is predicted: a map of its own for every one of its tokens."""
    heads: dict[str, nn.Module] = {}
    for f in fields:
        if f.loss_weight and f.tokenizer.vocab_size is not None:
            kind = AtOnce if f.at_once else Slots
            heads[f.name] = kind(config.width, f.tokenizer.num_tokens, f.tokenizer.vocab_size, f.tokenizer.sizes)
    return heads


def fields_of(
    role: str,
    space: Space,
    rule: Literal["standardize", "bounds"],
    *,
    loss_weight: float = 0.0,
    in_context: bool = True,
) -> list[Field]:
    """One field a leaf of the space, all sharing one token a step."""
    return joined(
        Field(leaf.name(role), tokenizer_of(leaf.space, rule), loss_weight, in_context) for leaf in leaves(space)
    )


def joined(fields: Iterable[Field]) -> list[Field]:
    """The same fields, all in the token of the first."""
    return [replace(f, joined=i > 0) for i, f in enumerate(fields)]


def within(path: str, part: str) -> bool:
    """Whether a path is that of a part, or of something in it."""
    return path == part or path.startswith(f"{part}/")


def goal_of(config: ModelConfig, trajectories: Trajectories) -> str:
    """The path of the goal, "" for none. Raises InputError for one that the observations do not have, or that is all they have."""
    if config.goal in ("", "none"):
        return ""
    paths = [leaf.path for leaf in leaves(trajectories.observation_space)]
    goal = config.goal or GOAL
    found = [path for path in paths if within(path, goal)]
    if config.goal is not None and (not found or len(found) == len(paths)):
        raise InputError(
            f"goal {goal!r} is no part of the observation of {trajectories.origin.name} ({trajectories.observation_space}); "
            f"{did_you_mean(goal, [path for path in paths if path])}"
        )
    return goal if 0 < len(found) < len(paths) else ""


def tokenizer_of(space: Space, rule: Literal["standardize", "bounds"]) -> Tokenizer:
    """Of a simple space: ids for Discrete, one-hot vectors for several choices, bytes for observed images, else the numbers of a Box scaled by the rule."""
    if isinstance(space, spaces.Discrete):
        return Categories(int(space.n), int(space.start))
    if isinstance(space, spaces.Box):
        if rule == "standardize" and is_image(space):
            return Image(space.shape)
        return Continuous(math.prod(space.shape), rule, box=space)
    return OneHot(*choices_of(space))


def action_heads(config: ModelConfig, space: Space) -> dict[str, nn.Module]:
    """A head for each leaf of the action space. The configured kind is for its Boxes; choices have categorical ones."""
    heads: dict[str, nn.Module] = {}
    for leaf in leaves(space):
        tokenizer = action_tokenizer(config, leaf.space)
        if tokenizer.sizes is not None:
            head: nn.Module = Choices(config.width, tokenizer.sizes)
        elif tokenizer.vocab_size is not None:
            head = HEADS["categorical"](config.width, tokenizer.vocab_size)
        else:
            head = HEADS[config.head](config.width, tokenizer.token_width)
        heads[leaf.name("action")] = head
    return heads
