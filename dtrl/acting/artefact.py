"""One file that holds a whole policy: safetensors, with a JSON document and a sha256 over both in its header. No pickle.

The hash covers the document and every tensor's name, dtype, shape and bytes, so a file that was cut or altered is refused before a number of
it is used."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dtrl.documents import parse_json
from dtrl.errors import InputError, reason_of
from dtrl.files import write_atomically

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Array = npt.NDArray[Any]
Part = tuple[str, str, tuple[int, ...], bytes]
"""Name, dtype, shape and bytes of a tensor."""
KEY = "dtrl"
FORMAT = 1


def save_artefact(path: Path, tensors: "Mapping[str, Tensor]", document: Mapping[str, Any]) -> None:
    """Write the file atomically. Raises InputError where it cannot be written."""
    from safetensors.torch import save

    whole = apart({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    text = as_text(document)
    write_atomically(path, save(whole, metadata={KEY: text, "sha256": digest(tensor_parts(whole), text)}))


def apart(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """The tensors, each with memory of its own: safetensors takes no other, and a draft shares the tokenizer of the field that it guesses."""
    known: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if place in known else tensor
        known.add(place)
    return separate


def save_arrays(path: Path, arrays: Mapping[str, Array], document: Mapping[str, Any]) -> None:
    """`save_artefact` for arrays."""
    from safetensors.numpy import save

    whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    text = as_text(document)
    write_atomically(path, save(whole, metadata={KEY: text, "sha256": digest(array_parts(whole), text)}))


def load_artefact(path: Path) -> "tuple[dict[str, Tensor], dict[str, Any]]":
    """Tensors and document. Raises InputError, naming the file, where it is not a whole, unaltered artefact of this format."""
    tensors, text, sha256 = read(path, "pt")
    return tensors, checked(path, digest(tensor_parts(tensors), text), sha256, text)


def load_arrays(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """`load_artefact` for arrays."""
    arrays, text, sha256 = read(path, "numpy")
    return arrays, checked(path, digest(array_parts(arrays), text), sha256, text)


def engine_of(path: Path) -> str | None:
    """The engine that a file was exported for; None where it holds a model to be run by PyTorch. Raises InputError where it is no artefact."""
    text = read(path, None)[1]
    try:
        found = parse_json(text).get("engine")
    except (ValueError, AttributeError):  # altered: whoever reads the file says so
        return None
    return None if found is None else str(found)


def as_text(document: Mapping[str, Any]) -> str:
    return json.dumps({"format": FORMAT, **document}, sort_keys=True, allow_nan=False)


def read(path: Path, framework: str | None) -> tuple[dict[str, Any], str, str]:
    """Tensors (none without a framework), document and hash of a file, as they stand there."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework=framework or "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()} if framework else {}
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error}); give the path of a run directory or of a saved policy."
        ) from error
    except (
        SafetensorError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:  # the last two of a dtype that NumPy lacks
        raise InputError(
            f"{path} is not a whole safetensors file ({reason_of(error)}); it was cut short or altered: restore it, or train again."
        ) from error
    if KEY not in metadata or "sha256" not in metadata:
        raise InputError(
            f"{path} was not written by dtrl: its header has no {KEY} document; give a run directory or a file made by policy.save."
        )
    return tensors, metadata[KEY], metadata["sha256"]


def checked(path: Path, found: str, expected: str, text: str) -> dict[str, Any]:
    if found != expected:
        raise InputError(
            f"{path} does not match the sha256 in its header: it was altered after it was written; restore it, or train again."
        )
    try:
        document = parse_json(text)
    except ValueError as error:
        raise InputError(
            f"{path} holds a description that is no JSON ({error}); restore the file, or train again."
        ) from error
    if not isinstance(document, dict):
        raise InputError(f"{path} holds no description of what it is; restore the file, or train again.")
    if document.get("format") != FORMAT:
        raise InputError(
            f"{path} has format {document.get('format')}, and this dtrl reads format {FORMAT}; use the dtrl that wrote it ({document.get('dtrl')})."
        )
    return document


def undescribed(path: Path, document: Mapping[str, Any], what: str, error: Exception) -> InputError:
    """For a document that was written with its hash and yet makes no sense, which may show anywhere."""
    said = " ".join(str(error).split())[:200]
    reason = said if isinstance(error, InputError) else f"{type(error).__name__}: {said}"
    version = str(document.get("dtrl"))[:40]
    return InputError(
        f"{path} does not describe a {what} this dtrl can build ({reason}); use the dtrl that wrote it ({version})."
    )


def digest(parts: Iterable[Part], text: str) -> str:
    """sha256 over the document, and over name, dtype, shape and bytes of each tensor in the order of their names."""
    total = hashlib.sha256(text.encode())
    for name, dtype, shape, content in parts:
        total.update(f"\0{name}\0{dtype}\0{shape}\0".encode())
        total.update(content)
    return total.hexdigest()


def tensor_parts(tensors: "Mapping[str, Tensor]") -> Iterator[Part]:
    return ((name, str(t.dtype), tuple(t.shape), tensor_bytes(t)) for name, t in sorted(tensors.items()))


def array_parts(arrays: Mapping[str, Array]) -> Iterator[Part]:
    return (
        (name, f"torch.{a.dtype}", a.shape, np.asarray(a, order="C").tobytes()) for name, a in sorted(arrays.items())
    )


def parameters_sha256(module: "torch.nn.Module") -> str:
    """sha256 over the parameters' bytes in the order of their names."""
    total = hashlib.sha256()
    for _, parameter in sorted(module.named_parameters()):
        total.update(tensor_bytes(parameter))
    return total.hexdigest()


def tensor_bytes(tensor: "Tensor") -> bytes:
    """The tensor's elements in row order, as they lie in memory."""
    import torch

    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
