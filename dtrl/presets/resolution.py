"""Which settings go with a preset and with the data: defaults that depend on them, and what is refused."""

from dataclasses import replace

import numpy as np
from gymnasium import spaces

from dtrl.config import ModelConfig
from dtrl.errors import InputError, did_you_mean
from dtrl.presets.methods import WHOLE_ACTIONS, check_preset
from dtrl.presets.tokens import within
from dtrl.sequence_model import SequenceModel
from dtrl.spaces import leaves
from dtrl.tokenizers import tokenizer_of_chunks
from dtrl.trajectories import Trajectories
from dtrl.trajectories.describe import env_step_limit
from dtrl.windows import field_columns, fitted_chunks, is_chunked

GOAL = "desired_goal"
"""The part of a goal environment's observation that says what is wanted, by Gymnasium-Robotics' convention."""
RETURN_DEVIATION = 2.0
"""Standard deviation of the return tokens by default: wide enough that neighbouring returns look different to the model from the first update."""
RETURN_BINS = 120
"""Return tokens of `mgdt` by default, as published for returns from −20 to 100."""
BINS = {"dt_discrete": (256, "uniform"), "vq_dt": (16, "codes"), "tt": (100, "quantile")}
"""Presets of ids → how many bins or codes, and which, by default: RT-1's 256 [Brohan et al. 2022, arXiv:2212.06817, §5], VQ-BeT's 16 in each of two
layers, and those that served the Trajectory Transformer best."""


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
