"""Cells of a suite that another program trains: an entry beside the suite's own, on the same datasets and seeds, in the size of its baseline."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gymnasium import spaces

from dtrl.errors import InputError
from dtrl.pool import run_tasks
from dtrl.suites.benchmark import note, prepare_suite, write_results
from dtrl.suites.cells import Cell
from dtrl.suites.suite import Entry, Suite, load_suite
from dtrl.suites.table import markdown
from dtrl.trajectories import Trajectories


def add_external(parser: argparse.ArgumentParser) -> None:
    """What a program that adds an entry to a suite has to be told."""
    parser.add_argument("suite", help="name or file, as for dtrl benchmark")
    parser.add_argument("--logdir", type=Path, required=True, help="folder of the suite's runs")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--return-scale", type=float, help="published for MuJoCo: 1000 (default: dtrl's)")
    parser.add_argument("--allow-missing", action="store_true")


def labelled(label: str, **changed: float | None) -> str:
    """The label of an entry, with those settings that are not the published ones, as "name value": in a folder of runs both may stand."""
    return ", ".join([label, *(f"{name} {value:g}" for name, value in changed.items() if value is not None)])


def with_external(suite: Suite, label: str) -> Suite:
    """The suite with one more entry, of the size of its baseline."""
    sizes = next(entry for entry in suite.entries if entry.label == suite.baseline).options
    return replace(suite, entries=(*suite.entries, Entry(label, "external", options=sizes)))


def run_external(arguments: argparse.Namespace, label: str, task_of: Callable[[Cell], Callable[[], None]]) -> None:
    """Run what is not finished of the entry, each cell by its task, and print the tables with it; `arguments` are those of `add_external`."""
    suite = with_external(load_suite(arguments.suite), label)
    benchmark = prepare_suite(suite, arguments.logdir, arguments.jobs, arguments.allow_missing)
    cells = {cell.name: cell for cell in benchmark.todo if cell.entry.label == label}
    for done in run_tasks({name: task_of(cell) for name, cell in cells.items()}, arguments.jobs):
        print(f"{done.name}: {done.error or 'done'} ({done.seconds:.0f} s)", file=sys.stderr, flush=True)
        note(benchmark, cells[done.name], done)
    print(markdown(write_results(benchmark)))
    print(json.dumps(benchmark.failed, indent=2) if benchmark.failed else "")


def vector_spaces(data: Trajectories, who: str) -> tuple[spaces.Box, spaces.Box | spaces.Discrete]:
    """The spaces of observations and actions. Raises InputError unless they are vectors, or actions choices, of which alone these models know."""
    shown, acted = data.observation_space, data.action_space
    if (
        not isinstance(shown, spaces.Box)
        or len(shown.shape) != 1
        or not isinstance(acted, spaces.Box | spaces.Discrete)
    ):
        raise InputError(f"{who} model takes vectors, and {data.origin.name} has {shown} and {acted}.")
    return shown, acted
