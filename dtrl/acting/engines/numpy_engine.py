"""The `numpy` engine: programs interpreted, one NumPy call a node."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dtrl.acting.engines.base import Engine, Part, Run, named
from dtrl.acting.engines.operations import OPERATIONS
from dtrl.acting.engines.program import Program
from dtrl.errors import InputError

if TYPE_CHECKING:
    from torch.export import ExportedProgram


class NumpyEngine(Engine):
    fused = True

    @classmethod
    def make(cls, program: "ExportedProgram") -> Part:
        from dtrl.acting.engines.exporting import as_document

        document, arrays = as_document(program)
        unknown = {name for name, *_ in document["nodes"]} - OPERATIONS.keys()
        if unknown:
            raise InputError(
                f"the numpy engine cannot express {', '.join(sorted(unknown))}, which this model uses; export for onnx or aoti."
            )
        return document, arrays

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self.programs = {name: Program(document, arrays) for name, (document, arrays) in parts.items()}

    def bind(self, name: str, **inputs: Any) -> Run:
        return self.programs[name].bind(**named(inputs))
