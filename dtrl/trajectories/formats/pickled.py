"""A reader of pickles that runs nothing: the opcodes are interpreted here, and only those that make plain data are known.

Python's own unpickler imports what a file names and calls it. This one has a table of ten names, each with a function of this file that
makes the value; every other name, and every opcode that makes an object, is refused with an InputError before anything has been made of it.
No string can be longer than the file, and no array than its bytes in the file, so memory is bounded by the file's size."""

import math
import mmap
import pickletools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from dtrl.errors import InputError, reason_of
from dtrl.trajectories.columns import Array

MARK = object()
PLAIN_DTYPE = re.compile(r"\?|[biuf](1|2|4|8)")


class Name:
    """A name of KNOWN that stands on the stack until it is called."""

    def __init__(self, text: str) -> None:
        self.text = text


class Dtype:
    """A dtype that its state may still give a byte order."""

    def __init__(self, text: object) -> None:
        if not isinstance(text, str) or not PLAIN_DTYPE.fullmatch(text):
            raise ValueError(f"arrays of dtype {shown(text)}; only numbers and booleans are read")
        self.value = np.dtype(text)

    def build(self, state: Any) -> None:
        if state[1] not in ("<", ">", "|", "=") or state[2:5] != (None, None, None):
            raise ValueError("a dtype that is not plain")
        self.value = self.value.newbyteorder(state[1])


class PickledArray:
    """An array; it has its value once its state was read."""

    def __init__(self, value: Array | None = None) -> None:
        self.value = value

    def build(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = make_array(data, dtype, shape, "F" if fortran else "C")


def make_array(data: Any, dtype: Any, shape: Any, order: Any) -> Array:
    data = data.encode("latin1") if isinstance(data, str) else data  # a str of Python 2
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, Dtype):
        raise ValueError("an array that is not numbers")
    if len(shape) > 32 or not all(type(n) is int and 0 <= n < 2**48 for n in shape):
        raise ValueError("an array of a shape that cannot be")
    if math.prod(shape) * dtype.value.itemsize != len(data):
        raise ValueError(f"an array of shape {shape} in {len(data)} bytes")
    return np.frombuffer(data, dtype.value).reshape(shape, order="F" if order == "F" else "C")


def scalar(dtype: Any, data: Any) -> Any:
    return make_array(data, dtype, (), "C")[()]


def shown(value: Any) -> str:
    """A text for a message. Of anything else the kind: tuples that hold themselves twice, forty times over, would be written for ever."""
    return repr(value[:40]) if isinstance(value, str) else type(value).__name__


def encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes in {shown(encoding)}")
    return text.encode("latin1")


KNOWN: dict[str, Callable[..., Any]] = {
    "numpy ndarray": lambda *_: PickledArray(),
    "numpy dtype": lambda text, *_: Dtype(text),
    "_reconstruct": lambda *_: PickledArray(),
    "_frombuffer": lambda *given: PickledArray(make_array(*given)),
    "scalar": scalar,
    "_codecs encode": encode,
    "collections OrderedDict": lambda *_: {},
    "collections defaultdict": lambda *_: {},
    "builtins list": lambda *_: [],
    "builtins bytes": lambda: b"",
}
"""What a pickle may name → what makes it here. Containers are filled by opcodes, so they take no content here."""

SPELLINGS = {
    f"{module} {name}": name
    for name, modules in {
        "_reconstruct": ("numpy.core.multiarray", "numpy._core.multiarray"),
        "scalar": ("numpy.core.multiarray", "numpy._core.multiarray"),
        "_frombuffer": ("numpy.core.numeric", "numpy._core.numeric"),
    }.items()
    for module in modules
} | {"__builtin__ list": "builtins list", "__builtin__ bytes": "builtins bytes"}
"""NumPy 2 moved its private names."""

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
"""Opcodes that push their argument."""
PUT, GET = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_pickle(path: Path) -> Any:
    """The value in a pickle: lists, tuples, dicts, text, numbers, and `PickledArray`s. Raises InputError for anything else."""
    try:
        with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return interpret(Machine(str(path), len(data)), cast(BinaryIO, data))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is empty; get the file again.") from error


def interpret(machine: "Machine", stream: BinaryIO) -> Any:
    """The value that a pickle makes on the stack of a machine. Raises InputError where it makes none."""
    place = 0
    try:
        for opcode, argument, position in pickletools.genops(stream):
            place = position or 0
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, argument, place)
    except InputError:
        raise
    except Exception as error:  # what is wrong in a damaged file may break any line of the machine
        raise InputError(
            f"{machine.where} is not a pickle of plain data: {reason_of(error)} at byte {place}."
        ) from error
    raise InputError(f"{machine.where} is a pickle without an end; get the file again.")


