"""The optimiser's state in a file: safetensors with a tensor `NUMBER.ENTRY` for each parameter, by its number, and each entry that is kept of it.

The file is the same whether the state is whole or shared out among workers: tensor by tensor it is put together, or cut, so that there is never more of it
in memory than one tensor and the worker's own parts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from dtrl.acting.artefact import tensor_bytes
from dtrl.training.trained import share_of, whole

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""The names that the format has for them."""


def save_optimizer(stream: BinaryIO, optimizer: torch.optim.Optimizer) -> None:
    """Write the state. Where it is shared out, every other worker calls `put_together` meanwhile.

    safetensors' own writer takes all tensors at once, and makes copies of them. Its format: 8 bytes with the length of the header, the header as JSON with
    dtype, shape and place of each tensor, padded by spaces to a multiple of 8, and the tensors' bytes."""
    header, end = {}, 0
    for name, tensor in entries(optimizer):
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for _, tensor in entries(optimizer):
        stream.write(tensor_bytes(whole(tensor)))


def put_together(optimizer: torch.optim.Optimizer) -> None:
    """Give worker 0 the parts that it asks for in `save_optimizer`."""
    for _, tensor in entries(optimizer):
        whole(tensor)


def entries(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """The names and tensors of the state, in the order of the file, which is not that in which they were made or loaded."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    for number, values in sorted(state.items()):
        for name, value in sorted(values.items()):
            yield f"{number}.{name}", torch.as_tensor(value)


def load_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Raises ValueError where a tensor is of no parameter, or of another shape."""
    from safetensors import safe_open

    groups = optimizer.state_dict()["param_groups"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():
            number, name = key.split(".", 1)
            value = file.get_tensor(key)
            parameter = parameters[int(number)] if 0 <= int(number) < len(parameters) else None
            if parameter is None or (value.dim() and value.shape != parameter.shape):
                raise ValueError(f"{key} of shape {tuple(value.shape)} is of no parameter")
            state.setdefault(int(number), {})[name] = share_of(value, parameter) if value.dim() else value
    if any(values.keys() != next(iter(state.values())).keys() for values in state.values()):
        raise ValueError("its parameters have different entries")
    optimizer.load_state_dict({"state": state, "param_groups": groups})
