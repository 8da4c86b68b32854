"""The `numpy` engine: programs interpreted, one NumPy call a node."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dtrl.acting.engines.base import Engine, Part, Run, named
from dtrl.acting.engines.program import Program, known_document

if TYPE_CHECKING:
    from torch.export import ExportedProgram


class NumpyEngine(Engine):
    fused = True

    @classmethod
    def make(cls, program: "ExportedProgram") -> Part:
        return known_document(program, "numpy", "export for onnx or aoti")

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self.programs = {name: Program(document, arrays) for name, (document, arrays) in parts.items()}

    def bind(self, name: str, **inputs: Any) -> Run:
        return self.programs[name].bind(**named(inputs))
