"""`dtrl bench acting | training | loading`."""

import argparse
from typing import Any

from dtrl.cli.arguments import add_json, write_json

WORK = {
    "acting": "one action, and a vector environment's, against transformers' Decision Transformer",
    "training": "one gradient update against transformers' Decision Transformer",
    "loading": "loading a dataset and drawing a batch against Minari",
}


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "bench",
        help="measure speed beside other implementations",
        description="Ratios against a named peer, interleaved in one run.",
    )
    works = parser.add_subparsers(dest="work", metavar="WORK", required=True)
    for name, help in WORK.items():
        work = works.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
        work.set_defaults(run=run)
        work.add_argument(
            "--repetitions", type=int, default=30, metavar="N", help="timed repetitions of each side (default: 30)"
        )
        add_json(work)


def run(arguments: argparse.Namespace) -> None:
    from importlib import import_module

    module = import_module(f"dtrl.bench.{arguments.work}")
    result = module.run(arguments.repetitions)
    print(module.table(result))
    write_json(arguments.json, result)
