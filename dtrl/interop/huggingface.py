"""Weights of Hugging Face's `DecisionTransformerModel`, or of the original repository, as a policy: the same function, in dtrl's layout.

Both are GPT-2 with its tokens embedded otherwise, and differ in names. transformers also adds row 0 of a position table to every token, after the
embedding's LayerNorm: a constant, so it is part of that LayerNorm's bias here. The library itself is not needed and is never imported."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor, nn

from dtrl.acting import Policy, make_environment
from dtrl.acting.summary import DataSummary
from dtrl.config import ModelConfig
from dtrl.documents import parse_json
from dtrl.errors import InputError, reason_of
from dtrl.presets import build
from dtrl.sequence_model import SequenceModel
from dtrl.spaces import Space

Source = str | os.PathLike[str] | nn.Module | tuple[Mapping[str, Tensor], Mapping[str, Any]]

BLOCK = {
    "ln_1": "attention_norm",
    "attn.c_attn": "query_key_value",
    "attn.c_proj": "projection",
    "ln_2": "mlp_norm",
    "mlp.c_fc": "mlp.up",
    "mlp.c_proj": "mlp.down",
}
"""A module of their block → the same in ours."""
OUTSIDE = {
    "embed_timestep": "timestep_embedding",
    "embed_return": "embeddings.return",
    "embed_state": "embeddings.observation",
    "embed_action": "embeddings.action",
    "embed_ln": "norm",
    "encoder.ln_f": "backbone.norm",
    "transformer.ln_f": "backbone.norm",
    "predict_action.0": "heads.action.point",
}
"""The rest. The trunk is `encoder` in transformers and `transformer` in the original repository."""
CONSTANT_POSITION = "encoder.wpe.weight"
"""transformers' position table, of which it uses row 0 only."""
UNUSED = re.compile(
    r"(encoder|transformer)\.(wte\.weight|h\.\d+\.attn\.(bias|masked_bias))|predict_(state|return)\.(weight|bias)"
)
"""An empty vocabulary, causal masks, and heads that are not trained [Chen et al. 2021, §3]."""
IN_BLOCK = re.compile(rf"(?:encoder|transformer)\.h\.(\d+)\.({'|'.join(map(re.escape, BLOCK))})\.(weight|bias)")

ACTIVATIONS = {
    "relu": "relu",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_python_tanh": "gelu",
}
"""Their name → ours. All but the first are one approximation of the GELU; `gelu` itself, by the error function, is another function."""
FIXED: dict[str, Any] = {
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
}
"""Settings of which dtrl's trunk has only this value, which is also the default of both libraries."""
SMALLEST = -30.0
"""Logit of the smallest deviation a Gaussian head can have."""


def from_transformers(
    source: Source,
    *,
    target_return: float,
    context_length: int | None = None,
    observation_space: Space | None = None,
    action_space: Space | None = None,
    observation_mean: Sequence[float] | npt.NDArray[Any] | None = None,
    observation_std: Sequence[float] | npt.NDArray[Any] | None = None,
    return_scale: float = 1.0,
    env: str | None = None,
) -> Policy:
    """A policy that acts as the published loop does with these weights, in every context that is exact for them (`window`, `block`).

    `source`: a `DecisionTransformerModel`; a folder with config.json and model.safetensors (or pytorch_model.bin, of which only tensors are read); or
    (state dict, settings), also with the original repository's names. `target_return` is in env units; the return token carries it divided by
    `return_scale` (the hub's MuJoCo models: 1000). `observation_mean` and `observation_std` normalise observations; such models don't hold them, their
    cards do. `context_length` is K: by default the settings' `max_length`, else 20. Spaces are those of `env` (an id), else unbounded vectors and,
    behind a tanh, actions in [−1, 1]. Actions are the model's own numbers, not scaled to the bounds, and are clipped to the space.

    Raises InputError for what can't be read, tensors that are missing or unknown, settings dtrl's trunk has no counterpart of, and sizes that differ."""
    weights, settings, name = read(source)
    if env is not None and (observation_space is None or action_space is None):
        made = make_environment(env)
        observation_space, action_space = observation_space or made.observation_space, action_space or made.action_space
        made.close()
    check_sizes(settings, weights, name)
    squashed = bool(settings.get("action_tanh", True))
    bound = 1.0 if squashed else np.inf
    observation_space = observation_space or spaces.Box(-np.inf, np.inf, (size(settings, "state_dim", name),))
    action_space = action_space or spaces.Box(-bound, bound, (size(settings, "act_dim", name),))
    check_vector(observation_space, "observation", "state_dim", settings, name)
    bounded = check_vector(action_space, "action", "act_dim", settings, name)
    if squashed and not bounded:
        raise InputError(
            f"the actions of {name} lie in [-1, 1] (action_tanh), and action_space {action_space} has no bounds; give one that has."
        )
    # dtrl's deterministic head squashes; the mean of its Gaussian head is the bare linear map
    head = "deterministic" if squashed else "gaussian"
    config = model_config(settings, name, context_length, return_scale, head)
    with torch.device("meta"):  # what the settings ask for is not built before it is known to be what the file holds
        expected = build(config, observation_space, action_space).state_dict()
    found = renamed(weights, name)
    if head == "gaussian":
        found = with_smallest_deviation(found)
    check_tensors(
        {key: tensor for key, tensor in expected.items() if key.startswith("tokenizers.")} | found, expected, name
    )
    model = build(config, observation_space, action_space)
    model.load_state_dict(found | statistics(model, observation_mean, observation_std))
    data = DataSummary(name, env, reference=None, fingerprint=None, discount=1.0, delayed=False, return_quantiles=())
    return Policy(model, config, observation_space, action_space, data, target_return=target_return)


