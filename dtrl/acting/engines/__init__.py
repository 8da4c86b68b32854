"""What runs a policy's model in place of PyTorch. An engine is a class here, a row in `ENGINES`, and its tests.

numpy   in NumPy alone: needs neither torch nor a compiler
onnx    by ONNX Runtime (extra `onnx`)
aoti    compiled for this machine by torch's AOTInductor, for a fixed number of environments; needs torch, and a C++ compiler to make it
graph   by torch on an NVIDIA GPU, the whole step as one CUDA graph

`base.Engine` is what they offer; `exporting` traces the programs that they are made from; `call` runs them, with the `past` between two steps."""

from dtrl.acting.engines.aoti_engine import AotiEngine
from dtrl.acting.engines.base import Engine
from dtrl.acting.engines.graph_engine import GraphEngine
from dtrl.acting.engines.numpy_engine import NumpyEngine
from dtrl.acting.engines.onnx_engine import OnnxEngine

ENGINES: dict[str, type[Engine]] = {
    "numpy": NumpyEngine,
    "onnx": OnnxEngine,
    "aoti": AotiEngine,
    "graph": GraphEngine,
}

__all__ = ["ENGINES", "Engine"]
