"""Train with evaluations for a while, and watch the process and its workers: what it keeps in memory, its open files, and processes that nobody waited for.

    python benchmarks/soak.py cartpole/mixed-v0 --minutes 30

Told is what there is after the first minute, half-way and at the end. Exit code 1 if memory grew by more than --allowed-mib in the second half, when every
cache has what it will hold, if more files are open, if a process stayed, or if the training ended by itself. Linux only, whose /proc it reads."""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from dtrl.bench.memory import bytes_of

MIB = 2**20
WARM_UP_SECONDS = 60.0


@dataclass(frozen=True)
class Sample:
    """Of the training process and all that descend from it, at one moment."""

    seconds: float
    resident: int
    """Bytes of the process itself that are no mapped file's."""
    files: int
    """Open in the process itself."""
    processes: int
    zombies: int


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--allowed-mib", type=float, default=4.0, help="growth that counts as none (default: 4)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all samples there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dtrl-soak-") as folder:
        samples, code = watch(arguments.dataset, 60 * arguments.minutes, Path(folder) / "run")
        updates = sum('"train/loss"' in line for line in (Path(folder) / "run" / "progress.jsonl").open())
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(sample) for sample in samples]) + "\n")
    return report(samples, code, 100 * updates, arguments.allowed_mib)


def watch(dataset: str, seconds: float, run: Path) -> tuple[list[Sample], int]:
    """Samples, one a second, of a training that is asked to stop after so long; and its exit code."""
    flags = "--updates 1000000000 --width 64 --layers 2 --batch-size 16 --log-every 100 --checkpoint-every 200"
    evaluation = "--eval-every 200 --eval-episodes 2 --env-workers 2"
    command = [sys.executable, "-m", "dtrl", "train", dataset, "--logdir", str(run), *f"{flags} {evaluation}".split()]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    samples, begun = [], time.monotonic()
    try:
        while time.monotonic() - begun < seconds and process.poll() is None:
            samples.append(sample(process.pid, time.monotonic() - begun))
            time.sleep(1)
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=120)
    return samples, code


def sample(pid: int, seconds: float) -> Sample:
    family = descendants(pid)
    return Sample(
        seconds,
        bytes_of("RssAnon", pid),
        len(list(Path(f"/proc/{pid}/fd").iterdir())),
        len(family),
        sum(state == "Z" for state in family.values()),
    )


def descendants(pid: int) -> dict[int, str]:
    """Every process that descends from this one → its state."""
    parents, states = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]  # a name may hold anything, brackets too
        except OSError:  # it has ended
            continue
        parents[int(path.parent.name)], states[int(path.parent.name)] = int(parent), state
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {child: states[child] for child in found - {pid}}


def report(samples: list[Sample], code: int, updates: int, allowed_mib: float) -> int:
    warm = [s for s in samples if s.seconds >= WARM_UP_SECONDS]
    if len(warm) < 10:
        print("it ended within the first minute; give it more --minutes, or look at what `dtrl train` says.")
        return 1
    # evaluations and checkpoints come and go: what counts is the least of a stretch, which is what is kept
    tenth, half = len(warm) // 10, len(warm) // 2
    stretches = warm[:tenth], warm[half : half + tenth], warm[-tenth:]
    memory = [min(s.resident for s in part) / MIB for part in stretches]
    files = [min(s.files for s in part) for part in stretches]
    # five seconds are time enough to wait for a process that has ended
    zombies = max(min(s.zombies for s in warm[i : i + 5]) for i in range(len(warm) - 4))
    print(f"{samples[-1].seconds / 60:.1f} minutes, some {updates:,} updates, exit code {code}")
    print("memory after the first minute, half-way and at the end: " + ", ".join(f"{m:.1f}" for m in memory) + " MiB")
    print(f"open files then: {', '.join(map(str, files))}; processes: at most {max(s.processes for s in warm)}")
    print(f"processes that had ended and nobody waited for: {zombies}")
    faults = memory[2] - memory[1] > allowed_mib, files[2] > files[1], zombies > 0, code != 128 + signal.SIGTERM
    return int(any(faults))


if __name__ == "__main__":
    sys.exit(main())
