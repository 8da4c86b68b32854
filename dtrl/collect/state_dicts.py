"""What `torch.save` writes of a state_dict: a zip of data.pkl, which names tensors, and of their numbers, a member each.

torch's own reader, `weights_only` too, takes the memory that a file states, and calls some of the constructors that it names. Here the pickle is
interpreted (`dtrl.trajectories.formats.pickled`), nothing is called, and no tensor can be larger than its numbers in the file."""

import io
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dtrl.archives import OF_WEIGHTS, members_of
from dtrl.errors import InputError, reason_of
from dtrl.trajectories.formats.pickled import Machine, Name, interpret

DTYPES = {
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}
TIMES = 8
"""So many times the numbers of the file may be named by tensors: shared weights are named twice."""


def read_state_dict(content: bytes | Path, where: str) -> dict[str, Tensor]:
    """The tensors of a file that `torch.save` made of a state_dict, or of its bytes, by name.

    Raises InputError, which `where` begins, for a file that holds anything else, was written by torch before 1.6, or is damaged."""
    try:
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        with zipfile.ZipFile(io.BytesIO(content) if isinstance(content, bytes) else content) as archive:
            members = members_of(archive, size, where, OF_WEIGHTS)
            roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
            if len(roots) != 1:
                raise ValueError("it has no data.pkl")
            if f"{roots[0]}byteorder" in members and archive.read(f"{roots[0]}byteorder") != b"little":
                raise ValueError("its numbers are big-endian")
            machine = TensorMachine(where, size, archive, roots[0])
            found = interpret(machine, io.BytesIO(archive.read(f"{roots[0]}data.pkl")))
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{where} cannot be read ({error.strerror or error}).") from error
    except Exception as error:  # zipfile, zlib and torch raise many kinds
        raise InputError(
            f"{where} cannot be read as the tensors that torch.save writes ({reason_of(error)}); save a state_dict by a current torch."
        ) from error
    if not isinstance(found, dict) or not all(
        isinstance(key, str) and isinstance(t, Tensor) for key, t in found.items()
    ):
        raise InputError(f"{where} is not a state dict: it holds more than tensors by name; save state_dict() alone.")
    if sum(tensor.nbytes for tensor in found.values()) > TIMES * size:
        raise InputError(f"{where} names the same numbers again and again, more than the file can hold; get it again.")
    return found


class TensorMachine(Machine):
    """The stack of a pickle of tensors, whose numbers are members of an archive."""

    def __init__(self, where: str, size: int, archive: zipfile.ZipFile, root: str) -> None:
        made: dict[str, Callable[..., Any]] = {
            "collections OrderedDict": lambda *_: {},
            "torch._utils _rebuild_tensor_v2": self.tensor,
            "torch._utils _rebuild_parameter": lambda data, *_: data,
        }
        super().__init__(where, size, made | dict.fromkeys(DTYPES, refuse))
        self.archive, self.root = archive, root
        self.storages: dict[tuple[str, str], Tensor] = {}

    def step(self, opcode: str, argument: Any, place: int) -> None:
        if opcode == "BINPERSID":
            (stated,) = self.pop(1)
            self.stack.append(self.storage(*stated))
        elif opcode == "BUILD" and isinstance(self.stack[-2], dict):
            self.pop(1)  # the versions of the modules that a state_dict carries
        else:
            super().step(opcode, argument, place)

    def storage(self, word: Any, kind: Any, key: Any, _: Any, count: Any) -> Tensor:
        """(count,) the numbers of a member."""
        if word != "storage" or not isinstance(kind, Name) or not isinstance(key, str) or type(count) is not int:
            raise ValueError("a tensor whose numbers are nowhere")
        if (kind.text, key) not in self.storages:
            content, dtype = bytearray(self.archive.read(f"{self.root}data/{key}")), DTYPES[kind.text]
            if len(content) != count * dtype.itemsize:
                raise ValueError(f"a tensor of {count} numbers in {len(content)} bytes")
            self.storages[kind.text, key] = (
                torch.frombuffer(content, dtype=dtype) if count else torch.empty(0, dtype=dtype)
            )
        return self.storages[kind.text, key]

    def tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
        """A view of a storage that stays within it and names no more numbers than it has."""
        if not isinstance(storage, Tensor) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
            raise ValueError("a tensor without numbers or shape")
        numbers = (offset, *shape, *strides)
        if len(shape) != len(strides) or not all(type(n) is int and 0 <= n < 2**48 for n in numbers) or len(shape) > 16:
            raise ValueError("a tensor of a shape that cannot be")
        count = math.prod(shape)
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if count and (count > len(storage) or last >= len(storage)):
            raise ValueError(f"a tensor of shape {shape} in {len(storage)} numbers")
        return storage.as_strided(shape, strides, offset) if count else storage.new_empty(shape)


def refuse(*_: Any) -> Any:
    raise ValueError("a call of what is no tensor")
