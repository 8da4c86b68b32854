"""How long a process takes that only imports dtrl, or prints `dtrl --help`: beside one that imports Gymnasium, and beside the goal."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from dtrl.bench.timing import compare, document, interleaved, table

__all__ = ["run", "table"]

GOAL_SECONDS = 0.3
PEER = "python, import gymnasium"
PROCESSES = {
    "import dtrl": ("-c", "import dtrl"),
    "dtrl --help": ("-m", "dtrl", "--help"),
    PEER: ("-c", "import gymnasium"),
}
"""Each from the start of the interpreter to its end. dtrl registers environments with Gymnasium, so it cannot be faster than the peer."""


def run(repetitions: int = 20) -> dict[str, Any]:
    """So many processes of each, files in the system's cache. The ratio to the goal is the goal over dtrl's time."""
    times = interleaved({name: starting(arguments) for name, arguments in PROCESSES.items()}, repetitions)
    goal = f"the goal, {GOAL_SECONDS} s"
    times[goal] = np.full(repetitions, GOAL_SECONDS)
    results = [compare("starting", times, ours, goal, 1.0) for ours in PROCESSES if ours != PEER]
    results += [compare("starting", times, ours, PEER) for ours in PROCESSES if ours != PEER]
    return document("startup", {"repetitions": repetitions}, results)


def starting(arguments: tuple[str, ...]) -> Callable[[], Callable[[], object]]:
    command = [sys.executable, *arguments]
    return lambda: lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
