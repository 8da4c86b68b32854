"""`dtrl export RUN --output FILE`."""

import argparse
from pathlib import Path
from typing import Any

from dtrl.errors import InputError

FORMATS = {
    "safetensors": "weights, configuration, statistics and spaces, to be run by PyTorch (default)",
    "numpy": "acts with NumPy alone, without torch",
    "onnx": "dtrl acts with ONNX Runtime, without torch (extra `onnx`)",
    "aoti": "compiled for this machine and a fixed number of environments; takes minutes and a C++ compiler",
    "graph": "for an NVIDIA GPU: a whole step is one CUDA graph",
}


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "export",
        help="write a run's policy to one file, for PyTorch or for another engine",
        description="Write the newest checkpoint's policy to a file that needs nothing else to act:\n\n"
        + "\n".join(f"  {name:<13}{help}" for name, help in FORMATS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("policy", metavar="RUN", help="a run directory, a checkpoint's folder, or a saved policy")
    parser.add_argument("--format", choices=FORMATS, default="safetensors", help="one of the above")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the file to write")
    parser.add_argument(
        "--target-return", type=float, metavar="R", help="the return it asks for by default (default: the run's)"
    )
    parser.add_argument(
        "--context",
        choices=("block", "banded", "full"),
        help="of an engine: what it looks back on (default: that of the model; block where it recomputes a window)",
    )
    parser.add_argument(
        "--num-envs", type=int, metavar="N", help="of an engine: fix the number of environments (aoti: 1, else any)"
    )


def run(arguments: argparse.Namespace) -> None:
    from dtrl.acting import ExportedPolicy, Policy, load_policy

    policy = load_policy(arguments.policy)
    if not isinstance(policy, Policy):
        raise InputError(f"{arguments.policy} is an export already; give the run or the policy that it was made from.")
    for name in ("context", "num_envs"):
        if getattr(arguments, name) is not None and arguments.format == "safetensors":
            raise InputError(
                f"--{name.replace('_', '-')} is for an engine, and the format safetensors leaves it open; name a --format, or leave it out."
            )
    changes = {"target_return": arguments.target_return, "context": arguments.context}
    policy = policy.variant(**{name: value for name, value in changes.items() if value is not None})
    if arguments.format == "safetensors":
        policy.save(arguments.output)
    else:
        ExportedPolicy.of(policy, arguments.format, rows=arguments.num_envs).save(arguments.output)
    print(f"wrote {arguments.output}; `dtrl evaluate {arguments.output}` and dtrl.load_policy read it.")
