"""Train on images that take several times the memory that the process may have of its own, and on the same images held in memory: losses and speed.

    python benchmarks/larger_than_memory.py --megabytes 4096 --limit 1024

The limit is one on private memory (RLIMIT_DATA, Linux), which every allocation counts against and the pages of the memory-mapped cache do not: these are the
system's to drop. The first load, which builds the cache, and the training each run under it, in processes of their own. Needs twice the megabytes on disk, in
the folder for temporary files, and in memory, to make the data. Exit code 1 if losses differ, or if it is slower than --least of the speed."""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

import dtrl
from dtrl.bench.loading import own_folders
from dtrl.bench.memory import IMAGES, bytes_of, make_images
from dtrl.windows import Windows

BATCH_SIZE, CONTEXT_LENGTH = 8, 5


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=4096, help="of images (default: 4096)")
    parser.add_argument("--limit", type=int, default=1024, help="MiB of private memory (default: 1024)")
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--least", type=float, default=0.8, help="share of the speed in memory (default: 0.8)")
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job is not None:
        print(json.dumps(JOBS[arguments.job](arguments)))
        return 0
    with tempfile.TemporaryDirectory(prefix="dtrl-bench-") as folder, own_folders(Path(folder)):
        make_images(arguments.megabytes, IMAGES)
        results = {job: run(job, arguments) for job in JOBS}
    return report(results, arguments)


def run(job: str, arguments: argparse.Namespace) -> dict:
    """What a job measures, in a process of its own."""
    numbers = [f"--{name}={getattr(arguments, name)}" for name in ("megabytes", "limit", "updates")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--job", job, *numbers],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{job} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def load(arguments: argparse.Namespace) -> dict:
    """The first load, which reads every episode and writes the cache, under the limit."""
    limit(arguments.limit)
    begun = time.perf_counter()
    dtrl.load_trajectories(IMAGES)
    return {"seconds": time.perf_counter() - begun, "private_mib": private_mib()}


def mapped(arguments: argparse.Namespace) -> dict:
    limit(arguments.limit)
    return trained(dtrl.load_trajectories(IMAGES), arguments)


def in_memory(arguments: argparse.Namespace) -> dict:
    data = dtrl.load_trajectories(IMAGES)
    held = {name: np.array(column) for name, column in data.columns.items()}
    return trained(replace(data, columns=held), arguments)


def trained(data: dtrl.Trajectories, arguments: argparse.Namespace) -> dict:
    """Losses, updates a second and windows' batches a second; the first tenth is warming up."""
    for column in data.columns.values():  # what lies in the system's cache is then as much as fits there, for both
        np.asarray(column).max()
    moments = []
    with tempfile.TemporaryDirectory() as folder:
        dtrl.train(
            data,
            updates=arguments.updates,
            batch_size=BATCH_SIZE,
            context_length=CONTEXT_LENGTH,
            width=32,
            layers=1,
            log_every=1,
            checkpoint_every=arguments.updates,
            logdir=Path(folder) / "run",
            device="cpu",
            callbacks=[lambda event: moments.append(time.perf_counter())],
        )
        lines = map(json.loads, (Path(folder) / "run" / "progress.jsonl").read_text().splitlines())
        losses = [line["train/loss"] for line in lines if "train/loss" in line]
    update = float(np.percentile(np.diff(moments)[len(moments) // 10 :], 10))
    windows = Windows(data, CONTEXT_LENGTH, BATCH_SIZE)
    drawn = []
    for number in range(5 * arguments.updates):
        begun = time.perf_counter()
        windows.batch(number)
        drawn.append(time.perf_counter() - begun)
    return {
        "losses": [loss.hex() for loss in losses],
        "update_seconds": update,
        "batch_seconds": float(np.percentile(drawn, 10)),
        "private_mib": private_mib(),
    }


JOBS = {"load": load, "mapped": mapped, "in_memory": in_memory}


def limit(mebibytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (mebibytes * 2**20,) * 2)


def private_mib() -> float:
    """What the process has of its own now: no mapped file's pages."""
    return bytes_of("RssAnon") / 2**20


def report(results: dict[str, dict], arguments: argparse.Namespace) -> int:
    first, mapped, held = results["load"], results["mapped"], results["in_memory"]
    print(f"first load of {arguments.megabytes:,} MiB with at most {arguments.limit:,} MiB: {first['seconds']:.0f} s")
    for what in ("update", "batch"):
        one, other = mapped[f"{what}_seconds"], held[f"{what}_seconds"]
        print(f"{what}: {1e3 * one:.2f} ms mapped, {1e3 * other:.2f} ms in memory: {other / one:.2f} of the speed")
    same = mapped["losses"] == held["losses"] and len(held["losses"]) == arguments.updates
    print(f"private memory: {mapped['private_mib']:.0f} MiB mapped, {held['private_mib']:.0f} MiB in memory")
    print(f"{len(held['losses'])} losses, bit for bit the same: {'yes' if same else 'NO'}")
    return int(not same or held["update_seconds"] / mapped["update_seconds"] < arguments.least)


if __name__ == "__main__":
    sys.exit(main())
