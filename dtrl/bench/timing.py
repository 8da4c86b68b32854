"""Times of several jobs, taken in turns so that what disturbs the machine disturbs all of them, and what is said about them."""

import contextlib
import gc
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import dtrl
from dtrl.errors import InputError

LOW = 10
"""Percentile that ratios are made of: neighbours on the machine only ever add time, and the minimum of a few is a lucky one."""
Job = Callable[[], Callable[[], object]]
"""Prepares one repetition, untimed, and returns the call to time."""


def interleaved(jobs: Mapping[str, Job], repetitions: int, warm_up: int = 1) -> dict[str, npt.NDArray[np.float64]]:
    """Seconds of each repetition of each job. Every round runs each job once, and begins with another one."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    names = list(jobs)
    for repetition in range(-warm_up, repetitions):
        first = repetition % len(names)
        for name in names[first:] + names[:first]:
            call = jobs[name]()
            with no_garbage_collection():
                started = time.perf_counter()
                call()
                taken = time.perf_counter() - started
            if repetition >= 0:
                seconds[name].append(taken)
    return {name: np.array(values) for name, values in seconds.items()}


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def device_of(cuda: int) -> torch.device:
    """The GPU where `cuda` is 1, else the processor. Raises InputError where there is no GPU."""
    if cuda and not torch.cuda.is_available():
        raise InputError("there is no CUDA device here for --cuda 1; leave it out.")
    return torch.device("cuda" if cuda else "cpu")


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def temporarily(variable: str, value: str) -> Iterator[None]:
    """An environment variable with another value, for a while."""
    before = os.environ.get(variable)
    os.environ[variable] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def compare(
    work: str,
    times: Mapping[str, npt.NDArray[np.float64]],
    ours: str,
    peer: str,
    goal: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    """One row of results: dtrl's job against a peer's."""
    summary = {
        name: {"min": float(times[name].min()), "p10": float(np.percentile(times[name], LOW))} for name in (ours, peer)
    }
    return {
        "work": work,
        "dtrl": ours,
        "peer": peer,
        "ratio": summary[peer]["p10"] / summary[ours]["p10"],
        "ratio_of_minima": summary[peer]["min"] / summary[ours]["min"],
        "goal": goal,
        "dtrl_seconds": summary[ours],
        "peer_seconds": summary[peer],
        "repetitions": len(times[ours]),
        **more,
    }


def document(name: str, options: Mapping[str, int | str], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The results with what is needed to read and to repeat them."""
    flags = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in options.items() if value != "")
    return {
        "benchmark": name,
        "command": f"dtrl bench {name} {flags}",
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform(), "load": load()},
        "versions": {
            "dtrl": dtrl.__version__,
            "python": platform.python_version(),
            **versions("torch", "transformers", "minari", "numpy"),
        },
        "results": list(results),
    }


def versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def processor() -> str:
    """The processor's name, where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def load() -> float | None:
    """Processes that wanted to run during the last minute, this one included: above the threads in use, the machine was not idle."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def heading(document: Mapping[str, Any]) -> list[str]:
    """What was run, where, and with which versions."""
    machine = document["machine"]
    return [
        document["command"],
        f"{machine['processor']}, {machine['cores']} cores, load {machine['load']}; "
        + ", ".join(f"{k} {v}" for k, v in document["versions"].items()),
    ]


def table(document: Mapping[str, Any]) -> str:
    """The document as text."""
    head = [
        *heading(document),
        "times are the 10th percentile (minimum) of the repetitions, taken in turns; ratio = peer / dtrl",
    ]
    return "\n".join([*head, "", *ratios(document["results"])])


def ratios(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows as lines, below their heading."""
    body = [f"{'work':<52} {'dtrl':<24} {'peer':<42} {'dtrl ms':>20} {'peer ms':>20} {'ratio':>8} {'goal':>6}"]
    for row in results:
        ours, peer = (
            f"{1e3 * row[key]['p10']:.4g} ({1e3 * row[key]['min']:.4g})" for key in ("dtrl_seconds", "peer_seconds")
        )
        goal = "" if row["goal"] is None else f"{row['goal']:g}"
        body.append(
            f"{row['work']:<52} {row['dtrl']:<24} {row['peer']:<42} {ours:>20} {peer:>20} {row['ratio']:>8.3g} {goal:>6}"
        )
    return body
