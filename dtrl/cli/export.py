"""`dtrl export RUN --output FILE`."""

import argparse
from pathlib import Path
from typing import Any


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "export",
        help="write a run's policy to one file",
        description="Write the newest checkpoint's policy to a file that needs nothing else to act.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("policy", metavar="RUN", help="a run directory, a checkpoint's folder, or a saved policy")
    parser.add_argument(
        "--format",
        choices=("safetensors",),
        default="safetensors",
        help="safetensors: weights, config, statistics and spaces in one file (default)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the file to write")
    parser.add_argument(
        "--target-return", type=float, metavar="R", help="the return it asks for by default (default: the run's)"
    )


def run(arguments: argparse.Namespace) -> None:
    from dtrl.acting import load_policy

    policy = load_policy(arguments.policy)
    if arguments.target_return is not None:
        policy = policy.variant(target_return=arguments.target_return)
    policy.save(arguments.output)
    print(f"wrote {arguments.output}; `dtrl evaluate {arguments.output}` and dtrl.load_policy read it.")
