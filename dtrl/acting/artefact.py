"""One file that holds a whole policy: safetensors, with a JSON document and a sha256 over both in its header. No pickle.

The hash covers the document and every tensor's name, dtype, shape and bytes, so a file that was cut or altered is refused before a number of
it is used."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dtrl.errors import InputError
from dtrl.files import write_atomically

KEY = "dtrl"
FORMAT = 1


def save_artefact(path: Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Write the file atomically. Raises InputError where it cannot be written."""
    from safetensors.torch import save

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({"format": FORMAT, **document}, sort_keys=True, allow_nan=False)
    write_atomically(path, save(whole, metadata={KEY: text, "sha256": digest(whole, text)}))


def load_artefact(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and document. Raises InputError, naming the file, where it is not a whole, unaltered artefact of this format."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error}); give the path of a run directory or of a saved policy."
        ) from error
    except (SafetensorError, ValueError) as error:
        raise InputError(
            f"{path} is not a whole safetensors file ({error}); it was cut short or altered: restore it, or train again."
        ) from error
    if KEY not in metadata or "sha256" not in metadata:
        raise InputError(
            f"{path} was not written by dtrl: its header has no {KEY} document; give a run directory or a file made by policy.save."
        )
    if digest(tensors, metadata[KEY]) != metadata["sha256"]:
        raise InputError(
            f"{path} does not match the sha256 in its header: it was altered after it was written; restore it, or train again."
        )
    document = json.loads(metadata[KEY])
    if document.get("format") != FORMAT:
        raise InputError(
            f"{path} has format {document.get('format')}, and this dtrl reads format {FORMAT}; use the dtrl that wrote it ({document.get('dtrl')})."
        )
    return tensors, document


def digest(tensors: Mapping[str, Tensor], text: str) -> str:
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        total.update(tensor_bytes(tensor))
    return total.hexdigest()


def parameters_sha256(module: torch.nn.Module) -> str:
    """sha256 over the parameters' bytes in the order of their names."""
    total = hashlib.sha256()
    for _, parameter in sorted(module.named_parameters()):
        total.update(tensor_bytes(parameter))
    return total.hexdigest()


def tensor_bytes(tensor: Tensor) -> bytes:
    """The tensor's elements in row order, as they lie in memory."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