def read(source: Source) -> tuple[Mapping[str, Tensor], Mapping[str, Any], str]:
    """Tensors by their names, settings, and a word for where they come from."""
    if isinstance(source, nn.Module):
        config: Any = getattr(source, "config", None)
        if config is None:
            raise InputError(
                f"source is a {type(source).__name__} without a config; give a DecisionTransformerModel, or its state dict with its settings."
            )
        settings = config.to_dict()
        return source.state_dict(), settings, settings.get("_name_or_path") or type(source).__name__
    if isinstance(source, tuple):
        weights, settings = source
        return weights, settings, "the given state dict"
    folder = Path(source)
    if not folder.is_dir():
        raise InputError(
            f"{folder} is not a folder; give one with config.json and model.safetensors (`hf download NAME --local-dir FOLDER` makes it)."
        )
    try:
        settings = parse_json((folder / "config.json").read_text())
        if not isinstance(settings, dict):
            raise ValueError(f"it holds a {type(settings).__name__}, not an object")
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'config.json'} cannot be read ({error}); get the model again.") from error
    return read_weights(folder), settings, folder.name


def read_weights(folder: Path) -> Mapping[str, Tensor]:
    """The tensors of model.safetensors, else of pytorch_model.bin, from which nothing but tensors is unpickled."""
    from safetensors.torch import load_file

    from dtrl.collect.state_dicts import read_state_dict

    path = next((path for path in (folder / "model.safetensors", folder / "pytorch_model.bin") if path.is_file()), None)
    if path is None:
        raise InputError(f"{folder} holds neither model.safetensors nor pytorch_model.bin; get the model again.")
    if path.suffix == ".bin":
        return read_state_dict(path, str(path))
    try:
        return load_file(path)
    except Exception as error:  # what a damaged or foreign file raises depends on where it is damaged
        raise InputError(f"{path} cannot be read as tensors ({reason_of(error)}); get the model again.") from error


def size(settings: Mapping[str, Any], key: str, name: str) -> int:
    """A setting that has to be there: a count."""
    value = settings.get(key)
    if type(value) is not int or value < 1:
        raise InputError(f"{key} in the settings of {name} is {value!r}; a positive whole number is expected.")
    return value


def check_vector(space: Space, role: str, key: str, settings: Mapping[str, Any], name: str) -> bool:
    """Refuse a space that does not fit the model; whether it is bounded in every dimension."""
    width = size(settings, key, name)
    if not isinstance(space, spaces.Box) or space.shape != (width,):
        raise InputError(f"{role}_space is {space}, and {name} has {key} {width}; give a Box of shape ({width},).")
    return bool(np.isfinite(space.low).all() and np.isfinite(space.high).all())


def model_config(
    settings: Mapping[str, Any], name: str, context_length: int | None, return_scale: float, head: str
) -> ModelConfig:
    """dtrl's configuration of the same network. Raises InputError, naming the setting, for one that it cannot be given."""
    for key, value in FIXED.items():
        if settings.get(key, value) != value:
            raise InputError(
                f"{key} {settings[key]!r} of {name} has no counterpart in dtrl, whose trunk has {key} {value!r}; run it in transformers."
            )
    width, activation = size(settings, "hidden_size", name), settings.get("activation_function")
    if settings.get("n_inner") not in (None, 4 * width):
        raise InputError(
            f"n_inner {settings['n_inner']!r} of {name} has no counterpart in dtrl, whose MLP is 4 × hidden_size = {4 * width} wide; run it in transformers."
        )
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise InputError(
            f"activation_function {activation!r} of {name} has no counterpart in dtrl, which has {', '.join(ACTIVATIONS)}; run it in transformers."
        )
    dropout = settings.get("resid_pdrop", ModelConfig.dropout)
    if type(dropout) not in (int, float):
        raise InputError(f"resid_pdrop in the settings of {name} is {dropout!r}; a number is expected.")
    if context_length is None:
        context_length = settings.get("max_length") or ModelConfig.context_length
    return ModelConfig(
        attention="window",
        context_length=context_length,
        width=width,
        layers=size(settings, "n_layer", name),
        heads=size(settings, "n_head", name),
        activation=ACTIVATIONS[activation],
        dropout=dropout,
        head=head,
        timestep_embedding=True,
        max_timestep=size(settings, "max_ep_len", name),
        return_scale=return_scale,
    )


