"""The `aoti` engine: machine code by torch's AOTInductor, for a fixed number of rows.

Such a file is a program of its machine: load only those that you made yourself."""

import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtrl.acting.engines.base import Engine, Part, Run, as_bytes, named, picker
from dtrl.errors import InputError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

OPTIONS = {
    "max_autotune": True,
    "freezing": True,
    "max_autotune_gemm_backends": "CPP,ATEN",
    "aot_inductor.allow_stack_allocation": True,
}
"""Kernels are chosen by timing them, weights laid out for them, and what lies between them is kept on the stack."""


class AotiEngine(Engine):
    @classmethod
    def make(cls, program: "ExportedProgram") -> Part:
        import torch
        from torch._inductor import aoti_compile_and_package, config

        from dtrl.acting.engines.exporting import inputs_of, nest_of

        if shutil.which("g++") is None and shutil.which("clang++") is None:
            raise InputError("the aoti engine is compiled by a C++ compiler, and there is none here; install g++.")
        with tempfile.TemporaryDirectory(prefix="dtrl-aoti-") as folder, torch.no_grad(), quiet():
            path = str(Path(folder) / "model.pt2")
            try:
                with config.patch(autotune_num_choices_displayed=0, max_autotune_report_choices_stats=False):
                    aoti_compile_and_package(program, package_path=path, inductor_configs=OPTIONS)
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
                raise InputError(
                    f"AOTInductor cannot compile this model ({reason}); export for another engine."
                ) from error
            return {"inputs": inputs_of(program), "outputs": nest_of(program)}, {
                "model": as_bytes(Path(path).read_bytes())
            }

    def __init__(self, parts: Mapping[str, Part]) -> None:
        try:
            from torch._inductor import aoti_load_package
        except ImportError as error:
            raise InputError(
                "this policy was compiled for torch, which is not installed; `pip install torch`."
            ) from error
        self.runners, self.inputs, self.outputs = {}, {}, {}
        for name, (document, arrays) in parts.items():
            with tempfile.TemporaryDirectory(prefix="dtrl-aoti-") as folder:
                path = Path(folder) / "model.pt2"
                path.write_bytes(arrays["model"].tobytes())
                try:
                    with quiet():
                        self.runners[name] = aoti_load_package(str(path))
                except Exception as error:
                    reason = " ".join(str(error).split())[:200]
                    raise InputError(
                        f"this policy was compiled for another machine or another torch ({reason}); export it again here."
                    ) from error
            self.inputs[name], self.outputs[name] = document["inputs"], document["outputs"]

    def bind(self, name: str, **inputs: Any) -> Run:
        import torch

        given = named(inputs)
        # the loader itself: the callable around it takes keywords apart in as much time as a small model needs
        runner, fill = self.runners[name].loader.run, picker(self.outputs[name])
        tensors = [torch.from_numpy(given[key]) for key in self.inputs[name]]
        return lambda: fill([value.numpy() for value in runner(tensors)])


@contextmanager
def quiet() -> Iterator[None]:
    """Inductor reports its choices by logging, and warns of its own parts."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
