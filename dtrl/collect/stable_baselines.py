"""Policies of Stable-Baselines3 as plain arrays: from the parameters of a model, and from a saved .zip, of which nothing is unpickled.

A saved model is a zip of `data` (JSON, in which whatever is no JSON stands as a pickle in base64 under ":serialized:"; never decoded here), and
`policy.pth` (the parameters; see `state_dicts`). Which policy it is follows from the names and shapes of the parameters."""

import dataclasses
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from dtrl.archives import OF_WEIGHTS, anything, members_of, read_npz
from dtrl.collect.array_policy import ACTIVATIONS, Array, ArrayPolicy, check_shapes, number
from dtrl.documents import parse_json
from dtrl.errors import InputError, reason_of

READABLE = "the MlpPolicy of PPO, A2C, TRPO, DQN, QRDQN, SAC, TQC, TD3 and DDPG"
FOREIGN = {
    "lstm": "a recurrent policy",
    "features_extractor.cnn": "a CnnPolicy",
    "features_extractor.extractors": "a MultiInputPolicy",
    "running_mean": "a policy with batch normalisation",
}
"""Parts of parameters' names, and whose they are."""


def array_policy_of(
    parameters: Mapping[str, Array],
    observation_space: Any,
    action_space: Any,
    where: str,
    activation: str | None = None,
    mu_clip: float = 2.0,
    images: bool = True,
) -> ArrayPolicy:
    """The acting part of a policy's `state_dict`, values and critics left out.

    `activation` is ReLU or Tanh, by default what Stable-Baselines3 takes for the policy; `mu_clip` is SAC's clip_mean. Without `images`
    an image was shown to it as numbers like any other, which is what VecNormalize does. InputError, by name, for other policies than READABLE."""
    for part, name in FOREIGN.items():
        if any(part in key for key in parameters):
            raise InputError(f"{where}: it is {name}; only {READABLE} can be read.")
    rest: dict[str, Any] = {}
    if "action_net.weight" in parameters:  # ActorCriticPolicy; old versions had layers that both nets share
        layers = [*stack(parameters, "mlp_extractor.shared_net."), *stack(parameters, "mlp_extractor.policy_net.")]
        layers.append(pair(parameters, "action_net", where))
        head, act = "categorical" if isinstance(action_space, spaces.Discrete) else "box_clip", "Tanh"
        if "log_std" in parameters and parameters["log_std"].ndim == 1:
            rest["log_std"] = parameters["log_std"]
    elif layers := stack(parameters, "q_net.q_net."):
        head, act = "argmax", "ReLU"
    elif layers := stack(parameters, "quantile_net.quantile_net."):
        head, act = "argmax", "ReLU"
        layers[-1] = mean_of_quantiles(*layers[-1], action_space, where)
    elif layers := stack(parameters, "actor.latent_pi."):  # SAC; with gSDE its mean is clipped by a Hardtanh
        head, act = "box_tanh", "ReLU"
        gsde = "actor.mu.0.weight" in parameters
        layers.append(pair(parameters, "actor.mu.0" if gsde else "actor.mu", where))
        if gsde:
            rest["mu_clip"] = mu_clip
        elif "actor.log_std.weight" in parameters:
            rest["log_std_W"], rest["log_std_b"] = pair(parameters, "actor.log_std", where)
    elif layers := stack(parameters, "actor.mu."):
        head, act = "box_tanh", "ReLU"
    else:
        raise InputError(
            f"{where}: its parameters ({', '.join(list(parameters)[:3])} …) are of another policy; only {READABLE} can be read."
        )
    activation = (activation or act).lower()
    if activation not in ACTIVATIONS:
        raise InputError(f"{where}: the activation {activation!r} is not supported; only {', '.join(ACTIVATIONS)} are.")
    weights, biases = zip(*layers, strict=True)
    policy = ArrayPolicy(weights, biases, activation, head, **rest)
    check_shapes(policy, where)
    return for_images(policy, observation_space) if images else policy


def stack(parameters: Mapping[str, Array], prefix: str) -> list[tuple[Array, Array]]:
    """The layers of a torch Sequential of that name, in order: (in, out) and (out,)."""
    numbers = sorted(int(m[1]) for key in parameters if (m := re.fullmatch(re.escape(prefix) + r"(\d+)\.weight", key)))
    return [pair(parameters, f"{prefix}{i}", prefix) for i in numbers]


def pair(parameters: Mapping[str, Array], name: str, where: str) -> tuple[Array, Array]:
    """Weight, transposed to (in, out), and bias of a torch Linear."""
    try:
        return np.ascontiguousarray(parameters[f"{name}.weight"].T), parameters[f"{name}.bias"]
    except KeyError as error:
        raise InputError(f"{where}: the parameter {error} is missing; only {READABLE} can be read.") from error


def mean_of_quantiles(weight: Array, bias: Array, action_space: Any, where: str) -> tuple[Array, Array]:
    """QRDQN's last layer gives (quantiles, actions); it acts by their mean, which is linear too."""
    actions = int(getattr(action_space, "n", 0))
    if not actions or bias.size % actions:
        raise InputError(
            f"{where}: {bias.size} quantiles cannot be shared among the actions of {action_space}; choose a policy of that environment."
        )
    return weight.reshape(len(weight), -1, actions).mean(axis=1), bias.reshape(-1, actions).mean(axis=0)