class Machine:
    """The stack of a pickle, with the opcodes of plain data."""

    def __init__(self, where: str, size: int, known: Mapping[str, Callable[..., Any]] | None = None) -> None:
        """`size` is the file's in bytes; `known` has what it may name, by default `KNOWN`."""
        self.where = where
        self.known = KNOWN if known is None else known
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.left = size + 2**10
        """Characters that may still be turned into bytes: a pickle can do that with the same text again and again."""

    def step(self, opcode: str, argument: Any, place: int) -> None:
        stack = self.stack
        if opcode in VALUES:
            stack.append(argument)
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif opcode in PUT:
            self.memo[int(argument)] = stack[-1]
        elif opcode in GET:
            stack.append(self.memo[int(argument)])
        elif opcode in CONSTANTS:
            stack.append(CONSTANTS[opcode])
        elif opcode in TUPLES:
            stack.append(tuple(self.pop(TUPLES[opcode])))
        elif opcode == "GLOBAL":
            stack.append(self.name(argument, place))
        elif opcode == "STACK_GLOBAL":
            stack.append(self.name(" ".join(self.pop(2)), place))
        elif opcode == "REDUCE":
            name, arguments = self.pop(2)
            if not isinstance(name, Name):
                raise ValueError("a call of something that is no name")
            self.spend(arguments)
            stack.append(self.known[name.text](*arguments))
        elif opcode == "BUILD":
            thing, state = self.pop(2)
            if not isinstance(thing, Dtype | PickledArray):
                raise ValueError(f"a state for {type(thing).__name__}")
            self.spend(state)
            thing.build(state)
            stack.append(thing)
        else:
            self.contain(opcode, place)

    def contain(self, opcode: str, place: int) -> None:
        """The opcodes of marks, lists, tuples and dicts."""
        stack = self.stack
        if opcode == "MARK":
            stack.append(MARK)
        elif opcode == "EMPTY_LIST":
            stack.append([])
        elif opcode == "EMPTY_DICT":
            stack.append({})
        elif opcode == "TUPLE":
            stack.append(tuple(self.to_mark()))
        elif opcode == "LIST":
            stack.append(self.to_mark())
        elif opcode == "DICT":
            stack.append(pairs(self.to_mark()))
        elif opcode in ("APPEND", "APPENDS"):
            items = self.to_mark() if opcode == "APPENDS" else self.pop(1)
            if type(stack[-1]) is not list:
                raise ValueError(f"{opcode} to {type(stack[-1]).__name__}")
            stack[-1].extend(items)
        elif opcode in ("SETITEM", "SETITEMS"):
            items = self.to_mark() if opcode == "SETITEMS" else self.pop(2)
            if type(stack[-1]) is not dict:
                raise ValueError(f"{opcode} of {type(stack[-1]).__name__}")
            stack[-1].update(pairs(items))
        elif opcode not in ("PROTO", "FRAME"):
            raise InputError(
                f"{self.where} has the opcode {opcode} at byte {place}, which makes an object; only plain data are read from a pickle. Nothing was run."
            )

    def spend(self, arguments: Any) -> None:
        if not isinstance(arguments, tuple) or len(arguments) > 9:
            raise ValueError("a call with other arguments than numpy's")
        self.left -= sum(len(value) for value in arguments if isinstance(value, str))
        if self.left < 0:
            raise ValueError("the same text used again and again")

    def name(self, text: str, place: int) -> Name:
        text = SPELLINGS.get(text, text)
        if text not in self.known:
            raise InputError(
                f"{self.where} names {text.replace(' ', '.')[:80]} at byte {place}, and only numpy arrays and plain containers are read from a pickle. "
                "Nothing was run; save the episodes as arrays (numpy.savez) where the file was made."
            )
        return Name(text)

    def pop(self, count: int) -> list[Any]:
        taken = self.stack[-count:]
        if len(taken) < count or any(value is MARK for value in taken):
            raise ValueError("too little on the stack")
        del self.stack[-count:]
        return taken

    def to_mark(self) -> list[Any]:
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is MARK:
                taken = self.stack[i + 1 :]
                del self.stack[i:]
                return taken
        raise ValueError("no mark on the stack")


def pairs(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2 or not all(isinstance(key, str | int) for key in items[::2]):
        raise ValueError("a dict whose keys are not text")
    return dict(zip(items[::2], items[1::2], strict=True))
