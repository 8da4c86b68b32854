"""The `onnx` engine: ONNX Runtime, with the cache as explicit inputs and outputs and any number of rows."""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dtrl.acting.engines.base import Array, Engine, Part, Run, as_bytes, named, pick
from dtrl.errors import InputError

if TYPE_CHECKING:
    from torch.export import ExportedProgram


class OnnxEngine(Engine):
    @classmethod
    def make(cls, program: "ExportedProgram") -> Part:
        import torch

        from dtrl.acting.engines.exporting import nest_of

        try:
            import onnxscript  # noqa: F401 (torch.onnx needs it, and says so less clearly)
        except ImportError as error:
            raise InputError(
                "ONNX models are made with onnxscript, which is not installed; `pip install 'dtrl[onnx]'` brings it."
            ) from error
        log = logging.getLogger("torch.onnx")
        level = log.level
        log.setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                made = torch.onnx.export(program, dynamo=True, verbose=False)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"torch.onnx cannot express this model ({reason}); export for another engine.") from error
        finally:
            log.setLevel(level)
        assert made is not None
        return {"outputs": nest_of(program)}, {"model": as_bytes(made.model_proto.SerializeToString())}

    def __init__(self, parts: Mapping[str, Part]) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise InputError(
                "this policy was exported for ONNX Runtime, which is not installed; `pip install onnxruntime` brings it."
            ) from error
        options = onnxruntime.SessionOptions()
        if threads := os.environ.get("OMP_NUM_THREADS"):
            options.intra_op_num_threads = int(threads.partition(",")[0])
        try:
            self.sessions = {
                name: onnxruntime.InferenceSession(
                    arrays["model"].tobytes(), options, providers=["CPUExecutionProvider"]
                )
                for name, (_, arrays) in parts.items()
            }
        except Exception as error:  # of classes that derive from nothing more
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"this ONNX Runtime ({onnxruntime.__version__}) cannot load the policy ({reason}); upgrade it, or export again."
            ) from error
        # what a program does not use is no input of its model
        self.inputs = {name: [i.name for i in session.get_inputs()] for name, session in self.sessions.items()}
        self.outputs = {name: document["outputs"] for name, (document, _) in parts.items()}

    def bind(self, name: str, **inputs: Any) -> Run:
        session, given = self.sessions[name], named(inputs)
        results = self.results(name, given)  # a first run tells their shapes
        binding = session.io_binding()
        for key in self.inputs[name]:
            value = given[key]
            binding.bind_input(key, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
        for output, result in zip(session.get_outputs(), results, strict=True):
            binding.bind_output(output.name, "cpu", 0, result.dtype, result.shape, result.ctypes.data)
        return Bound(session, binding, given, pick(self.outputs[name], results))

    def run(self, name: str, **inputs: Any) -> Any:
        return pick(self.outputs[name], self.results(name, named(inputs)))

    def results(self, name: str, given: Mapping[str, Array]) -> list[Array]:
        values: list[Array] = self.sessions[name].run(None, {key: given[key] for key in self.inputs[name]})
        return values


@dataclass(frozen=True)
class Bound:
    """A session whose inputs and results lie in memory that is kept here."""

    session: Any
    binding: Any
    inputs: dict[str, Array]
    results: Any

    def __call__(self) -> Any:
        self.session.run_with_iobinding(self.binding)
        return self.results