def for_images(policy: ArrayPolicy, observation_space: Any) -> ArrayPolicy:
    """Stable-Baselines3 shows its networks images with the channels first and divided by 255; here they come as the environment gives them."""
    box = isinstance(observation_space, spaces.Box)
    if not (box and len(observation_space.shape) == 3 and observation_space.dtype == np.uint8):
        return policy
    if observation_space.low.min() != 0 or observation_space.high.max() != 255:
        return policy
    size, first = policy.weights[0].shape[0], policy.weights[0]
    if int(np.argmin(observation_space.shape)) != 0:
        height, width, channels = observation_space.shape
        first = first.reshape(channels, height, width, -1).transpose(1, 2, 0, 3).reshape(size, -1)
    first = np.ascontiguousarray(first)
    mean, std = np.zeros(size), np.full(size, 255.0)
    return dataclasses.replace(policy, weights=(first, *policy.weights[1:]), obs_mean=mean, obs_std=std)


def load_zip(
    path: Path, observation_space: Any, action_space: Any, deterministic: bool, images: bool = True
) -> ArrayPolicy:
    """The policy of a model saved by Stable-Baselines3. InputError, naming the file, for what is no such file or no policy of READABLE."""
    import torch  # which a policy of arrays does without

    from dtrl.collect.state_dicts import read_state_dict

    where = f"policy {path}"
    try:
        with zipfile.ZipFile(path) as archive:
            members = members_of(archive, path.stat().st_size, where, OF_WEIGHTS)
            data = parse_json(archive.read("data")) if "data" in members else {}
            content = archive.read("policy.pth")
    except InputError:
        raise
    except OSError as error:
        raise InputError(
            f"{where} cannot be read ({error.strerror or error}); give the path of a saved model."
        ) from error
    except Exception as error:  # zipfile and zlib raise many kinds
        raise InputError(
            f"{where} is no model saved by Stable-Baselines3 ({reason_of(error)}); give one with data and policy.pth."
        ) from error
    parameters = read_state_dict(content, f"{where}: policy.pth")
    if odd := [name for name, tensor in parameters.items() if tensor.dtype == torch.bfloat16]:
        raise InputError(f"{where}: {odd[0]} holds {parameters[odd[0]].dtype}; save them as float32.")
    arrays = {name: tensor.numpy() for name, tensor in parameters.items()}
    for name, value in arrays.items():
        number(value, f"{where}: {name}")
    if not isinstance(data, dict):
        raise InputError(f"{where}: data is no table; give a model saved by Stable-Baselines3.")
    if data.get("use_sde") and not deterministic:
        raise InputError(
            f"{where}: it explores by state-dependent noise (gSDE), which is not reproduced; set deterministic = true."
        )
    return array_policy_of(arrays, observation_space, action_space, where, images=images, **settings_in(data, where))


def settings_in(data: dict[str, Any], where: str) -> dict[str, Any]:
    """What the parameters do not tell, from the text in which Stable-Baselines3 repeats what it pickles."""
    options = data.get("policy_kwargs")
    options = options if isinstance(options, dict) else {}
    if options.get("squash_output") in (True, "True"):
        raise InputError(f"{where}: squash_output is not supported; only {READABLE} can be read.")
    settings: dict[str, Any] = {}
    if "activation_fn" in options:
        settings["activation"] = re.sub(r".*\.(\w+)'>$", r"\1", str(options["activation_fn"]))
    if isinstance(options.get("clip_mean"), (int, float)):
        settings["mu_clip"] = float(options["clip_mean"])
    return settings


STATISTICS = ("obs_mean", "obs_var", "obs_std", "epsilon", "obs_clip")


def with_statistics(policy: ArrayPolicy, path: Path) -> ArrayPolicy:
    """The policy with the statistics of a VecNormalize, from an .npz or .json file: obs_mean, and obs_var (with epsilon, by default 1e-8) or
    obs_std, and obs_clip (by default 10)."""
    where = f"statistics {path}"
    if path.suffix == ".json":
        try:
            arrays = {str(k): np.asarray(v) for k, v in parse_json(path.read_text(encoding="utf-8")).items()}
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(
                f"{where} cannot be read ({error}); give a JSON object of obs_mean and obs_var."
            ) from error
    elif path.suffix == ".npz":
        arrays, _ = read_npz(path, where, anything)
    else:
        raise InputError(
            f"{where}: only .npz and .json are read, as nothing is unpickled; save obs_rms.mean and obs_rms.var as obs_mean and obs_var."
        )
    unknown = [name for name in arrays if name not in STATISTICS]
    if unknown or "obs_mean" not in arrays or ("obs_var" in arrays) == ("obs_std" in arrays):
        raise InputError(
            f"{where} holds {', '.join(arrays)}; obs_mean, one of obs_var and obs_std, and maybe epsilon and obs_clip are expected."
        )
    values = {name: number(value, f"{where}: {name}") for name, value in arrays.items()}
    if any(values[name].size != 1 for name in ("epsilon", "obs_clip") if name in values):
        raise InputError(f"{where}: epsilon and obs_clip are single numbers; give one each.")
    std = values["obs_std"] if "obs_std" in values else np.sqrt(values["obs_var"] + values.get("epsilon", 1e-8))
    clip = float(values.get("obs_clip", 10.0))
    policy = dataclasses.replace(
        policy, obs_mean=values["obs_mean"].reshape(-1), obs_std=std.reshape(-1), obs_clip=clip
    )
    check_shapes(policy, where)
    return policy
