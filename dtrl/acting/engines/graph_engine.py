"""The `graph` engine: a whole step of acting on an NVIDIA GPU as one CUDA graph, with the past on the device (`device_call`).

A program is the same data as for NumPy; its operations are torch's own."""

import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dtrl.acting.engines.base import Array, Engine, Part, Run, named
from dtrl.acting.engines.folding import STANDARDIZE
from dtrl.acting.engines.operations import OPERATIONS
from dtrl.acting.engines.past import Sizes
from dtrl.acting.engines.program import Program, known_document
from dtrl.errors import InputError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from dtrl.acting.engines.device_call import DeviceCall


class GraphEngine(Engine):
    fused = True
    device = "cuda"

    @classmethod
    def make(cls, program: "ExportedProgram") -> Part:
        return known_document(program, "graph", "use engine eager on cuda")

    def __init__(self, parts: Mapping[str, Part]) -> None:
        try:
            import torch
        except ImportError as error:
            raise InputError(
                "the graph engine acts with torch, which is not installed; `pip install torch`, or export for numpy."
            ) from error
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError(
                "the graph engine replays CUDA graphs, and torch finds no CUDA device here; use engine eager, numpy, onnx or aoti, or act on a machine "
                "with an NVIDIA GPU and torch's CUDA build."
            )
        operations = {name: torch_operation(name, self.device) for name in OPERATIONS.keys() - {STANDARDIZE}}
        with torch.no_grad():
            self.programs = {
                name: Program(
                    {**document, "nodes": with_dtypes(document["nodes"])},
                    {key: torch.from_numpy(np.array(array)).to(self.device) for key, array in arrays.items()},
                    operations,
                )
                for name, (document, arrays) in parts.items()
            }

    def bind(self, name: str, **inputs: Any) -> Run:
        import torch
        from torch.utils import _pytree as pytree

        given = {key: torch.from_numpy(value) for key, value in named(inputs).items()}

        def run() -> Any:
            with torch.no_grad():
                out = self.programs[name].run(**{key: value.to(self.device) for key, value in given.items()})
            return pytree.tree_map(lambda value: value.cpu().numpy(), out)

        return run

    def call(self, values: list[Array], timesteps: Array, sizes: Sizes | None, rows: int | None) -> "DeviceCall":  # type: ignore[override]
        from dtrl.acting.engines.device_call import DeviceCall

        return DeviceCall(self.programs, values, timesteps, sizes, self.device, capture=self.device == "cuda")


def torch_operation(name: str, device: str) -> Callable[..., Any]:
    """torch's operation of that name, one of `OPERATIONS`; what makes tensors makes them on the device."""
    import torch

    from dtrl.backbones.cache import GivenPast

    if name == "dtrl.attend.default":
        return GivenPast.mix
    if "." not in name:
        return getattr(operator, name)  # type: ignore[no-any-return]
    space, operation, overload = name.split(".")
    # a program is run more than once, and what it has been given must not change
    function = getattr(getattr(getattr(torch.ops, space), operation.removesuffix("_")), overload)
    makes = any(argument.name == "device" for argument in function._schema.arguments)
    return partial(function, device=device) if makes else function


def with_dtypes(value: Any) -> Any:
    """The nodes of a program with torch's dtypes in place of their names."""
    import torch

    if isinstance(value, dict):
        return {key: with_dtypes(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_dtypes(part) for part in value]
    found = getattr(torch, value, None) if isinstance(value, str) else None
    return found if isinstance(found, torch.dtype) else value
