"""`dtrl benchmark SUITE`."""

import argparse
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dtrl.cli.arguments import add_json, add_modules, write_json
from dtrl.errors import CellsFailedError

SUITES = {
    "quick": "CartPole, Pendulum and LunarLander in a quarter of an hour on two cores, data included",
    "locomotion": "Hopper, HalfCheetah and Walker2d",
    "credit": "rewards that come late: Key-to-Door, and CartPole and Pendulum with theirs at the end",
    "stitching": "a way that is in no episode, from pieces of two",
}
NAMED = 3
"""Cells that are named beside the reason why they failed."""
CHANGES = ("updates", "episodes", "eval_every", "eval_episodes", "target_quantile", "seeds")


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "benchmark",
        help="compare methods on several datasets and seeds",
        description="Train every entry of a suite on every dataset with every seed, evaluate the last checkpoint and the best, and write tables with "
        "intervals (results.md, results.html, results.json, plots). What is finished in RUNS is kept; interrupted, the same command goes on.\n\n"
        + "\n".join(f"  {name:<12}{words}" for name, words in SUITES.items())
        + "\n\nHow to write a suite of your own: docs/benchmark.md.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("suite", metavar="SUITE", help="one of the above, or the path of a TOML file")
    parser.add_argument(
        "--logdir", type=Path, metavar="RUNS", help="folder of the runs and tables (default: runs/SUITE)"
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="processes, of one thread each (default: one a core)")
    parser.add_argument(
        "--allow-missing", action="store_true", help="leave out datasets whose environment is not installed"
    )
    group = parser.add_argument_group("instead of what the suite says, for all of its datasets")
    group.add_argument("--seeds", type=int, default=argparse.SUPPRESS, metavar="N", help="so many, from 0")
    for name, words in (
        ("updates", "gradient updates of a run"),
        ("episodes", "episodes of the evaluation that is reported"),
        ("eval_every", "updates between two evaluations that choose the best checkpoint"),
        ("eval_episodes", "episodes of each of those"),
    ):
        group.add_argument(f"--{name.replace('_', '-')}", type=int, default=argparse.SUPPRESS, metavar="N", help=words)
    group.add_argument(
        "--target-quantile",
        type=float,
        default=argparse.SUPPRESS,
        metavar="Q",
        help="quantile of the data's returns that is asked for; 1 is the largest",
    )
    add_modules(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    from dtrl.pool import cores
    from dtrl.suites import load_suite, run_suite
    from dtrl.suites.benchmark import HTML_FILE, MARKDOWN_FILE, with_changes
    from dtrl.suites.table import markdown
    from dtrl.training.interrupts import Interrupted, terminable

    suite = load_suite(arguments.suite)
    suite = with_changes(suite, {n: value for n, value in vars(arguments).items() if n in CHANGES})
    logdir = arguments.logdir or Path("runs") / suite.name
    jobs = cores() if arguments.jobs is None else arguments.jobs
    try:
        with terminable():
            results = run_suite(
                suite,
                logdir,
                jobs=jobs,
                allow_missing=arguments.allow_missing,
                modules=arguments.modules,
                say=lambda line: print(line, file=sys.stderr, flush=True),
            )
    except KeyboardInterrupt as error:
        raise Interrupted(
            getattr(error, "number", signal.SIGINT),
            f"interrupted; what is finished is kept in {logdir}, and the same command goes on from there.",
        ) from error
    write_json(arguments.json, results)
    print(markdown(results))
    print(f"tables: {logdir / MARKDOWN_FILE} and {logdir / HTML_FILE}")
    if results["failed"]:
        raise CellsFailedError(
            f"{len(results['failed'])} of the cells failed ({reasons(results['failed'])}); the same command tries them again."
        )


def reasons(failed: Mapping[str, str]) -> str:
    """Every reason once, with the cells that failed for it, of many the first."""
    cells: dict[str, list[str]] = {}
    for name, why in failed.items():
        cells.setdefault(why, []).append(name)
    return "; ".join(
        f"{', '.join(names[:NAMED])}{f' and {len(names) - NAMED} more' if len(names) > NAMED else ''}: {why}"
        for why, names in cells.items()
    )