def renamed(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors under dtrl's names, in dtrl's layout."""
    found = {}
    for key, stored in weights.items():
        tensor, (module, _, kind) = stored.float(), key.rpartition(".")
        if match := IN_BLOCK.fullmatch(key):
            layer, part, kind = match.groups()
            # their Conv1D holds the transpose of a Linear's weight; a LayerNorm's has one axis
            found[f"backbone.blocks.{layer}.{BLOCK[part]}.{kind}"] = tensor.t() if tensor.dim() == 2 else tensor
        elif module in OUTSIDE:
            found[f"{OUTSIDE[module]}.{kind}"] = tensor
        elif key != CONSTANT_POSITION and not UNUSED.fullmatch(key):
            raise InputError(
                f"{name} holds a tensor {key!r}, which no part of the Decision Transformer has; it is another model."
            )
    if CONSTANT_POSITION in weights and "norm.bias" in found:
        if weights[CONSTANT_POSITION].shape[1:] != found["norm.bias"].shape or not len(weights[CONSTANT_POSITION]):
            raise InputError(f"{CONSTANT_POSITION} of {name} has no row of the width of embed_ln; get the model again.")
        found["norm.bias"] = found["norm.bias"] + weights[CONSTANT_POSITION][0].float()
    return found


def with_smallest_deviation(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The action head as the mean of a Gaussian head, whose deviations are as small as they can be."""
    head = {key: found.pop(key) for key in [*found] if key.startswith("heads.action.")}
    for key, tensor in head.items():
        rest = torch.full_like(tensor, SMALLEST if key.endswith("bias") else 0.0)
        found[key.replace("point", "parameters_of")] = torch.cat([tensor, rest])
    return found


def statistics(model: SequenceModel, mean: Any, deviation: Any) -> dict[str, Tensor]:
    """The tokenizers' buffers: observations by the given numbers, actions as they are, returns by the scale the model was built with."""
    buffers = {key: tensor for key, tensor in model.state_dict().items() if key.startswith("tokenizers.")}
    buffers["tokenizers.action.shift"] = torch.zeros_like(buffers["tokenizers.action.shift"])
    buffers["tokenizers.action.scale"] = torch.ones_like(buffers["tokenizers.action.scale"])
    for key, given, role in (("shift", mean, "observation_mean"), ("scale", deviation, "observation_std")):
        if given is None:
            continue
        values, width = np.asarray(given, dtype=np.float32), len(buffers["tokenizers.observation.shift"])
        if values.shape != (width,) or not np.isfinite(values).all() or (key == "scale" and (values <= 0).any()):
            raise InputError(
                f"{role} {given} must be {width} finite numbers{', all above 0' if key == 'scale' else ''}: one for each entry of an observation."
            )
        buffers[f"tokenizers.observation.{key}"] = torch.from_numpy(values)
    return buffers


def check_sizes(settings: Mapping[str, Any], weights: Mapping[str, Tensor], name: str) -> None:
    """Refuse settings that state more than there are weights, which each of these counts some of."""
    held = sum(tensor.numel() for tensor in weights.values())
    if size(settings, "n_layer", name) > len(weights):
        raise InputError(
            f"n_layer in the settings of {name} is {settings['n_layer']}, and it holds {len(weights)} tensors; get the model again."
        )
    for key in ("state_dim", "act_dim", "hidden_size", "n_head", "max_ep_len"):
        if size(settings, key, name) > held:
            raise InputError(
                f"{key} in the settings of {name} is {settings[key]}, and its tensors together hold {held} numbers; get the model again."
            )


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str) -> None:
    """Refuse weights that are not exactly those of the network their settings describe; tensors are named as in dtrl."""
    if missing := sorted(expected.keys() - found.keys()):
        raise InputError(
            f"{name} lacks {len(missing)} tensors of the model its settings describe (first {missing[0]}); get the model again."
        )
    if extra := sorted(found.keys() - expected.keys()):
        raise InputError(
            f"{name} holds {len(extra)} tensors that its settings leave no place for (first {extra[0]}); correct the settings."
        )
    for key, tensor in expected.items():
        if found[key].shape != tensor.shape:
            raise InputError(
                f"{key} of {name} has shape {tuple(found[key].shape)}, and its settings ask for {tuple(tensor.shape)}; correct the settings."
            )
