"""What every engine offers. Neither this nor loading an engine's file needs what makes it."""

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from dtrl.acting.engines.call import Call
    from dtrl.acting.engines.past import Sizes

Array = npt.NDArray[Any]
Part = tuple[dict[str, Any], dict[str, Array]]
"""A program as an engine keeps it: data for JSON, and arrays by name."""
Run = Callable[[], Any]
"""Gives a nest of dicts and lists of arrays."""


class Engine(ABC):
    """Runs programs by name (`exporting` says what they are): arrays in, a nest of dicts and lists of arrays out."""

    fused = False
    """Whether it has the operation `dtrl.attend`."""

    @classmethod
    @abstractmethod
    def make(cls, program: "ExportedProgram") -> Part:
        """A traced program in the form that the engine loads. Raises InputError where the engine, or what makes it, cannot."""

    @abstractmethod
    def __init__(self, parts: Mapping[str, Part]) -> None:
        """From what `make` gave, by the programs' names. Raises InputError, saying what to install, where it cannot run here."""

    @abstractmethod
    def bind(self, name: str, **inputs: Any) -> Run:
        """What runs the program on what the inputs hold when it is called. `values` is a list of arrays, every other input an array; each is writable and
        lies in memory in order. The arrays of a result are overwritten by the next call."""

    def run(self, name: str, **inputs: Any) -> Any:
        """Bind and call."""
        return self.bind(name, **inputs)()

    def call(self, values: list[Array], timesteps: Array, sizes: "Sizes | None", rows: int | None) -> "Call":
        """What runs a policy's programs call after call, with a past of these sizes that is still empty."""
        from dtrl.acting.engines.call import Call

        return Call(self, values, timesteps, sizes, rows)


def as_bytes(data: bytes) -> Array:
    return np.frombuffer(data, dtype=np.uint8)


def named(inputs: Mapping[str, Any]) -> dict[str, Array]:
    """Inputs by the names that a traced program has for them: lists are counted."""
    flat = {key: value for key, value in inputs.items() if not isinstance(value, list)}
    return flat | {
        f"{key}_{i}": v for key, value in inputs.items() if isinstance(value, list) for i, v in enumerate(value)
    }


def pick(nest: Any, values: Any) -> Any:
    """The nest with each `{"r": i}` replaced by values[i]."""
    return picker(nest)(values)


def picker(nest: Any) -> Callable[[Any], Any]:
    """`pick` as a function of the values alone, for a nest that is filled often."""
    if isinstance(nest, dict) and "r" in nest:
        return operator.itemgetter(nest["r"])
    if isinstance(nest, dict):
        items = [(key, picker(part)) for key, part in nest.items()]
        return lambda values: {key: part(values) for key, part in items}
    if isinstance(nest, list):
        parts = [picker(part) for part in nest]
        return lambda values: [part(values) for part in parts]
    return lambda _: nest
