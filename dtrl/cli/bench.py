"""`dtrl bench acting | contexts | training | …`."""

import argparse
import inspect
from typing import Any

from dtrl.cli.arguments import add_json, write_json

WORK = {
    "acting": "one action, and a vector environment's, against transformers' Decision Transformer",
    "contexts": "the cache's bytes and the time of a step at contexts of 20 to 128,000 tokens, and a step after 1,000 against transformers",
    "decoding": "what choosing costs a step, plans with and without their cache, and speculative decoding against sampling token by token",
    "rollouts": "evaluating in many environments, with and without worker processes, against Gymnasium's vector environments",
    "training": "one gradient update against transformers' Decision Transformer",
    "processes": "training in several processes, beside one process with as many threads",
    "loading": "loading a dataset and drawing a batch against Minari",
    "recording": "recording an environment against Minari's DataCollector",
    "memory": "the memory that loading and training take, beside the size of the data",
    "startup": "a process that imports dtrl, and `dtrl --help`, beside one that imports Gymnasium",
}


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "bench",
        help="measure speed beside other implementations",
        description="Ratios against a named peer, interleaved in one run:\n\n"
        + "\n".join(f"  {name:<12}{help}" for name, help in WORK.items())
        + "\n\n`dtrl bench WORK --help` lists the options that can be changed.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("work", choices=WORK, metavar="WORK", help="one of the above")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="…", help="its options")
    parser.set_defaults(run=run, parser_class=type(parser))


def run(arguments: argparse.Namespace) -> None:
    """Its options are the parameters of the benchmark's `run`, which takes an import of torch to know: numbers, and paths."""
    from dtrl.bench import BENCHMARKS

    module = BENCHMARKS[arguments.work]
    parser = arguments.parser_class(
        prog=f"dtrl bench {arguments.work}",
        description=f"{WORK[arguments.work][0].upper()}{WORK[arguments.work][1:]}.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for name, parameter in inspect.signature(module.run).parameters.items():
        kind, metavar, help = (int, "N", "a number") if parameter.annotation is int else (str, "PATH", "a path")
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, default=parameter.default, metavar=metavar, help=help
        )
    add_json(parser)
    options = vars(parser.parse_args(arguments.options))
    path = options.pop("json")
    result = module.run(**options)
    write_json(path, result)
    print(module.table(result))
