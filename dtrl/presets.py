"""Methods as configurations: each preset is a function that returns a SequenceModel. A new one is a function here and a row in `PRESETS`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
from gymnasium import spaces
from torch import nn

from dtrl.backbones import Pointwise, Transformer
from dtrl.config import ModelConfig
from dtrl.errors import InputError, did_you_mean
from dtrl.heads import HEADS
from dtrl.sequence_model import Field, SequenceModel
from dtrl.spaces import Space
from dtrl.tokenizers import Categories, Continuous, Tokenizer
from dtrl.trajectories import Trajectories
from dtrl.trajectories.describe import env_step_limit
from dtrl.windows import FIELD_COLUMNS

RETURN_DEVIATION = 2.0
"""Standard deviation of the return tokens by default: wide enough that neighbouring returns look different to the model from the first update."""


def dt(config: ModelConfig, observation_space: Space, action_space: Space) -> SequenceModel:
    """Decision Transformer [Chen et al. 2021, arXiv:2106.01345]: (return-to-go, observation, action) tokens, loss on the action."""
    fields = [
        Field("return", Continuous(1, "scale", scale=config.return_scale)),
        Field("observation", tokenizer_of(observation_space, "standardize")),
        Field("action", tokenizer_of(action_space, "bounds"), loss_weight=1.0),
    ]
    tokens_per_step = sum(f.tokenizer.num_tokens for f in fields)
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
        {"action": action_head(config, action_space)},
        width=config.width,
        max_timestep=config.max_timestep if config.timestep_embedding else None,
        dropout=config.dropout,
    )


def bc(config: ModelConfig, observation_space: Space, action_space: Space) -> SequenceModel:
    """Behaviour cloning: the action from the observation alone, by an MLP. `filtered_bc` is the same network on the best episodes of the data."""
    fields = [
        Field("observation", tokenizer_of(observation_space, "standardize")),
        Field("action", tokenizer_of(action_space, "bounds"), loss_weight=1.0, in_context=False),
    ]
    backbone = Pointwise(config.width, config.layers, config.dropout, config.activation)
    return SequenceModel(
        fields, backbone, {"action": action_head(config, action_space)}, width=config.width, normalize=False
    )


PRESETS: dict[str, Callable[[ModelConfig, Space, Space], SequenceModel]] = {"dt": dt, "bc": bc, "filtered_bc": bc}


def build(config: ModelConfig, observation_space: Space, action_space: Space) -> SequenceModel:
    """The network that a resolved configuration describes, with weights drawn from torch's generator and tokenizers not yet fitted."""
    return PRESETS[config.preset](config, observation_space, action_space)


def resolve(config: ModelConfig, trajectories: Trajectories) -> ModelConfig:
    """The configuration with every default that depends on the data filled in, so that it describes one network and can be saved."""
    if config.preset not in PRESETS:
        raise InputError(f"preset {config.preset!r} is unknown; {did_you_mean(config.preset, list(PRESETS))}")
    discrete = isinstance(trajectories.action_space, spaces.Discrete)
    head = config.head if config.head != "auto" else ("categorical" if discrete else "deterministic")
    if discrete != (head == "categorical"):
        raise InputError(
            f"head {head!r} does not fit the action space {trajectories.action_space} of {trajectories.origin.name}; "
            f"use {'categorical' if discrete else 'deterministic, gaussian or tanh_gaussian'}, or leave it to auto."
        )
    longest = max(int(trajectories.episode_lengths.max()), env_step_limit(trajectories.origin.env_spec) or 0)
    scale = float(trajectories.returns_to_go.std(dtype=np.float64)) / RETURN_DEVIATION
    return replace(
        config,
        head=head,
        context_length=int(trajectories.episode_lengths.max()) if config.attention == "full" else config.context_length,
        timestep_embedding=config.trunk == "gpt2" if config.timestep_embedding is None else config.timestep_embedding,
        max_timestep=config.max_timestep or longest,
        return_scale=config.return_scale or scale or 1.0,
    )


def training_data(config: ModelConfig, trajectories: Trajectories) -> Trajectories:
    """The episodes that the preset learns from."""
    return trajectories.best(config.top_fraction) if config.preset == "filtered_bc" else trajectories


def window_length(config: ModelConfig) -> int:
    """Steps of a training window: K, which under full attention is the longest episode; 2K under banded attention, so that full bands are trained."""
    return 2 * config.context_length if config.attention == "banded" else config.context_length


def columns_for(model: SequenceModel, trajectories: Trajectories) -> dict[str, object]:
    """Field name → column, for `SequenceModel.fit`."""
    return {f.name: getattr(trajectories, FIELD_COLUMNS[f.name]) for f in model.fields}


def tokenizer_of(space: Space, rule: Literal["standardize", "bounds"]) -> Tokenizer:
    """Ids for a Discrete space, else the vectors of a Box scaled by the rule."""
    if isinstance(space, spaces.Discrete):
        return Categories(int(space.n), int(space.start))
    assert isinstance(space, spaces.Box)
    return Continuous(space.shape[0], rule, box=space if rule == "bounds" else None)


def action_head(config: ModelConfig, space: Space) -> nn.Module:
    head = HEADS[config.head]
    if isinstance(space, spaces.Discrete):
        return head(config.width, int(space.n))
    assert isinstance(space, spaces.Box)
    return head(config.width, space.shape[0], bool(np.isfinite(space.low).all() and np.isfinite(space.high).all()))
