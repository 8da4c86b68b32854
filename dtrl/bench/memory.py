"""Memory beside the size of the data: what a process grows by at most while it loads a dataset, and while it trains on images."""

import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from dtrl.bench.loading import make_dataset, own_folders
from dtrl.bench.timing import document, heading
from dtrl.collect import write_minari
from dtrl.errors import InputError
from dtrl.trajectories import Trajectories, load_trajectories

SIDE, STACK = 84, 4
"""Pixels a side, and frames, of an image observation: Atari's."""
IMAGES = "bench/images-v0"
MEASURE = """
import sys
import numpy as np
from dtrl.trajectories import load_trajectories, sources
from dtrl.bench.memory import bytes_of as memory
import h5py, minari.serialization

def forget_the_peak():
    open("/proc/self/clear_refs", "w").write("5")

def work(data): ...
def before(): return memory("VmRSS")
{work}
before = before()
forget_the_peak()
work(load_trajectories(sys.argv[1]))
print(memory("VmHWM") - before)
"""
READ_ALL = """
def work(data):
    for column in data.columns.values():
        np.asarray(column).sum(dtype=np.float64)
"""
TRAIN = """
import dtrl
def work(data):
    dtrl.train(data, updates={updates}, batch_size=8, context_length=10)
def before():
    work(load_trajectories(sys.argv[2]))
    forget_the_peak()
    work(load_trajectories(sys.argv[2]))
    return memory("VmHWM")
"""


def run(episodes: int = 20_000, steps: int = 50, megabytes: int = 100, updates: int = 60) -> dict[str, Any]:
    """A dataset of `episodes` of `steps` each in Hopper's shape, and one of `megabytes` of images on which a model is trained.

    Loading counts from the moment at which everything is imported; training from the peak of the same training on a hundredth of the images."""
    if not Path("/proc/self/clear_refs").exists():
        raise InputError("memory is measured by Linux' /proc, which is not here.")
    with tempfile.TemporaryDirectory(prefix="dtrl-bench-") as folder, own_folders(Path(folder)):
        path = str(make_dataset(episodes, steps))
        results = [
            row(f"first load, {episodes * steps:,} steps in {episodes:,} episodes", grown(path), size(path)),
            row("second load, every number read", grown(path, work=READ_ALL), size(path)),
        ]
        few, many = (make_images(count, name) for count, name in ((1, "bench/few-v0"), (megabytes, IMAGES)))
        size(few), size(many)  # the cache is there
        results.append(
            row(
                f"training on images of {SIDE} × {SIDE} × {STACK}, {updates} updates",
                grown(many, few, work=TRAIN.format(updates=updates)),
                size(many),
                goal=1.2,
            )
        )
    options = {"episodes": episodes, "steps": steps, "megabytes": megabytes, "updates": updates}
    return document("memory", options, results)


def bytes_of(field: str, process: int | str = "self") -> int:
    """What the kernel says of a process's memory under a name (VmRSS, VmHWM, RssAnon: what it has, has had at most, and has that no file backs)."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def grown(*datasets: str, work: str = "") -> int:
    """Bytes by which a fresh process grows at most while it loads the first dataset and works on it."""
    command = [sys.executable, "-W", "ignore", "-c", MEASURE.replace("{work}", work), *datasets]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return int(done.stdout.split()[-1])


def size(dataset: str) -> int:
    """Bytes of the columns."""
    return sum(column.nbytes for column in load_trajectories(dataset).columns.values())


def row(work: str, peak: int, arrays: int, goal: float = 1.1) -> dict[str, Any]:
    return {"work": work, "arrays_bytes": arrays, "peak_bytes": peak, "ratio": peak / arrays, "goal": goal}


def make_images(megabytes: int, name: str) -> str:
    """A dataset of random images of so many megabytes; returns its id."""
    steps = max(40, megabytes * 2**20 // (STACK * SIDE * SIDE))
    random = np.random.default_rng(0)
    ends = np.arange(steps) % 20 == 19
    ends[-1] = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = Trajectories.from_arrays(
            random.integers(0, 256, (steps, SIDE, SIDE, STACK), np.uint8),
            random.integers(0, 4, steps),
            random.random(steps, dtype=np.float32),
            ends,
            np.zeros(steps, bool),
            spaces.Box(0, 255, (SIDE, SIDE, STACK), np.uint8),
            spaces.Discrete(4),
        )
        return write_minari(images, name)


def table(document: Mapping[str, Any]) -> str:
    """The document as text."""
    body = [f"{'work':<60} {'arrays MiB':>12} {'peak MiB':>12} {'ratio':>8} {'goal':>6}"]
    body += [
        f"{row['work']:<60} {row['arrays_bytes'] / 2**20:>12.1f} {row['peak_bytes'] / 2**20:>12.1f} {row['ratio']:>8.3f} {row['goal']:>6g}"
        for row in document["results"]
    ]
    return "\n".join([*heading(document), "ratio = growth of the process at its peak / bytes of the arrays", "", *body])
