"""What a step is made of: the fields of spaces, with a tokenizer for each and a head for those that are predicted."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from gymnasium import spaces
from torch import nn

from dtrl.config import ModelConfig
from dtrl.errors import InputError
from dtrl.heads import HEADS, AtOnce, Choices, Slots
from dtrl.sequence_model import Field
from dtrl.spaces import Space, choices_of, is_image, leaves
from dtrl.tokenizers import Categories, Continuous, Image, OneHot, Steps, Tokenizer, tokenizer_of_chunks


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


def tokenizer_of(space: Space, rule: Literal["standardize", "bounds"]) -> Tokenizer:
    """Of a simple space: ids for Discrete, one-hot vectors for several choices, bytes for observed images, else the numbers of a Box scaled by the rule."""
    if isinstance(space, spaces.Discrete):
        return Categories(int(space.n), int(space.start))
    if isinstance(space, spaces.Box):
        if rule == "standardize" and is_image(space):
            return Image(space.shape)
        return Continuous(math.prod(space.shape), rule, box=space)
    return OneHot(*choices_of(space))
