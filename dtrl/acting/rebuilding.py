"""Building the network that a file describes, once the tensors beside the description have shown that it may be so large."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeVar

import torch
from gymnasium import spaces
from torch import Tensor, nn

from dtrl.spaces import Space, leaves

if TYPE_CHECKING:
    from dtrl.config import CriticConfig, ModelConfig

Module = TypeVar("Module", bound=nn.Module)
COUNTS = ("width", "layers", "heads", "kv_heads", "bins", "return_bins", "chunk_length")
"""Settings of which a network with so many parts has as many numbers, at least."""


def rebuild(
    config: "ModelConfig | CriticConfig",
    observation_space: Space,
    action_space: Space,
    tensors: Mapping[str, Tensor],
    build: Callable[[], Module],
) -> Module:
    """What `build()` makes, with the tensors as its parameters and buffers.

    A description of a few bytes can ask for any size. So the network is first built without memory, and compared with the tensors. Raises
    ValueError, naming the setting or the tensor, where the two are not of the same network."""
    check_counts(config, observation_space, action_space, tensors)
    with torch.device("meta"):
        expected = build().state_dict()
    for name in (*expected, *tensors):
        stated, held = (list(d[name].shape) if name in d else "no such tensor" for d in (expected, tensors))
        if stated != held:
            raise ValueError(f"its settings ask for {name} of shape {stated}, and it holds {held}")
    network = build()
    network.load_state_dict(dict(tensors))
    return network


def check_counts(
    config: "ModelConfig | CriticConfig", observation_space: Space, action_space: Space, tensors: Mapping[str, Tensor]
) -> None:
    """Refuse numbers that would keep Python busy for longer than the file can be about: loops over layers, bins or the entries of a space."""
    held = sum(tensor.numel() for tensor in tensors.values())
    settings = asdict(config)
    stated = {name: settings[name] for name in COUNTS if settings.get(name) is not None}
    for leaf in (*leaves(observation_space), *leaves(action_space)):
        if isinstance(leaf.space, spaces.Discrete):
            stated[f"n of {leaf.name('a space')}"] = int(leaf.space.n)
        elif isinstance(leaf.space, spaces.MultiBinary):
            stated[f"n of {leaf.name('a space')}"] = int(leaf.space.n) if isinstance(leaf.space.n, int) else 0
    for name, count in stated.items():
        if not isinstance(count, int) or count > held:
            raise ValueError(f"{name} is {count}, and all its tensors together hold {held} numbers")
    if stated.get("layers", 0) > len(tensors):
        raise ValueError(f"layers is {stated['layers']}, and it holds {len(tensors)} tensors")
